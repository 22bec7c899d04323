"""Directories of tests directly below the temporary one, which go with the process that made them.

Their names have its number: what a process that was killed has left is removed by the next one.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PREFIX = "rw-"
NAME = re.compile(rf"{PREFIX}([0-9]+)-\w+")

#: Those of this process.
made: list[str] = []


def short_directory() -> str:
    """A new directory with a short path: those of sockets are limited to 107 bytes."""
    path = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
    made.append(path)
    return path


def remove_directories() -> None:
    """Remove those of this process. What a dying process still writes comes too late for the first
    try: the rest is tried again later, and by the next run of the tests."""
    for path in list(made):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.exists(path):
            made.remove(path)


def remove_left(before: Callable[[Path], None] = lambda path: None) -> None:
    """Remove those of this user's processes that are no more; ``before`` is called with each."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        found = NAME.fullmatch(path.name)
        try:
            left = found and path.stat().st_uid == os.getuid() and not is_there(int(found[1]))
        except OSError:
            continue  # Somebody else removed it.
        if left:
            before(path)
            shutil.rmtree(path, ignore_errors=True)


def is_there(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
