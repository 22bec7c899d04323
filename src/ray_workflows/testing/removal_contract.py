"""The part of `StorageContract` about deletion and the sweep, which involve several parts.
Uses the public methods of a storage only.
"""

from __future__ import annotations

import pytest

from ray_workflows.storage.base import Storage
from ray_workflows.testing.builders import OK, STALE, fill, make_append, state


class RemovalContract:
    """Deletion of workflows with their blobs, and of blobs that belong to no workflow."""

    @pytest.mark.parametrize("expected_seq", [0, 2, 4])
    def test_delete_with_a_stale_seq(self, storage: Storage, expected_seq: int) -> None:
        """If the journal has grown meanwhile, neither it nor a blob is deleted."""
        row = fill(storage, "w", 3)
        blob = storage.write_blob(row.incarnation, "k", [b"data"])
        before = state(storage, "w")
        assert storage.delete("w", row.incarnation, expected_seq) is STALE
        assert state(storage, "w") == before
        assert bytes(storage.read_blob(row.incarnation, blob)) == b"data"

    def test_recreation_under_a_new_incarnation(self, storage: Storage) -> None:
        """The id is free; appends and deletions of the old incarnation stay stale."""
        old = fill(storage, "w", 2, incarnation="i-old")
        storage.write_blob("i-old", "k", [b"old"])
        assert storage.delete("w", old.incarnation, 2) is OK
        assert storage.commit([make_append("w", 2, incarnation="i-old")]) == [STALE]
        new = fill(storage, "w", 2, incarnation="i-new", holder="new")
        assert storage.commit([make_append("w", 2, incarnation="i-old")]) == [STALE]
        assert storage.commit([make_append("w", 0, incarnation="i-old")]) == [STALE]
        assert storage.delete("w", "i-old", 2) is STALE
        assert storage.read_journal("i-old") == []
        assert storage.find_blob("i-new", "k") is None
        assert state(storage, "w")[0] == new
        assert storage.commit([make_append("w", 2, incarnation="i-new")]) == [OK]

    def test_deleting_a_workflow_deletes_its_blobs(self, storage: Storage) -> None:
        """A deletion removes the blobs of that workflow, and no others."""
        row = fill(storage, "w", 2)
        other = fill(storage, "other", 1)
        for incarnation in (row.incarnation, other.incarnation):
            storage.write_blob(incarnation, "k", [b"x"])
        assert storage.delete("w", row.incarnation, 2) is OK
        assert storage.find_blob(row.incarnation, "k") is None
        assert storage.find_blob(other.incarnation, "k") is not None
        assert storage.sweep(0.0) == 0

    def test_sweep_keeps_what_is_in_use_or_young(self, storage: Storage) -> None:
        """Blobs of a live workflow stay at any age; others until the grace period is over."""
        row = fill(storage, "w")
        live = storage.write_blob(row.incarnation, "k", [b"live"])
        orphan = storage.write_blob("i-orphan", "k", [b"orphan"])
        assert storage.sweep(3600.0) == 0
        assert bytes(storage.read_blob("i-orphan", orphan)) == b"orphan"
        assert storage.sweep(0.0) == 1
        assert storage.find_blob("i-orphan", "k") is None
        assert bytes(storage.read_blob(row.incarnation, live)) == b"live"
        assert storage.sweep(0.0) == 0

    def test_sweep_counts_incarnations(self, storage: Storage) -> None:
        """The result of a sweep is a number of incarnations, not of blobs."""
        for incarnation in ("i1", "i2", "i3"):
            for key in ("a", "b"):
                storage.write_blob(incarnation, key, [b"x"])
        assert storage.sweep(0.0) == 3

    def test_sweep_of_nothing(self, storage: Storage) -> None:
        """An empty storage has nothing to remove."""
        assert storage.sweep(0.0) == 0
