"""What was measured, as tables: ratios of speed, targets, and how they change with size."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from plot import Line, log_log
from workloads import DBOS, DISK, OLD, OURS, PLAIN, Limit, Speed, Workload

NAMES = {
    OURS: "ray-workflows",
    PLAIN: "plain Ray",
    OLD: "ray.workflow",
    DBOS: "DBOS (SQLite)",
    DISK: "the disk",
}

Records = dict[str, dict[str, Any]]


def rates(records: Records, name: str) -> list[float]:
    """Units of size per second, a number for each round."""
    record = records.get(name, {"rounds": []})
    if "error" in record:
        return []
    return [record["size"] / done["seconds"] for done in record["rounds"]]


def ratio(records: Records, name: str) -> float | None:
    """How many times as fast as a peer: the median of the rounds' ratios."""
    ours, others = rates(records, OURS), rates(records, name)
    if not ours or not others:
        return None
    return statistics.median(our / other for our, other in zip(ours, others, strict=False))


def median_seconds(records: Records) -> float | None:
    record = records.get(OURS, {"rounds": []})
    if "error" in record or not record["rounds"]:
        return None
    return statistics.median(done["seconds"] for done in record["rounds"])


def limited(limit: Limit, records: Records) -> float | None:
    """The median of what has a limit."""
    return detail(records, limit.detail) if limit.detail else median_seconds(records)


def detail(records: Records, key: str) -> float | None:
    """The median of a detail of ours."""
    rounds = records.get(OURS, {}).get("rounds", [])
    values = [done["details"][key] for done in rounds if key in done["details"]]
    return statistics.median(values) if values else None


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}{unit}"


def targets_of(workload: Workload, records: Records) -> tuple[str, str]:
    """The targets, and whether they are met."""
    said, met = [], []
    for target in workload.targets:
        if isinstance(target, Limit):
            said.append(f"<= {target.at_most:g} {target.unit}")
            value = limited(target, records)
            met.append(None if value is None else value <= target.at_most)
        else:
            said.append(speed_text(target))
            # The slowest of several is the one that we are the most times as fast as.
            found = [ratio(records, name) for name in target.peers]
            known = [each for each in found if each is not None]
            missing = len(known) < len(found)
            met.append(None if missing else max(known) >= target.at_least)
    return ", ".join(said), ", ".join({True: "yes", False: "**no**", None: "?"}[m] for m in met)


def speed_text(target: Speed) -> str:
    peers = " or ".join(NAMES[name] for name in target.peers)
    return f">= {target.at_least:.3g}x {peers}" + (", the slower" if len(target.peers) > 1 else "")


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def ratios_table(
    workloads: list[Workload], measured: dict[str, Records], *, judge: bool
) -> list[str]:
    others = [PLAIN, OLD, DBOS, DISK]
    lines = [
        row(["workload", *(f"x {NAMES[name]}" for name in others), "target", "met"]),
        "|---" * (len(others) + 3) + "|",
    ]
    for workload in workloads:
        if workload.scaling:
            continue
        records = measured[workload.name]
        cells = [number(ratio(records, name)) for name in others]
        limits = [target for target in workload.targets if isinstance(target, Limit)]
        if limits:
            values = [(limit, limited(limit, records)) for limit in limits]
            cells[0] = ", ".join(f"{v:.3g} {limit.unit}" for limit, v in values if v is not None)
        if OURS not in records or "error" in records[OURS]:
            cells[0] = "not measured"
        target, met = targets_of(workload, records)
        lines.append(row([workload.title, *cells, target, met if judge else ""]))
    return lines


def scaling_table(workloads: list[Workload], measured: dict[str, Records]) -> list[str]:
    """Speed as a multiple of that of plain Ray at the largest size that it was asked for."""
    found = [w for w in workloads if w.scaling and rates(measured[w.name], OURS)]
    plain = [statistics.median(r) for w in found if (r := rates(measured[w.name], PLAIN))]
    if not found:
        return []
    lines = [
        "",
        "## Throughput and memory against size",
        "",
        "No-op tasks through a reduction tree, from `run` to result, without `.bind`. Throughput",
        "is in multiples of plain Ray's at the largest size it was measured at; memory is the peak",
        "of the coordinator.",
        "",
        row(["tasks", "throughput", "coordinator MiB"]),
        "|---|---|---|",
    ]
    for workload in found:
        records = measured[workload.name]
        rate = statistics.median(rates(records, OURS))
        times = number(rate / plain[-1]) + "x" if plain else "?"
        size = records[OURS]["size"]
        lines.append(row([f"{size:,}", times, number(detail(records, "coordinator_mib"))]))
    return lines


