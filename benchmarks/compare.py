"""Every workload with every peer, side by side in one run, in turn.

Each peer is a process that lives as long as the run. In each round all peers that can do the
workload do it once, one after the other, so that what else the machine does falls on all of them.
Compared are speeds, as ratios within a round; told are the medians over the rounds. Every result is
checked.

With large arrays the state of the machine's memory decides, so it is the same for all: before each
turn as much memory as it takes is touched and left free (`touch.py`), and the round before the
first is as large as the others, so that each cluster's object store has been used once.

    python benchmarks/compare.py [--rounds 5] [--only fan_out,chain] [--peers ours,plain_ray]
    python benchmarks/compare.py --quick      # does the benchmark itself work?
    python benchmarks/compare.py --draw docs/benchmarks.json --markdown docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from report import write_page, write_report  # noqa: E402
from workloads import DBOS, DISK, OLD, OURS, PLAIN, WORKLOADS, Workload  # noqa: E402

from tests.ray.processes import LOOPBACK, descendants, is_running  # noqa: E402

#: Where a peer's Python is, unless a variable says otherwise.
PYTHONS = {
    OURS: ("BENCH_PYTHON", sys.executable),
    PLAIN: ("BENCH_PYTHON", sys.executable),
    OLD: ("PARITY_OLD_PYTHON", str(ROOT / ".venv-parity/bin/python")),
    DBOS: ("BENCH_DBOS_PYTHON", str(ROOT / ".venv-dbos/bin/python")),
    DISK: ("BENCH_PYTHON", sys.executable),
}

#: Time for a peer to start its cluster, in seconds.
START_SECONDS = 90.0


class PeerLost(Exception):
    """The process of a peer is gone, or is taken to hang."""


class Peer:
    """A process of `peers`. Used as a context, it leaves nothing running and no files."""

    def __init__(self, name: str, directory: Path, cpus: int) -> None:
        variable, default = PYTHONS[name]
        self.name = name
        self.directory = directory / name
        self.directory.mkdir()
        # Short, because the paths of sockets are limited to 107 bytes.
        self.ray_directory = tempfile.mkdtemp(prefix="rw-")
        self.log = (self.directory / "log").open("wb")
        paths = [HERE] if name in (OLD, DBOS) else [HERE, ROOT / "src"]
        self.process = subprocess.Popen(
            [os.environ.get(variable, default), "-m", f"peers.{name}"],
            cwd=self.directory,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "PYTHONWARNINGS": "ignore",
                "RAY_TMPDIR": self.ray_directory,
                "BENCH_CPUS": str(cpus),
                **LOOPBACK,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        self.about: dict[str, Any] = {}

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next line; raise PeerLost if none comes."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise PeerLost(f"no answer within {seconds:.0f} s") from None
        if not line:
            said = (self.directory / "log").read_text(errors="replace")[-2000:]
            raise PeerLost(f"its process ended ({self.process.wait()}): {said}")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, workload: Workload, size: int) -> dict[str, Any]:
        """One round. Raise PeerLost, or AssertionError if it did not do what was asked."""
        assert self.process.stdin is not None
        request = json.dumps({"workload": workload.name, "size": size})
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise PeerLost(str(error)) from None
        answer = self.answer(workload.seconds)
        assert "error" not in answer, answer["error"]
        expected = workload.expected(size)
        assert answer["result"] == expected, f"result {answer['result']!r}, not {expected!r}"
        return answer

    def close(self) -> None:
        """End the process and all that it started."""
        started = descendants(self.process.pid)
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(30)
        except (OSError, subprocess.TimeoutExpired):
            started |= descendants(self.process.pid)
            self.process.kill()
            self.process.wait()
        for pid in started:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        self.log.close()
        shutil.rmtree(self.ray_directory, ignore_errors=True)


class Comparison:
    """The peers that are there, why the others are not, and what was measured."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.peers: dict[str, Peer] = {}
        self.missing: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        #: For each workload and peer its size, its rounds, and what went wrong.
        self.measured: dict[str, dict[str, dict[str, Any]]] = {}

    def start(self, names: list[str]) -> None:
        for name in names:
            try:
                peer = self.peers[name] = Peer(name, self.directory, self.options.cpus)
                peer.about = peer.answer(START_SECONDS)
                self.versions[name] = peer.about["versions"]
            except (OSError, PeerLost) as error:
                self.lose(name, f"did not start: {error}")

    def lose(self, name: str, reason: str) -> None:
        say(f"{name}: {reason}")
        self.missing[name] = reason
        peer = self.peers.pop(name, None)
        if peer is not None:
            peer.close()

    def close(self, but: Collection[str] = ()) -> None:
        """End those that are not needed any more: their clusters take memory."""
        for name in list(self.peers):
            if name not in but:
                self.peers.pop(name).close()

    def measure(self, workload: Workload) -> None:
        """All rounds of a workload, each peer in turn; another one begins each round."""
        quick = self.options.quick
        sizes = {
            name: min(size, workload.quick) if quick else size
            for name, size in workload.sizes.items()
            if name in self.peers
        }
        found = self.measured[workload.name] = {
            name: {"size": size, "rounds": []} for name, size in sizes.items()
        }
        order = list(sizes)
        if not quick:
            # Workers start, functions arrive, the code is in caches.
            for name in order:
                size = sizes[name] if workload.memory else min(sizes[name], workload.quick)
                self.run_one(workload, name, size, found)
                found[name]["rounds"].clear()
        for number in range(1 if quick else min(self.options.rounds, workload.rounds)):
            turn = number % max(1, len(order))
            for name in order[turn:] + order[:turn]:
                self.run_one(workload, name, sizes[name], found)
        for name, record in found.items():
            seconds = [done["seconds"] for done in record["rounds"]]
            said = f"{statistics.median(seconds):.4f} s" if seconds else record.get("error")
            say(f"{workload.name:16} {name:13} {record['size']:>8} {said}")

    def run_one(
        self, workload: Workload, name: str, size: int, found: dict[str, dict[str, Any]]
    ) -> None:
        record = found[name]
        if "error" in record:
            return
        if name not in self.peers:
            record["error"] = self.missing[name]
            return
        touch(workload.memory * size)
        try:
            answer = self.peers[name].run(workload, size)
        except PeerLost as error:
            record["error"] = f"{workload.name}: {error}"
            self.lose(name, record["error"])
        except AssertionError as error:
            record["error"] = str(error)
        else:
            record["rounds"].append(
                {"seconds": answer["seconds"], "details": answer.get("details", {})}
            )


