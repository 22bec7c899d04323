"""Syncs files and directories to the disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys


def sync(descriptor: int) -> None:
    """Wait until all written bytes of a file are on the disk."""
    if sys.platform == "darwin":
        # On macOS, fsync stops at the disk's cache. Some file systems only have fsync.
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
