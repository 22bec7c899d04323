"""Deleting a long journal from `SqliteStorage` keeps nobody waiting, and can be interrupted."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows.storage import SqliteStorage
from ray_workflows.storage.sqlite import journals as sqlite
from ray_workflows.testing.builders import OK, STALE, fill, incarnation_of, make_append

#: Entries of the journal that is deleted, and of one transaction.
ENTRIES, SLICE = 95, 10

W = incarnation_of("w")


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteStorage]:
    monkeypatch.setattr(sqlite, "DELETE_ENTRIES", SLICE)
    storage = SqliteStorage(tmp_path)
    storage.open()
    fill(storage, "w", ENTRIES)
    fill(storage, "other", 1)
    yield storage
    storage.close()


def between(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Do something between two transactions of a deletion."""
    monkeypatch.setattr(sqlite, "let_others_in", action)


def entries_left(storage: SqliteStorage) -> int:
    with contextlib.closing(sqlite3.connect(storage.journals.home.writer.path)) as connection:
        query = "SELECT count(*) FROM journal WHERE incarnation = ?"
        found: int = connection.execute(query, (W,)).fetchone()[0]
        return found


def test_commits_get_in_between(storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    def commit() -> None:
        left.append(entries_left(storage))
        # From another thread, as that of the loop: it must not find the connection taken.
        outcomes: list[object] = []
        append = make_append("other", len(left))
        thread = threading.Thread(target=lambda: outcomes.extend(storage.commit([append])))
        thread.start()
        thread.join(30.0)
        assert outcomes == [OK]
        assert storage.read_catalog("w") is None

    between(monkeypatch, commit)
    assert storage.delete("w", W, ENTRIES) is OK
    assert left == list(range(ENTRIES - SLICE, 0, -SLICE))
    assert storage.read_journal(W) == []
    fill(storage, "w", 3)
    assert len(storage.read_journal(W)) == 3


def test_slices_are_bounded_in_bytes(
    storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "DELETE_BYTES", 15)
    left: list[int] = []
    between(monkeypatch, lambda: left.append(entries_left(storage)))
    assert storage.delete("w", W, ENTRIES) is OK
    # An entry has seven or eight bytes; one alone goes whatever it has.
    assert len(left) in range(ENTRIES // 2, ENTRIES)
    assert entries_left(storage) == 0


def test_an_interrupted_deletion_is_finished_by_the_sweep(
    storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        between(patch, crash)
        with pytest.raises(KeyboardInterrupt):
            storage.delete("w", W, ENTRIES)
    assert entries_left(storage) == ENTRIES - SLICE
    assert [row.workflow_id for row in storage.list_catalog(CatalogQuery()).rows] == ["other"]
    # The id is free; the incarnation is not, until all of it is gone.
    assert storage.commit([make_append("w", 0)]) == [STALE]
    fill(storage, "w", 1, incarnation="i-again")
    assert storage.sweep(3600.0) == 1
    assert entries_left(storage) == 0
    assert storage.sweep(3600.0) == 0
    assert storage.read_catalog("w") is not None


def test_the_loop_does_not_wait_for_whoever_writes(storage: SqliteStorage) -> None:
    """A small commit is made on its thread only if the connection is free."""
    assert storage.commits_at_once
    inside, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with storage.journals.home.writer.transaction():
            inside.set()
            assert go_on.wait(30.0)

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(30.0)
    assert not storage.commits_at_once
    go_on.set()
    thread.join()
    assert storage.commits_at_once