def plots(workloads: list[Workload], measured: dict[str, Records]) -> dict[str, str]:
    """Pictures of the same by their names: throughput and memory against size."""
    found = [w for w in workloads if w.scaling and rates(measured[w.name], OURS)]
    plain = [statistics.median(r) for w in found if (r := rates(measured[w.name], PLAIN))]
    if not found:
        return {}
    lines: list[Line] = []
    for name in (OURS, PLAIN):
        points = [
            (records[name]["size"], statistics.median(speeds) / (plain[-1] if plain else 1))
            for records in (measured[workload.name] for workload in found)
            if (speeds := rates(records, name))
        ]
        lines += [(NAMES[name], points)] if points else []
    sizes = [measured[workload.name][OURS]["size"] for workload in found]
    memory = [detail(measured[workload.name], "coordinator_mib") for workload in found]
    used = [(size, mib) for size, mib in zip(sizes, memory, strict=True) if mib]
    unit = "times plain Ray's" if plain else "tasks/s"
    pictures = {"throughput": log_log("Throughput", "tasks in the workflow", unit, lines)}
    if used:
        line = [("coordinator, at its peak", used)]
        pictures["memory"] = log_log("Memory", "tasks in the workflow", "MiB", line)
    return pictures


def write_page(path: Path, outcome: dict[str, Any], workloads: list[Workload]) -> None:
    """The page, with pictures beside it."""
    pictures = plots(workloads, outcome["measured"])
    said = [write_report(outcome, workloads)]
    for name, picture in pictures.items():
        file = path.with_name(f"{path.stem}-{name}.svg")
        file.write_text(picture)
        said.append(f"![{name} against size, both axes logarithmic]({file.name})\n")
    path.write_text("\n".join(said))


def write_report(outcome: dict[str, Any], workloads: list[Workload]) -> str:
    """The whole page."""
    machine = outcome["machine"]
    versions = "; ".join(
        f"{NAMES[name]}: " + ", ".join(f"{key} {value}" for key, value in found.items())
        for name, found in outcome["versions"].items()
    )
    lines = ["# Benchmarks", ""]
    if outcome["quick"]:
        lines += ["**A single small round: it shows that the benchmark works, and no more.**", ""]
    lines += [
        "How many times the speed of others this project has. Every commit is synced to disk.",
        "All take turns in one run, each result is checked, and a number is the median of the",
        f"ratios of {outcome['rounds']} rounds. Raw seconds are in the JSON file beside this page.",
        "",
        f"- Machine: {machine['cores']} cores ({machine['processor']}),"
        f" {machine['memory_gib']} GiB, {machine['system']}, {machine['file_system']};"
        f" {machine['slots']} CPUs for each cluster.",
        f"- EncodedBatch before the run: {machine['load_before']}.",
        f"- Versions: {versions}.",
        f"- Command: `{outcome['command']}`, on {outcome['date']}, revision"
        f" {outcome['commit'] or 'not noted'}, {outcome['minutes']} minutes.",
        *(
            f"- Missing: {NAMES[name]} ({reason.splitlines()[0]})."
            for name, reason in outcome["missing"].items()
        ),
        "",
        *ratios_table(workloads, outcome["measured"], judge=not outcome["quick"]),
        *scaling_table(workloads, outcome["measured"]),
        "",
        "Slow peers do fewer tasks of the same kind, and speeds are compared: the sizes are in",
        "`benchmarks/workloads.py`. Workflows started by `run_async` count until their results are",
        "there. Plain Ray's chain is `ray.get` after each task. DBOS runs its steps in the process",
        "of the caller, one after the other. Before each turn with arrays the memory that it takes",
        "is touched and left free, by a process of its own: a virtual machine has to get it first.",
        "",
    ]
    return "\n".join(lines)
