"""The part of `StorageContract` about items that workflows share: code packages and documents.
Uses the public methods of a storage only.
"""

from __future__ import annotations

import pytest

from ray_workflows._environment import shared_items
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.base import Storage
from ray_workflows.testing.builders import OK, fill, in_threads, list_ids


class SharedContract:
    """Items that many workflows use, and that are deleted with the last of them."""

    def test_an_item_is_stored_once(self, storage: Storage) -> None:
        """A second writer gets the first one's item, and reads its bytes."""
        item = shared_items.keep(storage, "package/a", lambda: [b"some ", b"code"])
        assert shared_items.find(storage, "package/a") == item
        again = shared_items.keep(storage, "package/a", lambda: [b"some ", b"code"])
        assert again == item
        assert bytes(storage.read_blob(item.incarnation, item.blob)) == b"some code"

    def test_of_several_that_store_an_item_at_once_one_does(self, storage: Storage) -> None:
        """All writers get the same item; the others leave nothing behind."""
        items = in_threads([lambda: shared_items.keep(storage, "package/a", lambda: [b"x"])] * 4)
        assert len(set(items)) == 1
        assert storage.sweep(0.0) == 0

    def test_items_are_no_workflows(self, storage: Storage) -> None:
        """Listings leave items out."""
        fill(storage, "w")
        shared_items.keep(storage, "package/a", lambda: [b"x"])
        assert list_ids(storage) == ["w"]

    def test_items_are_not_swept(self, storage: Storage) -> None:
        """A sweep removes no item, however old; `collect` does, when no workflow uses it."""
        item = shared_items.keep(storage, "package/a", lambda: [b"x"])
        assert storage.sweep(0.0) == 0
        assert bytes(storage.read_blob(item.incarnation, item.blob)) == b"x"

    def test_items_go_with_the_last_workflow(self, storage: Storage) -> None:
        """`collect` removes an item after the last workflow whose document mentions it."""
        for name in ("a", "b", "shared"):
            shared_items.keep(storage, f"package/{name}", lambda: [b"x"])
        for name in ("a", "b"):
            mentions = [f"package/{name}", "package/shared"]
            shared_items.keep(storage, f"environment/{name}", lambda: [b"about"], mentions)
            fill(storage, name, incarnation=f"1-{name}")
        assert shared_items.collect(storage, 0.0) == []
        assert storage.delete("a", "1-a", 1) is OK
        assert shared_items.collect(storage, 0.0) == ["environment/a", "package/a"]
        assert storage.delete("b", "1-b", 1) is OK
        assert sorted(shared_items.collect(storage, 0.0)) == [
            "environment/b",
            "package/b",
            "package/shared",
        ]
        assert list_ids(storage, statuses=(WorkflowStatus.NONE,)) == []
        assert storage.sweep(0.0) == 0

    def test_items_that_a_workflow_was_given_later_stay_too(self, storage: Storage) -> None:
        """An item of the workflow's own mentions them; another workflow of the same id does not
        count."""
        row = fill(storage, "w", incarnation="1-a")
        shared_items.keep(storage, "package/p", lambda: [b"x"], (), ("w", row.incarnation))
        shared_items.keep(storage, "package/q", lambda: [b"x"])
        shared_items.use(storage, "package/q", ("w", row.incarnation))
        assert shared_items.collect(storage, 0.0) == []
        assert storage.delete("w", row.incarnation, 1) is OK
        fill(storage, "w", incarnation="2-a")
        assert sorted(shared_items.collect(storage, 0.0)) == [
            "package/p",
            "package/q",
            f"uses/{row.incarnation}",
        ]

    def test_items_in_use_by_a_submission_stay(self, storage: Storage) -> None:
        """The submission may not be committed yet. An item that was removed meanwhile is stored
        again."""
        item = shared_items.keep(storage, "package/a", lambda: [b"x"])
        assert shared_items.collect(storage, 3600.0) == []
        assert shared_items.collect(storage, 0.0) == ["package/a"]
        assert shared_items.use(storage, "package/a") is None
        again = shared_items.keep(storage, "package/a", lambda: [b"x"])
        assert again.incarnation != item.incarnation
        assert bytes(storage.read_blob(again.incarnation, again.blob)) == b"x"

    def test_an_item_that_is_used_again_is_not_removed(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A removal that was decided on before that use does nothing."""
        monkeypatch.setattr(shared_items, "USED_SECONDS", 0.0)
        shared_items.keep(storage, "package/a", lambda: [b"x"])
        seen = storage.read_catalog(f"{shared_items.PREFIX}package/a")
        assert seen is not None
        shared_items.use(storage, "package/a", ("w", "1-a"))
        assert not shared_items.remove(storage, seen)
        assert shared_items.find(storage, "package/a") is not None
