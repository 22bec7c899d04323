"""A store with workflows in all states, written by the engine itself and without a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.cli.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.storage.close()


def without_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """None that answers: this process may be connected to one, for tests of other directories."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


class Cli:
    """Runs the command in this process, with ``--storage`` of the store unless told otherwise."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, *args: str, code: int = 0, storage: bool = True, **extra: Any) -> Result:
        from ray_workflows.cli.main import main

        given = ["--storage", str(self.store.directory)] if storage else []
        result = CliRunner().invoke(main, [args[0], *given, *args[1:]], **extra)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    def json(self, *args: str, **extra: Any) -> Any:
        return json.loads(self(args[0], "--json", *args[1:], **extra).stdout)


@pytest.fixture
def cli(store: Store) -> Cli:
    return Cli(store)