def touch(size: int) -> None:
    """Touch this many bytes of memory, so that the host has given them to this machine."""
    if size:
        subprocess.run([sys.executable, str(HERE / "touch.py"), str(size)], check=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def file_system(path: Path) -> str:
    """The type of the file system of a directory."""
    best, kind = -1, "unknown"
    real = os.path.realpath(path)
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, found = line.split(" ")[:3]
        inside = point == "/" or real == point or real.startswith(point + "/")
        if inside and len(point) >= best:
            best, kind = len(point), found
    return kind


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine(directory: Path, cpus: int) -> dict[str, Any]:
    """What it was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "slots": cpus,
        "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "file_system": file_system(directory),
        "load_before": round(os.getloadavg()[0], 1),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each workload (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one small round of each")
    parser.add_argument("--only", help="workloads, separated by commas")
    parser.add_argument("--peers", help="peers, separated by commas")
    parser.add_argument("--cpus", type=int, default=2, help="of each Ray cluster (default: 2)")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--commit", default="", help="revision to note in the report")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / "build", help="for storages; on a real disk"
    )
    parser.add_argument("--draw", type=Path, help="measure nothing; the page of such a file")
    return parser.parse_args()


def chosen(text: str | None, known: list[str], default: list[str], what: str) -> list[str]:
    if text is None:
        return default
    names = text.split(",")
    unknown = sorted(set(names) - set(known))
    if unknown:
        sys.exit(f"There is no {what} {', '.join(unknown)}. There are: {', '.join(known)}")
    return names


def main() -> None:
    options = parse()
    every = {workload.name: workload for workload in WORKLOADS}
    if options.draw:
        outcome = json.loads(options.draw.read_text())
        known = [each for name, each in every.items() if name in outcome["measured"]]
        write_page(options.markdown or options.draw.with_suffix(".md"), outcome, known)
        return
    usual = [workload.name for workload in WORKLOADS]
    if options.quick:
        usual = [name for name in usual if not every[name].scaling or name == "scale_100"]
    workloads = [every[name] for name in chosen(options.only, list(every), usual, "workload")]
    peers = chosen(options.peers, list(PYTHONS), list(PYTHONS), "peer")
    options.directory.mkdir(parents=True, exist_ok=True)
    if file_system(options.directory) in ("tmpfs", "ramfs"):
        sys.exit(f"{options.directory} is in memory: what is synced there says nothing.")
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as directory:
        about = machine(Path(directory), options.cpus)
        comparison = Comparison(options, Path(directory))
        try:
            comparison.start([p for p in peers if any(p in w.sizes for w in workloads)])
            for index, workload in enumerate(workloads):
                comparison.measure(workload)
                comparison.close(but={p for later in workloads[index + 1 :] for p in later.sizes})
        finally:
            comparison.close()
    outcome = {
        "machine": about,
        "commit": options.commit,
        "command": shlex.join(["python", "benchmarks/compare.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "minutes": round((time.time() - started) / 60, 1),
        "rounds": 1 if options.quick else options.rounds,
        "quick": options.quick,
        "versions": comparison.versions,
        "missing": {
            **{p: "not asked for" for p in PYTHONS if p not in peers},
            **comparison.missing,
        },
        "measured": comparison.measured,
    }
    text = write_report(outcome, workloads)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    if options.markdown:
        write_page(options.markdown, outcome, workloads)
    wrong = [
        f"{name} of {workload}: {record['error']}"
        for workload, records in comparison.measured.items()
        for name, record in records.items()
        if "error" in record
    ]
    if wrong:
        sys.exit("\n".join(["What went wrong:", *wrong]))


if __name__ == "__main__":
    main()
