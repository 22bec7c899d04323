"""Runs the scenarios with one library and writes their outcomes as JSON.

    python tests/parity/run_scenarios.py ray.workflow OUT.json [NAME ...]

The parent process needs nothing but the standard library. It starts one process, with a cluster
of its own, for each group of scenarios, reads what they report, and survives their death: a
scenario that kills its process "dies", one that takes too long "hangs", and the rest goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.ray.processes import LOOPBACK, descendants, is_running  # noqa: E402

#: More than the machine has: some scenarios hold workers while others work.
CLUSTER_CPUS = 4

#: Time for a process to import Ray and start its cluster, in seconds.
START_SECONDS = 90.0

#: What is known of a scenario before it has run.
NOTHING: dict[str, Any] = {"outcome": None}

#: Logged as the last line of a half, when nothing is left to run.
END = "end"


# -- the process of a group ----------------------------------------------------------------


class Reporter:
    """Appends outcomes to a file that the parent reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def report(self, name: str, **outcome: Any) -> None:
        line = json.dumps({"scenario": name, **outcome}, sort_keys=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def start_cluster(library: str, directory: Path) -> None:
    import ray

    storage = directory / "storage"
    storage.mkdir(exist_ok=True)
    options: dict[str, Any] = {}
    if library == "ray.workflow":
        options["storage"] = storage.as_uri()
    else:
        os.environ["RAY_WORKFLOW_STORAGE"] = str(storage)
    ray.init(
        address="local",
        num_cpus=CLUSTER_CPUS,
        resources={"special": 2},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        **options,
    )


def run_half(scenario: Any, half: int, workflow: Any, scratch: Any) -> dict[str, Any]:
    """The outcome of a scenario; a thread that never ends is left behind."""
    found: list[dict[str, Any]] = []

    def run() -> None:
        try:
            value = scenario.halves[half](workflow, scratch)
            found.append({"outcome": json.loads(json.dumps(value))})
        except BaseException as error:
            types = [cls.__name__ for cls in type(error).__mro__]
            found.append({"outcome": {"fails": types}, "trace": traceback.format_exc()})

    thread = threading.Thread(target=run, daemon=True)
    started = time.monotonic()
    thread.start()
    thread.join(scenario.timeout)
    outcome = found[0] if found else {"outcome": {"hangs": True}}
    if not found or half == len(scenario.halves) - 1:
        scratch.open_all_gates()
    return {**outcome, "seconds": round(time.monotonic() - started, 2)}


def run_group(library: str, group: str, half: int, directory: Path, names: list[str]) -> None:
    """Run one half of the scenarios of a group, then wait to be killed."""
    reporter = Reporter(directory / f"half{half}.jsonl")
    start_cluster(library, directory)
    import tests.parity.scenarios  # noqa: F401
    from tests.parity.kit import GROUPS, SCENARIOS, Scratch, workflow

    limits = GROUPS[group]
    if limits is not None:
        workflow.init(**limits)
    for name in names:
        reporter.report(name, begins=True)
        scenario = SCENARIOS[name]
        reporter.report(name, **run_half(scenario, half, workflow, Scratch(directory, name)))
    reporter.report(END)
    while True:
        time.sleep(3600)


# -- the parent ----------------------------------------------------------------------------


class Group:
    """The process of a group and its cluster; killed as a whole when left."""

    def __init__(self, library: str, group: str, half: int, directory: Path, names: list[str]):
        self.results = directory / f"half{half}.jsonl"
        self.results.unlink(missing_ok=True)
        # Short, because the paths of sockets are limited to 107 bytes.
        self.ray_directory = tempfile.mkdtemp(prefix="rp-")
        environment = {
            **os.environ,
            **LOOPBACK,
            "PARITY_LIBRARY": library,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "RAY_TMPDIR": self.ray_directory,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        arguments = ["--group", group, str(half), str(directory), *names]
        self.log = (directory / f"half{half}.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), library, *arguments],
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started: set[int] = set()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self.log.close()
        shutil.rmtree(self.ray_directory, ignore_errors=True)

    def lines(self) -> list[dict[str, Any]]:
        if not self.results.exists():
            return []
        text = self.results.read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait(self, timeouts: dict[str, float]) -> dict[str, Any]:
        """The outcomes, when all have reported, or the process is dead or stuck."""
        silent_since, told, lines = time.monotonic(), 0, self.lines()
        while not (lines and lines[-1]["scenario"] == END):
            self.started |= descendants(self.process.pid)
            if self.process.poll() is not None:
                break
            if len(lines) > told:
                silent_since, told = time.monotonic(), len(lines)
            name = lines[-1]["scenario"] if lines else ""
            if time.monotonic() - silent_since > timeouts.get(name, 0.0) + START_SECONDS:
                break
            time.sleep(0.1)
            lines = self.lines()
        done = {line["scenario"]: line for line in lines if "outcome" in line}
        begun = [line["scenario"] for line in lines if line.get("begins")]
        if begun and begun[-1] not in done:
            code = self.process.poll()
            done[begun[-1]] = {"outcome": {"dies": True}, "trace": f"exit code {code}"}
        return done

    def kill(self) -> None:
        """SIGKILL the process and everything that it started: its whole cluster."""
        self.started |= descendants(self.process.pid)
        for pid in (self.process.pid, *self.started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        while any(map(is_running, self.started)):
            time.sleep(0.02)


def run_names(
    library: str, group: str, half: int, directory: Path, timeouts: dict[str, float]
) -> dict[str, Any]:
    """Outcomes of some scenarios of a group; a process that dies is replaced for the rest."""
    outcomes: dict[str, Any] = {}
    while True:
        left = [name for name in timeouts if name not in outcomes]
        if not left:
            return outcomes
        with Group(library, group, half, directory, left) as process:
            found = process.wait(timeouts)
        if not found:
            log = (directory / f"half{half}.log").read_text(errors="replace")
            raise SystemExit(f"{group} of {library} did not start:\n{log[-5000:]}")
        outcomes.update({name: found[name] for name in found if name in timeouts})


def scenarios_by_group() -> dict[str, dict[str, tuple[int, float]]]:
    """For each group its scenarios, each with its number of halves and its timeout."""
    code = (
        "import json, tests.parity.scenarios\n"
        "from tests.parity.kit import GROUPS, SCENARIOS as S\n"
        "print(json.dumps({g: {n: (len(s.halves), s.timeout) for n, s in S.items()"
        " if s.group == g} for g in GROUPS}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    groups: dict[str, dict[str, tuple[int, float]]] = json.loads(found.stdout)
    return groups


def run_all(library: str, wanted: list[str]) -> dict[str, Any]:
    """Outcomes of all scenarios, or of those wanted."""
    os.environ["PARITY_LIBRARY"] = library
    outcomes: dict[str, Any] = {}
    directory = Path(tempfile.mkdtemp(prefix="parity-"))
    try:
        for group, scenarios in scenarios_by_group().items():
            names = {n: s for n, s in scenarios.items() if not wanted or n in wanted}
            place = directory / group
            place.mkdir()
            halves = max((count for count, _ in names.values()), default=0)
            for half in range(halves):
                started = time.monotonic()
                timeouts = {
                    name: timeout
                    for name, (count, timeout) in names.items()
                    # A first half has nothing to tell, unless it did not get through.
                    if half < count and outcomes.get(name, NOTHING)["outcome"] is None
                }
                outcomes.update(run_names(library, group, half, place, timeouts))
                took = time.monotonic() - started
                print(f"{library}: {group}, half {half}: {took:.1f} s", file=sys.stderr)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return outcomes


def main() -> None:
    library, *rest = sys.argv[1:]
    if rest[0] == "--group":
        group, half, directory, *names = rest[1:]
        run_group(library, group, int(half), Path(directory), names)
    out, *wanted = rest
    outcomes = run_all(library, wanted)
    Path(out).write_text(json.dumps(outcomes, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
