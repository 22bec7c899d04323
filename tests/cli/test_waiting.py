"""Limits on waiting: what never answers ends the command, and says what was waited for."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_workflows.cli import clusters, doctor, limits, waiting
from ray_workflows.cli.waiting import NoAnswerError, within
from tests.cli.conftest import Cli
from tests.cli.store import Store


@pytest.fixture(autouse=True)
def nothing_abandoned() -> Iterator[None]:
    waiting.abandoned.clear()
    yield
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


class Fresh(waiting.Progress):
    """Goes on whenever somebody looks. ``looked``: set after some looks."""

    def __init__(self) -> None:
        self.looks = 0
        self.looked = threading.Event()

    @property
    def at(self) -> float:  # type: ignore[override]
        self.looks += 1
        if self.looks > 10:
            self.looked.set()
        return time.monotonic()


def test_what_goes_on_is_waited_for() -> None:
    """However long it takes all together."""
    progress = Fresh()
    assert within(0.001, "it", progress.looked.wait, progress=progress)


def test_each_value_that_is_taken_is_progress() -> None:
    progress = waiting.Progress()
    for _ in progress.over([1, 2]):
        assert progress.at > 0.0
        progress.at = 0.0
    assert progress.at > 0.0


COMMANDS = {
    "list": ["list"],
    "show": ["show", "w"],
    "output": ["output", "w"],
    "env": ["env", "w"],
    "delete": ["delete", "w"],
    "prune": ["prune", "--older-than", "0s", "--yes"],
    "copy": ["copy", "w"],
    "doctor": ["doctor", "--deep"],
}

#: What hangs, and the commands that need it.
NEEDED = {
    "read_catalog": ["show", "output", "env", "delete", "copy", "doctor"],
    "read_journal": ["show", "output", "env", "copy", "doctor"],
    "list_catalog": ["list", "prune", "doctor"],
    "delete": ["delete", "prune"],
    "stream_blob": ["copy", "doctor"],
    "read_blob": ["output"],
    "now": ["list", "show", "delete", "prune", "copy", "doctor"],
}


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method, names in NEEDED.items() for name in names]
)
def test_no_command_waits_for_ever_for_a_storage(
    store: Store, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    """Each call has its limit, and the error names what was waited for."""
    store.successful("w", bytes(200_000), ago=7200.0)
    never = threading.Event()

    def hang(*args: Any) -> Iterator[Any]:
        never.wait()
        return iter(())

    def hang_at_first(*args: Any) -> Iterator[Any]:
        never.wait()
        yield from ()

    monkeypatch.setattr(clusters, "reaches", lambda: False)
    monkeypatch.setattr(doctor, "attach", no_cluster)
    # The process is this one, and goes on.
    monkeypatch.setattr(waiting, "end_process", lambda code: None)
    monkeypatch.setattr(limits, "CALL_SECONDS", 0.2)
    how = hang_at_first if method == "stream_blob" else hang
    parts = (store.storage.journals, store.storage.blobs, store.storage.leases)
    (part,) = (type(part) for part in parts if hasattr(part, method))
    monkeypatch.setattr(part, method, how)
    command = COMMANDS[name]
    if name == "copy":
        command = [*command, "--to", str(tmp_path / "target")]
    result = cli(*command, code=1)
    never.set()
    said = result.stdout if name == "doctor" else result.stderr
    # A copy waits for both.
    waited = {store.storage.url, f"file://{tmp_path}/target"}
    found = re.search("for the storage (.*), and there was no answer", said)
    assert found is not None
    assert found[1] in waited


def no_cluster(address: str | None) -> None:
    raise clusters.NoClusterError("none")


HANGING = """
import threading
from ray_workflows.cli import stores, waiting
from ray_workflows.cli.main import main
from ray_workflows.storage.sqlite.directory import SqliteDirectory

waiting.STORAGE_SECONDS = stores.STORAGE_SECONDS = 0.1
SqliteDirectory.open_existing = lambda self: threading.Event().wait()
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
