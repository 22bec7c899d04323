"""What a run prints: its summary, and the story of each violation."""

from __future__ import annotations

import statistics
from collections import Counter

from ray_workflows._model import events as ev
from tests.chaos import log as kinds
from tests.chaos.checker import Violation
from tests.chaos.world import Run

#: How many violations are told in full.
TOLD = 5


def summary(run: Run, storage: str, seconds: float) -> str:
    lines = run.history.lines
    begun = [line for line in lines if line.kind == kinds.BEGIN]
    executions = Counter((line.workflow, line.task) for line in begun)
    acknowledged = [line for line in lines if line.kind == kinds.ACK]
    verbs = Counter(line.verb.partition(" ")[0] for line in acknowledged)
    shapes = Counter(
        line.workflow.split("-", 1)[1] for line in acknowledged if line.verb == "submit"
    )
    errors = Counter(
        f"{line.verb.partition(' ')[0]} {line.text.partition(':')[0]}"
        for line in lines
        if line.kind == kinds.ERROR
    )
    waits = recoveries(run)
    recovered = (
        f"{statistics.median(waits):.2f} s in the median, {max(waits):.2f} s at most"
        if waits
        else "none"
    )
    return "\n".join(
        [
            f"storage {storage}, seed {run.seed}, {seconds:.0f} s in all",
            f"  faults: {sum(run.counts.values())}: {told(run.counts)}",
            f"  acknowledged: {told(verbs)}",
            f"  shapes: {told(shapes)}",
            f"  tasks run: {len(executions)}, executions: {len(begun)}, "
            f"repeated: {len(begun) - len(executions)}",
            f"  verbs that raised: {told(errors) or 'none'}",
            f"  from a kill to the next end of a task: {recovered}",
            f"  submissions that never arrived, swept: {run.swept}",
            f"  healing, from the start of a new cluster: {run.healed_after:.1f} s",
        ]
    )


def shown(event: ev.Event) -> str:
    """An event without the bytes in it."""
    fields = ((name, getattr(event, name)) for name in event.__struct_fields__ if name != "plan")
    return f"{type(event).__name__} " + " ".join(f"{name}={str(v)[:150]}" for name, v in fields)


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def recoveries(run: Run) -> list[float]:
    """Seconds from each kill to the next end of a task anywhere."""
    found = []
    killed = None
    for line in sorted(run.history.lines, key=lambda line: line.at):
        if line.kind == kinds.FAULT and line.text.startswith("kill") and killed is None:
            killed = line.at
        elif line.kind == kinds.END and killed is not None:
            found.append(line.at - killed)
            killed = None
    return found


def tell(run: Run, violations: list[Violation]) -> str:
    """The violations, the faults, and all that is known of the workflows."""
    parts = [f"{len(violations)} violations, seed {run.seed}"]
    parts += [str(violation) for violation in violations[:50]]
    parts += ["", "the faults:", *run.faults]
    names = list(dict.fromkeys(violation.workflow for violation in violations))
    for name in [name for name in names if name][:TOLD]:
        parts += ["", f"the story of {name}:"]
        parts += [str(line) for line in run.history.lines if line.workflow == name]
        journal = run.history.journals.get(name)
        if journal is None:
            parts.append("it is not in the storage")
        else:
            parts += [f"{n}: {shown(event)}" for n, event in enumerate(journal.events)]
    return "\n".join(parts)
