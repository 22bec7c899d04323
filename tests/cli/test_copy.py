"""``copy``, and ``--blobs`` of all commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_workflows.storage import SqliteStorage
from ray_workflows.storage.combined import combine
from ray_workflows.testing.builders import list_ids
from tests.cli.conftest import Cli
from tests.cli.store import Store


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


def stored(directory: Path) -> list[str]:
    storage = SqliteStorage(directory)
    try:
        return sorted(list_ids(storage))
    finally:
        storage.close()


def test_one_and_all(store: Store, cli: Cli, tmp_path: Path) -> None:
    store.successful("a", 1)
    store.failed("b\u202e")
    to = str(tmp_path / "to")
    result = cli("copy", "a", "--to", to)
    assert result.stdout == "a\n"
    assert f"1 workflow copied from {store.storage.url} to file://{to}." in result.stderr
    assert stored(tmp_path / "to") == ["a"]
    assert cli("copy", "--all", "--to", to).stdout == "b\\u202e\n"
    assert cli.json("copy", "--all", "--to", to) == []
    assert cli("output", "a", "--storage", to, storage=False).stdout == "1\n"


def test_some_are_refused(store: Store, cli: Cli, tmp_path: Path) -> None:
    store.running("running")
    store.successful("done", 1)
    store.hold()
    result = cli("copy", "--all", "--to", str(tmp_path / "to"), code=1)
    assert result.stdout == "done\n"
    assert f"ray-workflows cancel --storage {store.directory} running" in result.stderr
    assert "1 workflow not copied" in result.stderr
    assert (
        "'running' is running or pending"
        in cli("copy", "running", "--to", str(tmp_path / "to"), code=1).stderr
    )


def test_bad_use(store: Store, cli: Cli, tmp_path: Path) -> None:
    to = tmp_path / "to"
    assert "Name a workflow, or say --all" in cli("copy", "--to", str(to), code=2).stderr
    assert "or say" in cli("copy", "w", "--all", "--to", str(to), code=2).stderr
    assert "--to" in cli("copy", "--all", code=2).stderr
    assert "no workflow 'w'" in cli("copy", "w", "--to", str(to), code=1).stderr
    assert "copied from" in cli("copy", "--all", "--to", str(store.directory), code=1).stderr
    assert "not supported" in cli("copy", "--all", "--to", "gopher://x", code=1).stderr
    assert not to.exists()


# -- values elsewhere --------------------------------------------------------------------------


@pytest.fixture
def apart(store: Store, tmp_path: Path) -> str:
    """The store's values are in a place of their own; where."""
    values = SqliteStorage(tmp_path / "values")
    combined = combine(store.storage, values)
    combined.open()
    store.storage, sqlite = combined, store.storage  # type: ignore[assignment]
    store.successful("w", "x" * 100_000)
    store.storage = sqlite
    values.close()
    return str(tmp_path / "values")


def test_values_elsewhere(store: Store, cli: Cli, apart: str) -> None:
    assert cli("output", "w", "--blobs", apart).stdout == repr("x" * 100_000) + "\n"
    assert "missing" in cli("output", "w", code=1).stderr
    assert cli("show", "w", "--blobs", apart).exit_code == 0
    assert cli("list", "--blobs", apart).stdout.startswith("w\t")
    error = cli("list", "--blobs", apart + "-other", code=1).stderr
    assert "is not a storage" in error


def test_values_elsewhere_by_the_environment(
    store: Store, cli: Cli, apart: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", str(store.directory))
    monkeypatch.setenv("RAY_WORKFLOW_BLOBS", apart)
    assert cli("output", "w", storage=False).stdout == repr("x" * 100_000) + "\n"
    # The variable is about the storage of the environment, not about the one that is named.
    assert "missing" in cli("output", "w", code=1).stderr


def test_values_elsewhere_are_deleted_and_copied(
    store: Store, cli: Cli, apart: str, tmp_path: Path
) -> None:
    to, values = str(tmp_path / "to"), str(tmp_path / "to-values")
    cli("copy", "w", "--blobs", apart, "--to", to, "--to-blobs", values)
    assert list(Path(values, "blobs").glob("*/*"))
    copied = cli("output", "w", "--storage", to, "--blobs", values, storage=False)
    assert copied.stdout == repr("x" * 100_000) + "\n"
    assert len(list(Path(apart, "blobs").glob("i-*/*"))) == 1
    cli("delete", "w", "--blobs", apart)
    assert not list(Path(apart, "blobs").glob("i-*/*"))


def test_remedies_name_the_place_of_the_values(store: Store, cli: Cli, apart: str) -> None:
    store.running("running")
    store.hold()
    error = cli("delete", "running", "--blobs", apart, code=1).stderr
    assert f"cancel --storage {store.directory} --blobs {apart} running" in error
