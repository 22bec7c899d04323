"""Which storage a command takes, and that looking at one creates nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, without_cluster
from tests.cli.store import Store

READS = [["list"], ["show", "w"], ["output", "w"]]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of others may run on this machine; nothing listens on this port."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


@pytest.mark.parametrize("command", READS)
def test_there_is_none(tmp_path: Path, cli: Cli, command: list[str]) -> None:
    where = tmp_path / "no" / "such"
    result = cli(*command, "--storage", str(where), storage=False, code=1)
    assert f"Error: {where} is not a storage of workflows: it does not exist." in result.stderr
    assert "Nothing was created" in result.stderr
    assert result.stdout == ""
    assert not where.parent.exists()


@pytest.mark.parametrize("command", [["delete", "w"], ["prune", "--older-than", "1d", "--yes"]])
def test_there_is_none_to_change(tmp_path: Path, cli: Cli, command: list[str]) -> None:
    where = tmp_path / "no" / "such"
    result = cli(*command, "--storage", str(where), storage=False, code=1)
    assert "does not exist" in result.stderr
    assert not where.parent.exists()


def test_the_variable_and_the_default(
    store: Store, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cluster(monkeypatch)
    store.successful("w")
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", store.storage.url)
    assert cli("list", storage=False).stdout.startswith("w\t")
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", str(tmp_path / "none"))
    assert "in $RAY_WORKFLOW_STORAGE" in cli("list", storage=False, code=1).stderr
    monkeypatch.delenv("RAY_WORKFLOW_STORAGE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert "the default, because" in cli("list", storage=False, code=1).stderr
    assert not (tmp_path / "home").exists()


def test_a_url(store: Store, cli: Cli) -> None:
    store.successful("w")
    assert cli("list", "--storage", store.storage.url, storage=False).stdout.startswith("w\t")
    for bad in ("s3://bucket", "", "file://server/x"):
        assert "Error: " in cli("list", "--storage", bad, storage=False, code=1).stderr


def test_a_coordinator_may_be_writing(store: Store, cli: Cli) -> None:
    """A write transaction is open all the while, as in the midst of a commit."""
    store.successful("w")
    with store.storage.journals.home.writer.transaction() as connection:
        connection.execute("DELETE FROM catalog")
        assert cli("list").stdout.startswith("w\t")
        assert cli("output", "w").stdout == "42\n"


def test_reading_leaves_the_files_alone(store: Store, cli: Cli) -> None:
    store.successful("w")
    store.storage.close()
    before = {p.name: p.read_bytes() for p in store.directory.iterdir() if p.is_file()}
    for command in READS:
        cli(*command)
    after = {p.name: p.read_bytes() for p in store.directory.iterdir() if p.is_file()}
    assert {n: b for n, b in after.items() if not n.endswith(("-wal", "-shm"))} == before


@pytest.mark.parametrize("command", [["show"], ["output"], ["delete"]])
def test_unknown_and_impossible_ids(cli: Cli, command: list[str]) -> None:
    error = cli(*command, "nobody", code=1).stderr
    assert error.startswith("Error: There is no workflow 'nobody' in file://")
    assert "ray-workflows list" in error
    assert "empty" in cli(*command, "", code=1).stderr
    assert "512" in cli(*command, "x" * 513, code=1).stderr
    assert "control character" in cli(*command, "a\nb", code=1).stderr
    assert "surrogate" in cli(*command, os.fsdecode(b"\xff"), code=1).stderr
    missing = cli(*command, code=2).stderr
    assert "Missing argument" in missing or "Name a workflow" in missing


@pytest.mark.parametrize(
    "options",
    [["--local", "--no-wait"], ["--local", "--address", "x:1"], ["--no-wait", "--json"]],
)
def test_contradicting_options(cli: Cli, options: list[str]) -> None:
    error = cli("resume", "w", *options, code=2).stderr
    assert "leave" in error or "choose" in error
