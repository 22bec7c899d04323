"""What tests leave below the temporary directory goes, also that of a test run that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import directories
from tests.support.directories import remove_directories, remove_left, short_directory
from tests.support.disks import small_disk, unmount_left

ROOT = Path(__file__).parents[1]

#: Makes a directory in the place of a test run, says so, and waits to be killed.
RUN = """
from tests.support.directories import short_directory
print(short_directory(), flush=True)
input()
"""
DISK = """
from pathlib import Path
from tests.support.disks import small_disk
with small_disk(Path({path!r})):
    print("mounted", flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "t"
    place.mkdir()
    monkeypatch.setattr(directories.tempfile, "tempdir", str(place))
    monkeypatch.setattr(directories, "made", [])
    return place


def begin(code: str, place: Path) -> tuple[subprocess.Popen[str], str]:
    """A process of a test run, and the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    with process:
        process.send_signal(signal.SIGKILL)


def test_directories_of_a_run_that_was_killed_are_removed(place: Path) -> None:
    process, path = begin(RUN, place)
    Path(path, "file").touch()
    remove_left()
    assert os.path.exists(path)
    kill(process)
    mine, other = short_directory(), place / "rw-of-somebody"
    other.mkdir()
    remove_left()
    assert not os.path.exists(path)
    assert os.path.exists(mine)
    assert other.exists()


def test_directories_are_removed_at_the_end() -> None:
    path = short_directory()
    Path(path, "file").touch()
    remove_directories()
    assert not os.path.exists(path)


def test_disks_of_a_run_that_was_killed_are_unmounted(place: Path) -> None:
    with small_disk(place / "probe"):
        """Skips the test where nothing can be mounted."""
    path = place / "disk"
    process, said = begin(DISK.format(path=str(path)), place)
    assert said == "mounted"
    kill(process)
    assert os.path.ismount(path)
    remove_left(before=unmount_left)
    assert not os.path.ismount(path)
