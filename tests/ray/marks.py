"""Side effects on disk: how often did a task really run, and when may it go on?"""

from __future__ import annotations

import os
import time
from pathlib import Path


class Marks:
    """Counts executions by name; usable in any process."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        os.makedirs(directory, exist_ok=True)

    def add(self, name: str) -> None:
        path = os.path.join(self.directory, name)
        fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            os.write(fd, f"{os.getpid()}\n".encode())
        finally:
            os.close(fd)

    def count(self, name: str) -> int:
        return len(self.pids(name))

    def counts(self) -> dict[str, int]:
        return {name: self.count(name) for name in sorted(os.listdir(self.directory))}

    def pids(self, name: str) -> list[int]:
        """Processes that ran it, in order."""
        try:
            return [int(line) for line in Path(self.directory, name).read_text().split()]
        except FileNotFoundError:
            return []

    def wait_for(self, name: str, count: int = 1, seconds: float = 120.0) -> None:
        """Wait until it has run so often. Files are all that other processes can tell us by."""
        wait_until(lambda: self.count(name) >= count, f"{count} x {name}", seconds)


class Gate:
    """Holds tasks back until the test opens it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> None:
        Path(self.path).touch()

    def is_open(self) -> bool:
        return os.path.exists(self.path)

    def wait(self) -> None:
        wait_until(self.is_open, f"gate {self.path}", 240.0)


def wait_until(condition, what: str, seconds: float = 120.0) -> None:
    """Poll what can't be awaited: the state of other processes."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)
