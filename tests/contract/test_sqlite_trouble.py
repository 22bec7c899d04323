"""`SqliteStorage` whose files are deleted, replaced, locked or damaged, or whose disk is full."""

from __future__ import annotations

import os
import re
import resource

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows.exceptions import (
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
)
from ray_workflows.storage import SqliteStorage
from ray_workflows.storage.sqlite import connection as database
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    incarnation_of,
    list_ids,
    make_append,
    make_holder,
    state,
)
from tests.support.children import child, receive
from tests.support.files import tree


@pytest.fixture
def storage(tmp_path):
    storage = SqliteStorage(tmp_path / "storage")
    storage.open()
    yield storage
    storage.close()


# -- trouble in use ---------------------------------------------------------------------------


def test_deleted_database_is_noticed(storage):
    fill(storage, "w")
    os.unlink(storage.journals.home.writer.path)
    for call in (
        lambda: storage.commit([make_append("w", 1)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.commit([make_append("w", 1)]),
        lambda: storage.read_journal(incarnation_of("w")),
    ):
        with pytest.raises(StorageUnavailableError, match=r"workflows\.sqlite"):
            call()
    assert not os.path.exists(storage.journals.home.writer.path)


def test_database_deleted_during_a_commit_is_noticed(storage):
    fill(storage, "w")

    def commit_and_lose():
        with storage.journals.home.writer.transaction() as connection:
            connection.execute("DELETE FROM holders")
            os.unlink(storage.journals.home.writer.path)

    with pytest.raises(StorageUnavailableError, match="deleted or replaced"):
        commit_and_lose()


def test_deleted_log_is_noticed(storage):
    fill(storage, "w")
    os.unlink(storage.journals.home.writer.path + "-wal")
    with pytest.raises(StorageUnavailableError, match="-wal"):
        storage.commit([make_append("w", 1)])


def test_work_goes_on_when_the_directory_returns(storage, tmp_path):
    fill(storage, "w")
    blob = storage.write_blob("i", "k", [b"x"])
    os.rename(storage.directory, tmp_path / "away")
    for call in (
        lambda: storage.commit([make_append("w", 1)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.read_blob("i", blob),
        lambda: storage.write_blob("i", "k2", [b"x"]),
        lambda: storage.delete_blobs("i"),
        lambda: storage.sweep(0.0),
    ):
        with pytest.raises(StorageUnavailableError, match="storage"):
            call()
    os.rename(tmp_path / "away", storage.directory)
    assert storage.commit([make_append("w", 1)]) == [OK]
    assert bytes(storage.read_blob("i", blob)) == b"x"
    assert len(state(storage, "w")[1]) == 2


def test_replaced_database_is_noticed_and_then_used(storage, tmp_path):
    other = SqliteStorage(tmp_path / "other")
    other.open()
    fill(other, "backup")
    other.close()
    fill(storage, "w")
    os.unlink(storage.journals.home.writer.path + "-wal")
    os.rename(other.journals.home.writer.path, storage.journals.home.writer.path)
    with pytest.raises(StorageUnavailableError, match="replaced"):
        storage.commit([make_append("w", 1)])
    assert storage.commit([make_append("w", 1)]) == [STALE]


def test_locked_database_is_unavailable_for_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.02)
    one, two = SqliteStorage(tmp_path), SqliteStorage(tmp_path)
    one.open()
    fill(one, "w")
    with one.journals.home.writer.transaction():
        with pytest.raises(StorageUnavailableError, match="locked"):
            two.commit([make_append("w", 1)])
        # Readers do not mind.
        assert two.read_catalog("w").seq == 1
    assert two.commit([make_append("w", 1)]) == [OK]
    one.close()
    two.close()


def test_damaged_database_is_corrupt(storage):
    for i in range(50):
        fill(storage, f"w{i}", 2, entry=b"x" * 5000)
    storage.close()
    size = os.path.getsize(storage.journals.home.writer.path)
    with open(storage.journals.home.writer.path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    for call in (
        lambda: storage.list_catalog(CatalogQuery()),
        lambda: storage.read_journal(incarnation_of("w1")),
        lambda: storage.commit([make_append("w1", 2)]),
    ):
        with pytest.raises(StorageCorruptError, match=r"workflows\.sqlite is damaged"):
            call()


def test_error_within_a_commit_writes_nothing(storage):
    bad = make_append("b", 0, metadata={"x": object()})
    with pytest.raises(TypeError):
        storage.commit([make_append("a", 0), bad])
    # Neither the rows nor the lock are left over: another connection sees that.
    other = SqliteStorage(storage.directory)
    assert list_ids(other) == []
    fill(other, "a")
    other.close()
    fill(storage, "b")


def test_failed_transaction_gives_its_lock_back(storage):
    kept = []

    def fail():
        with storage.journals.home.writer.transaction() as connection:
            connection.execute("DELETE FROM holders")
            # A traceback can keep such a cursor alive for long.
            kept.append(connection.execute("SELECT * FROM sqlite_master"))
            raise ZeroDivisionError

    storage.renew_holder(make_holder("h"), 1.0)
    with pytest.raises(ZeroDivisionError):
        fail()
    other = SqliteStorage(storage.directory)
    fill(other, "w")
    assert [holder.holder_id for holder in other.read_holders()] == ["h"]
    other.close()


def test_missing_table_is_corrupt(storage):
    with storage.journals.home.writer.use() as connection:
        connection.execute("DROP TABLE journal")
    with pytest.raises(StorageCorruptError, match="schema"):
        storage.read_journal("i")


def test_unreadable_row_is_corrupt(storage):
    fill(storage, "w")
    with storage.journals.home.writer.use() as connection:
        connection.execute("UPDATE catalog SET status = 'LOST'")
    with pytest.raises(StorageCorruptError, match="'w'.*checksum"):
        storage.read_catalog("w")


def test_full_database_is_unavailable_and_recovers(storage):
    fill(storage, "w", 1)
    with storage.journals.home.writer.use() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    seq, error = 1, None
    while error is None:
        append = make_append("w", seq, entry=b"x" * 10_000)
        try:
            assert storage.commit([append, make_append(f"other{seq}", 0)]) == [OK, OK]
            seq += 1
        except StorageUnavailableError as caught:
            error = caught
    assert re.search("full.*Free some space", str(error))
    assert seq > 2
    row, _ = state(storage, "w")
    assert row.seq == seq
    assert storage.read_catalog(f"other{seq}") is None
    assert storage.commit([append]) == [OK]


def fill_the_disk(pipe, directory):
    """A limit on file sizes is as good as a full disk, and needs no mount."""
    storage = SqliteStorage(directory)
    fill(storage, "w", 1)
    size = os.path.getsize(storage.journals.home.writer.path + "-wal")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 400_000, hard))
    errors = []
    seq = 1
    while not errors:
        try:
            assert storage.commit([make_append("w", seq, entry=b"x" * 50_000)]) == [OK]
            seq += 1
        except StorageError as error:
            errors.append(error)
    try:
        storage.write_blob("i", "k", [b"x" * 5_000_000])
    except StorageError as error:
        errors.append(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    # What is acknowledged is there, and the rest can be repeated.
    pipe.send((errors, seq, storage.read_catalog("w").seq, tree(storage.blobs.root)))
    pipe.send(storage.commit([make_append("w", seq)]))
    storage.write_blob("i", "k", [b"x" * 5_000_000])
    storage.close()
    pipe.send("end")


def test_full_disk_is_unavailable_and_recovers(storage):
    with child(fill_the_disk, storage.directory) as (_, pipe):
        errors, acknowledged, stored, files = receive(pipe)
        assert [type(error) for error in errors] == [StorageUnavailableError] * 2
        assert "workflows.sqlite" in str(errors[0])
        assert "Free some space" in str(errors[1])
        assert acknowledged == stored > 3
        assert [name for name in files if name != "i"] == []
        assert receive(pipe) == [OK]
        assert receive(pipe) == "end"
    assert len(state(storage, "w")[1]) == stored + 1
    assert storage.find_blob("i", "k").size == 5_000_000
