"""Where a worker in a container unpacks code: nowhere that somebody else can write to."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import zipfile
from pathlib import Path

import pytest

from ray_workflows._environment.code import images
from ray_workflows._ray import private

URI = "gcs://ray_workflows_images.zip"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mine.py", "NAME = 'mine'\n")
    monkeypatch.setattr(private, "get_key", {URI: buffer.getvalue()}.get)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def planted(top: Path) -> Path:
    """Code of somebody else's where ours is looked for."""
    code = top / private.UNPACKED / "ray_workflows_images"
    code.mkdir(parents=True)
    (code / "mine.py").write_text("NAME = 'theirs'\n")
    return top


def name_in(directory: str) -> str:
    return Path(directory, "mine.py").read_text()


def test_processes_of_a_user_share_what_is_unpacked(temporary: Path) -> None:
    first = images.unpacked(URI)
    assert images.unpacked(URI) == first
    assert name_in(first) == "NAME = 'mine'\n"
    (top,) = temporary.iterdir()
    assert stat.S_IMODE(top.stat().st_mode) == 0o700


def test_a_directory_that_others_can_write_to(temporary: Path) -> None:
    planted(temporary / f"ray_workflows-{os.geteuid()}").chmod(0o777)
    assert name_in(images.unpacked(URI)) == "NAME = 'mine'\n"


def test_a_link(temporary: Path) -> None:
    theirs = planted(temporary / "theirs")
    (temporary / f"ray_workflows-{os.geteuid()}").symlink_to(theirs)
    assert name_in(images.unpacked(URI)) == "NAME = 'mine'\n"


def test_a_directory_of_somebody_else(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(temporary / f"ray_workflows-{os.geteuid()}").chmod(0o755)
    about = os.lstat

    def others(path: str) -> os.stat_result:
        fields = list(about(path))
        fields[stat.ST_UID] += 1
        return os.stat_result(fields)

    monkeypatch.setattr(os, "lstat", others)
    assert name_in(images.unpacked(URI)) == "NAME = 'mine'\n"
