"""Limits on waiting: what never answers ends the command, and says what was waited for."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_workflows.cli import waiting
from ray_workflows.cli.waiting import NoAnswerError, within


@pytest.fixture(autouse=True)
def nothing_abandoned() -> None:
    waiting.abandoned.clear()


def test_what_is_called_returns_and_raises() -> None:
    assert within(10.0, "it", max, 1, 2) == 2
    with pytest.raises(KeyError):
        within(10.0, "it", {}.__getitem__, "k")
    assert waiting.abandoned == []


def test_what_never_returns_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    never = threading.Event()
    with pytest.raises(NoAnswerError, match="for the moon, and there was no answer"):
        within(0.01, "the moon", never.wait)
    assert len(waiting.abandoned) == 1
    never.set()


def test_it_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = threading.Event()
    monkeypatch.setattr(waiting, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(waiting.click, "echo", lambda text, err: said.set() or print(text))
    assert within(60.0, "the moon", said.wait)
    assert capsys.readouterr().out == "Waiting for the moon ...\n"


HANGING = """
import threading
from ray_workflows.cli import stores, waiting
from ray_workflows.cli.main import main
from ray_workflows.storage import SqliteStorage

waiting.STORAGE_SECONDS = stores.STORAGE_SECONDS = 0.1
SqliteStorage.open_existing = lambda self: threading.Event().wait()
# What Ray does at the end waits for what does not return.
import atexit
atexit.register(threading.Event().wait)
main(["list", "--storage", "."])
"""


def test_a_command_ends_though_its_storage_hangs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"for the storage file://{tmp_path}" in done.stderr
