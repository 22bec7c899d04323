"""A storage whose blobs are in another keeps the contract, and finishes what was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage import BlobStore, MemoryStorage, SqliteStorage, Storage
from ray_workflows.storage.combined import combine
from ray_workflows.storage.memory import MemoryBlobs
from ray_workflows.storage.orphans import sweep_id, take
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import OK, STALE, fill, list_ids, make_append


class TestCombinedStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path):
        storage: Storage = combine(
            SqliteStorage(tmp_path / "journals"), SqliteStorage(tmp_path / "blobs")
        )
        storage.open()
        yield storage
        storage.close()


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def db(now):
    return MemoryStorage(clock=lambda: now[0], name="db")


@pytest.fixture
def bucket(now):
    return MemoryStorage(clock=lambda: now[0], name="bucket")


@pytest.fixture
def combined(db, bucket):
    combined = combine(db, bucket)
    combined.open()
    return combined


def test_each_part_is_in_its_place(combined, db, bucket):
    row = fill(combined, "w", 2)
    blob = combined.write_blob(row.incarnation, "k", [b"x"])
    assert db.find_blob(row.incarnation, "k") is None
    assert bucket.find_blob(row.incarnation, "k") == blob
    assert list_ids(bucket) == []
    assert combined.delete("w", row.incarnation, 2) is OK
    assert bucket.find_blob(row.incarnation, "k") is None


def test_the_place_of_the_blobs_is_part_of_the_identity(combined, db):
    assert combined.url == "memory://db#blobs=memory%3A%2F%2Fbucket"
    assert combined.node_bound
    assert repr(combined) == f"Storage({combined.url})"


def test_blobs_from_before_are_still_read(combined, db):
    row = fill(db, "w")
    blob = db.write_blob(row.incarnation, "k", [b"old"])
    assert bytes(combined.read_blob(row.incarnation, blob)) == b"old"
    assert combined.find_blob(row.incarnation, "k") == blob
    assert combined.delete("w", row.incarnation, 1) is OK
    with pytest.raises(StorageCorruptError, match="missing"):
        combined.read_blob(row.incarnation, blob)


def test_blobs_that_are_away_do_not_hinder_a_deletion(combined, monkeypatch, bucket):
    row = fill(combined, "w")
    combined.write_blob(row.incarnation, "k", [b"x"])

    def fail(incarnation):
        raise StorageUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(bucket.blobs, "delete_blobs", fail)
        assert combined.delete("w", row.incarnation, 1) is OK
    assert combined.sweep(0.0) == 1
    assert combined.find_blob(row.incarnation, "k") is None


def test_sweep_counts_what_either_has(combined, now, db):
    fill(combined, "w", incarnation="live")
    combined.write_blob("live", "k", [b"x"])
    combined.write_blob("i1", "k", [b"x"])
    db.write_blob("i2", "k", [b"x"])
    now[0] += 50.0
    combined.write_blob("young", "k", [b"x"])
    assert combined.sweep(40.0) == 2
    assert combined.old_blobs(0.0) == ["live", "young"]
    assert list_ids(combined) == ["w"]


def test_sweep_and_creation_exclude_each_other(combined, monkeypatch, bucket):
    combined.write_blob("i", "k", [b"x"])
    delete = bucket.blobs.delete_blobs
    outcomes = []

    def create_in_between(incarnation):
        outcomes.extend(combined.commit([make_append("w", 0, incarnation="i")]))
        delete(incarnation)

    monkeypatch.setattr(bucket.blobs, "delete_blobs", create_in_between)
    assert combined.sweep(0.0) == 1
    assert outcomes == [STALE]
    # And the other way round: created after the look, before the incarnation is taken.
    combined.write_blob("i", "k", [b"x"])
    old = bucket.blobs.old_blobs

    def create_after(grace_seconds):
        found = old(grace_seconds)
        fill(combined, "w", incarnation="i")
        return found

    monkeypatch.setattr(bucket.blobs, "old_blobs", create_after)
    assert combined.sweep(0.0) == 0
    assert combined.find_blob("i", "k") is not None


@pytest.mark.parametrize("blobs_are_gone", [False, True])
def test_interrupted_sweep_is_finished_by_the_next(combined, blobs_are_gone, bucket):
    combined.write_blob("i", "k", [b"x"])
    assert combined.commit([take("i", combined.now())]) == [OK]
    # It is no workflow.
    assert list_ids(combined, statuses=(WorkflowStatus.NONE,)) == [sweep_id("i")]
    assert list_ids(combined) == []
    if blobs_are_gone:
        bucket.delete_blobs("i")
    assert combined.sweep(3600.0) == 1
    assert combined.find_blob("i", "k") is None
    assert list_ids(combined, statuses=(WorkflowStatus.NONE,)) == []


def test_blobs_of_one_storage_are_not_rubbish_of_another(combined, db, bucket):
    """Two storages that share a place for blobs would sweep what is the other's."""
    combined.open()
    combined.open_existing()
    fill(combined, "w", incarnation="i")
    combined.write_blob("i", "k", [b"x"])
    rival = combine(MemoryStorage(name="rival"), bucket)
    for check in (rival.open, rival.open_existing):
        with pytest.raises(StorageConfigError, match="blobs of memory://db, not of memory://rival"):
            check()
    unmarked = combine(db, MemoryStorage())
    with pytest.raises(StorageConfigError, match="nobody yet.*init"):
        unmarked.open_existing()
    fill(bucket, "somebody's")
    with pytest.raises(StorageConfigError, match="workflows of its own"):
        combined.open()
    assert combined.sweep(0.0) == 0


def test_storage_that_can_not_list_its_blobs_is_refused():
    class Plain(BlobStore):
        write_blob = MemoryBlobs.write_blob
        read_blob = MemoryBlobs.read_blob
        find_blob = MemoryBlobs.find_blob
        delete_blobs = MemoryBlobs.delete_blobs

    with pytest.raises(StorageConfigError, match="Plain can't be a BlobStore: it lacks old_blobs"):
        Plain()
