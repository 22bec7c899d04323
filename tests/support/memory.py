"""How much memory processes have of their own: what is mapped or shared is not counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Soon enough to see a copy of some hundred megabytes, which takes longer to make.
SAMPLE_SECONDS = 0.01


def own_bytes(pid: int) -> int:
    """The anonymous memory of a process; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Peaks:
    """The most that each process had while it was watched, by process id."""

    def __init__(self, pids: Callable[[], set[int]]) -> None:
        self.pids = pids
        self.by_pid: dict[int, int] = {}
        #: The most that all had at one time.
        self.together = 0
        self.ended = threading.Event()

    def watch(self) -> None:
        """Sample until it is ended."""
        while not self.ended.wait(SAMPLE_SECONDS):
            found = {pid: own_bytes(pid) for pid in self.pids()}
            for pid, size in found.items():
                self.by_pid[pid] = max(self.by_pid.get(pid, 0), size)
            self.together = max(self.together, sum(found.values()))

    @property
    def largest(self) -> int:
        """The most that any process had."""
        return max(self.by_pid.values(), default=0)


@contextmanager
def watched(pids: Callable[[], set[int]]) -> Iterator[Peaks]:
    """Watch the memory of processes from this one, whose interpreter they do not share."""
    peaks = Peaks(pids)
    thread = threading.Thread(target=peaks.watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        peaks.ended.set()
        thread.join()
