"""A small disk of our own that can be full or read-only. It takes a right to mount."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

#: As root, or as somebody who may become it without being asked, as in CI.
PREFIXES: tuple[Sequence[str], ...] = ((), ("sudo", "-n"))


class SmallDisk:
    """What is mounted."""

    def __init__(self, path: Path, prefix: Sequence[str]) -> None:
        self.path = path
        self.prefix = prefix
        self.filler = path / "filler"

    def remount(self, options: str) -> None:
        """Change how it is mounted; whatever is open on it."""
        subprocess.run([*self.prefix, "mount", "-o", f"remount,{options}", self.path], check=True)

    def fill(self) -> None:
        """Leave no space."""
        with self.filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give the space back."""
        self.filler.unlink()


def ext4_image(path: Path, megabytes: int) -> Path:
    """A file that can be mounted as an empty ext4."""
    image = path.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(megabytes * 1024 * 1024)
    # Without a journal it has room in so little.
    command = ["mkfs.ext4", "-q", "-O", "^has_journal", image]
    subprocess.run(command, check=True, capture_output=True)
    return image


@contextmanager
def small_disk(path: Path, megabytes: int = 8, kind: str = "tmpfs") -> Iterator[SmallDisk]:
    """Mount one at a directory, which is created. Where that is not allowed, the test is skipped,
    but never in CI.

    ``kind``: tmpfs; ext4, which like other disks takes direct writes; ramfs, which refuses them and
    has no limit.
    """
    path.mkdir()
    source, options = kind, "rw"
    if kind == "tmpfs":
        options = f"size={megabytes}m"
    elif kind == "ext4":
        source, options = str(ext4_image(path, megabytes)), "loop"
    command = ["mount", "-t", kind, "-o", options, source, path]
    for prefix in PREFIXES:
        try:
            done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            break
    else:
        assert "CI" not in os.environ, f"a {kind} can't be mounted: {done.stderr}"
        pytest.skip(f"a {kind} can't be mounted here: {done.stderr.strip()}")
    try:
        subprocess.run([*prefix, "chmod", "777", path], check=True)
        yield SmallDisk(path, prefix)
    finally:
        # Lazily: what a killed process had open goes with it.
        subprocess.run([*prefix, "umount", "--lazy", path], check=True)
