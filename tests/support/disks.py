"""A small disk of our own that can be full or read-only. It takes a right to mount."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.directories import short_directory

#: As root, or as somebody who may become it without being asked, as in CI.
PREFIXES: tuple[Sequence[str], ...] = ((), ("sudo", "-n"))

#: Where the programs of administrators are, which need not be on the path of others.
ADMINISTRATION = ("/usr/local/sbin", "/usr/sbin", "/sbin")


#: A note of what is mounted, for those who come when this process was killed.
MOUNTED = "mounted"


class SmallDisk:
    """What is mounted."""

    def __init__(self, path: Path, prefix: Sequence[str]) -> None:
        self.path = path
        self.prefix = prefix
        self.filler = path / "filler"

    def remount(self, options: str) -> None:
        """Change how it is mounted; whatever is open on it."""
        subprocess.run(
            [*self.prefix, program("mount"), "-o", f"remount,{options}", self.path], check=True
        )

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
    command = [program("mkfs.ext4"), "-q", "-O", "^has_journal", image]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return image


def program(name: str) -> str:
    """A program by its path, also one that only administrators have on theirs."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *ADMINISTRATION))
    return shutil.which(name, path=path) or name


def mount(path: Path, megabytes: int, kind: str) -> Sequence[str]:
    """Mount a disk; what else has to be put before commands about it.

    Raises:
        OSError, subprocess.CalledProcessError: it can't be made, or nobody here may mount it.
    """
    source, options = kind, "rw"
    if kind == "tmpfs":
        options = f"size={megabytes}m"
    elif kind == "ext4":
        source, options = str(ext4_image(path, megabytes)), "loop"
    command = [program("mount"), "-t", kind, "-o", options, source, str(path)]
    refused: list[Exception] = []
    for prefix in PREFIXES:
        try:
            subprocess.run([*prefix, *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            refused.append(error)
        else:
            return prefix
    raise refused[0]


@contextmanager
def small_disk(path: Path, megabytes: int = 8, kind: str = "tmpfs") -> Iterator[SmallDisk]:
    """Mount one at a directory, which is created. Where that is not allowed, the test is skipped,
    but never in CI.

    ``kind``: tmpfs; ext4, which like other disks takes direct writes; ramfs, which refuses them and
    has no limit.
    """
    path.mkdir()
    try:
        prefix = mount(path, megabytes, kind)
    except (OSError, subprocess.CalledProcessError) as error:
        why = f"a {kind} can't be mounted here: {error} {getattr(error, 'stderr', '')}".strip()
        assert "CI" not in os.environ, why
        pytest.skip(why)
    note = Path(short_directory(), MOUNTED)
    note.write_text(str(path))
    try:
        subprocess.run([*prefix, "chmod", "777", path], check=True)
        yield SmallDisk(path, prefix)
    finally:
        # Lazily: what a killed process had open goes with it.
        subprocess.run([*prefix, program("umount"), "--lazy", path], check=True)
        note.unlink()


def unmount_left(directory: Path) -> None:
    """Unmount the disk that a note in a directory names: its test was killed."""
    with suppress(OSError):
        path = (directory / MOUNTED).read_text()
        for prefix in PREFIXES:
            command = [*prefix, program("umount"), "--lazy", path]
            if os.path.ismount(path):
                subprocess.run(command, capture_output=True, check=False)
