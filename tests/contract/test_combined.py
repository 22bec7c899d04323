"""`CombinedStorage` keeps the contract, and finishes what was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage import MemoryStorage, SqliteStorage, Storage
from ray_workflows.storage.combined import CombinedStorage, sweep_id, take
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import OK, STALE, fill, list_ids, make_append


class TestCombinedStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path):
        storage: Storage = CombinedStorage(
            SqliteStorage(tmp_path / "journals"), SqliteStorage(tmp_path / "blobs")
        )
        storage.open()
        yield storage
        storage.close()


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def combined(now):
    storages = (MemoryStorage(clock=lambda: now[0], name=name) for name in ("db", "bucket"))
    combined = CombinedStorage(*storages)
    combined.open()
    return combined


def test_each_part_is_in_its_place(combined):
    row = fill(combined, "w", 2)
    blob = combined.write_blob(row.incarnation, "k", [b"x"])
    assert combined.storage.find_blob(row.incarnation, "k") is None
    assert combined.blobs.find_blob(row.incarnation, "k") == blob
    assert list_ids(combined.blobs) == []
    assert combined.delete("w", row.incarnation, 2) is OK
    assert combined.blobs.find_blob(row.incarnation, "k") is None


def test_the_place_of_the_blobs_is_part_of_the_identity(combined):
    assert combined.url == "memory://db#blobs=memory%3A%2F%2Fbucket"
    assert combined.node_bound
    assert "MemoryStorage" in repr(combined)


def test_blobs_from_before_are_still_read(combined):
    row = fill(combined.storage, "w")
    blob = combined.storage.write_blob(row.incarnation, "k", [b"old"])
    assert bytes(combined.read_blob(row.incarnation, blob)) == b"old"
    assert combined.find_blob(row.incarnation, "k") == blob
    assert combined.delete("w", row.incarnation, 1) is OK
    with pytest.raises(StorageCorruptError, match="missing"):
        combined.read_blob(row.incarnation, blob)


def test_blobs_that_are_away_do_not_hinder_a_deletion(combined, monkeypatch):
    row = fill(combined, "w")
    combined.write_blob(row.incarnation, "k", [b"x"])

    def fail(incarnation):
        raise StorageUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(combined.blobs, "delete_blobs", fail)
        assert combined.delete("w", row.incarnation, 1) is OK
    assert combined.sweep(0.0) == 1
    assert combined.find_blob(row.incarnation, "k") is None


def test_sweep_counts_what_either_has(combined, now):
    fill(combined, "w", incarnation="live")
    combined.write_blob("live", "k", [b"x"])
    combined.write_blob("i1", "k", [b"x"])
    combined.storage.write_blob("i2", "k", [b"x"])
    now[0] += 50.0
    combined.write_blob("young", "k", [b"x"])
    assert combined.sweep(40.0) == 2
    assert combined.old_blobs(0.0) == ["live", "young"]
    assert list_ids(combined) == ["w"]


def test_sweep_and_creation_exclude_each_other(combined, monkeypatch):
    combined.write_blob("i", "k", [b"x"])
    delete = combined.blobs.delete_blobs
    outcomes = []

    def create_in_between(incarnation):
        outcomes.extend(combined.commit([make_append("w", 0, incarnation="i")]))
        delete(incarnation)

    monkeypatch.setattr(combined.blobs, "delete_blobs", create_in_between)
    assert combined.sweep(0.0) == 1
    assert outcomes == [STALE]
    # And the other way round: created after the look, before the incarnation is taken.
    combined.write_blob("i", "k", [b"x"])
    old = combined.blobs.old_blobs

    def create_after(grace_seconds):
        found = old(grace_seconds)
        fill(combined, "w", incarnation="i")
        return found

    monkeypatch.setattr(combined.blobs, "old_blobs", create_after)
    assert combined.sweep(0.0) == 0
    assert combined.find_blob("i", "k") is not None


@pytest.mark.parametrize("blobs_are_gone", [False, True])
def test_interrupted_sweep_is_finished_by_the_next(combined, blobs_are_gone):
    combined.write_blob("i", "k", [b"x"])
    assert combined.commit([take("i", combined.now())]) == [OK]
    assert list_ids(combined) == [sweep_id("i")]
    assert list_ids(combined, statuses=tuple(WorkflowStatus.non_terminating_status())) == []
    if blobs_are_gone:
        combined.blobs.delete_blobs("i")
    assert combined.sweep(3600.0) == 1
    assert combined.find_blob("i", "k") is None
    assert combined.list_catalog(CatalogQuery()).rows == ()


def test_blobs_of_one_storage_are_not_rubbish_of_another(combined):
    """Two storages that share a place for blobs would sweep what is the other's."""
    combined.open()
    combined.open_existing()
    fill(combined, "w", incarnation="i")
    combined.write_blob("i", "k", [b"x"])
    rival = CombinedStorage(MemoryStorage(name="rival"), combined.blobs)
    for check in (rival.open, rival.open_existing):
        with pytest.raises(StorageConfigError, match="blobs of memory://db, not of memory://rival"):
            check()
    unmarked = CombinedStorage(combined.storage, MemoryStorage())
    with pytest.raises(StorageConfigError, match="nobody yet.*init"):
        unmarked.open_existing()
    fill(combined.blobs, "somebody's")
    with pytest.raises(StorageConfigError, match="workflows of its own"):
        combined.open()
    assert combined.sweep(0.0) == 0


def test_storage_that_can_not_list_its_blobs_is_refused(combined):
    class Plain(MemoryStorage):
        old_blobs = Storage.old_blobs

    storage = CombinedStorage(combined.storage, Plain())
    with pytest.raises(StorageConfigError, match="Plain lacks the method old_blobs"):
        storage.open()
    with pytest.raises(StorageConfigError, match="old_blobs"):
        storage.sweep(0.0)
