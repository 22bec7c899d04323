"""Waiting until files and names are on the disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys


def sync(descriptor: int) -> None:
    """Wait until what was written to a file is on the disk."""
    if sys.platform == "darwin":
        # fsync there stops at the disk's cache. Some file systems know only fsync.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_directory(path: str) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
