"""A catalog row that is damaged is written anew from the journal, and from nothing else."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import Reader
from ray_workflows._client.removal import delete
from ray_workflows._client.repairs import repair
from ray_workflows.exceptions import StorageCorruptError, WorkflowNotFoundError
from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.postgres import PostgresStorage
from tests.contract.damage import IDS, fill, reads, result


class Place:
    """A storage with workflows, and a way to change it behind its back."""

    def __init__(self, open_one: Callable[[], Storage], execute: Callable[[str], Any]) -> None:
        self.open_one = open_one
        self.execute = execute
        storage = open_one()
        storage.open()
        fill(storage)
        storage.close()

    @contextlib.contextmanager
    def storage(self) -> Iterator[Storage]:
        """The storage, as a process sees it that has read nothing yet."""
        storage = self.open_one()
        yield storage
        storage.close()

    def seen(self) -> dict[str, Any]:
        """All that can be read of it, but for how long the journals are."""
        with self.storage() as storage:
            found = {name: result(read) for name, read in reads(storage).items()}
        for value in found.values():
            if isinstance(value, dict):
                value.pop("seq", None)
        return found


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "postgres":
        url = request.getfixturevalue("schema_url")
        return Place(lambda: PostgresStorage(url), request.getfixturevalue("admin").execute)

    def execute(statement: str) -> None:
        with (
            contextlib.closing(sqlite3.connect(tmp_path / "store/workflows.sqlite")) as rival,
            rival,
        ):
            rival.execute(statement)

    return Place(lambda: SqliteStorage(tmp_path / "store"), execute)


DAMAGES = (
    "status = 'RUNNING'",
    "metadata = '{\"a\": 1}'",
    "metadata = 'not ours at all'",
    "submitted_at = 0",
    "holder = 'somebody'",
    "error = 'none'",
    "digest = '2:0123'",
)


@pytest.mark.parametrize(("name", "damage"), list(zip(itertools.cycle(IDS), DAMAGES, strict=False)))
def test_a_damaged_row_is_written_anew(place: Place, name: str, damage: str) -> None:
    before = place.seen()
    place.execute(f"UPDATE catalog SET {damage} WHERE workflow_id = '{name}'")
    damaged = place.seen()
    with place.storage() as storage:
        row = repair(storage, name)
    if damaged == before:
        # A journal that is longer than its row vouches for the status alone.
        return
    assert row is not None
    assert isinstance(damaged[f"status of {name}"], StorageCorruptError)
    assert place.seen() == before
    with place.storage() as storage:
        assert repair(storage, name) is None


def test_what_is_repaired_can_be_deleted(place: Place) -> None:
    place.execute("UPDATE catalog SET holder = 'x' WHERE workflow_id = 'one'")
    with place.storage() as storage:
        with pytest.raises(StorageCorruptError, match="ray-workflows repair"):
            delete(Reader(storage), read_row(storage, "one"))
        repair(storage, "one")
        delete(Reader(storage), read_row(storage, "one"))
        assert storage.read_catalog("one") is None
        assert storage.read_journal("i-one") == []


@pytest.mark.parametrize(
    "statements",
    [
        # Its journal would be another workflow's.
        (
            "DELETE FROM catalog WHERE workflow_id = 'two'",
            "UPDATE catalog SET incarnation = 'i-two' WHERE workflow_id = 'one'",
        ),
        ("UPDATE catalog SET incarnation = 'i-none' WHERE workflow_id = 'one'",),
        ("UPDATE catalog SET seq = seq + 7, status = 'NONE' WHERE workflow_id = 'one'",),
        # The journal is damaged too.
        (
            "UPDATE catalog SET holder = 'x' WHERE workflow_id = 'one'",
            "DELETE FROM journal WHERE incarnation = 'i-one' AND seq = 1",
        ),
    ],
    ids=["another's journal", "no journal", "lost end", "lost beginning"],
)
def test_what_the_journal_does_not_say_is_not_made_up(
    place: Place, statements: tuple[str, ...]
) -> None:
    for statement in statements:
        place.execute(statement)
    with place.storage() as storage:
        journals = [storage.read_journal(f"i-{name}") for name in IDS]
        row = str(result(lambda: storage.read_catalog("one")))
        with pytest.raises(StorageCorruptError):
            repair(storage, "one")
        assert [storage.read_journal(f"i-{name}") for name in IDS] == journals
        assert str(result(lambda: storage.read_catalog("one"))) == row


def test_what_is_not_damaged_is_left_as_it_is(place: Place) -> None:
    with place.storage() as storage:
        rows = [storage.read_catalog(name) for name in IDS]
        assert [repair(storage, name) for name in IDS] == [None] * len(IDS)
        assert [storage.read_catalog(name) for name in IDS] == rows
        with pytest.raises(WorkflowNotFoundError):
            repair(storage, "none")
