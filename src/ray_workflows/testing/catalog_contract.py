"""The part of `JournalStoreContract` about catalog rows and listing.
Uses the public methods of a journal store only.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ray_workflows._model.catalog import NEVER, CatalogQuery, CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.parts import JournalStore
from ray_workflows.testing.builders import OK, fill, list_ids, make_append

RUNNING, FAILED = WorkflowStatus.RUNNING, WorkflowStatus.FAILED
PENDING, SUCCESSFUL = WorkflowStatus.PENDING, WorkflowStatus.SUCCESSFUL


class CatalogContract:
    """Catalog rows and listing."""

    def test_all_fields_come_back(self, journals: JournalStore) -> None:
        """All fields of a row come back with their types."""
        row = CatalogRow(
            workflow_id="w",
            incarnation="i",
            seq=1,
            status=FAILED,
            holder="häl't",
            submitted_at=1700000000.123456,
            started_at=1700000001.5,
            ended_at=1700000002.25,
            metadata={"k": ["v", 1, 2.5, None, True, {"ü": "\x00\n"}], "": {}, "n": -(2**53)},
            plan_digest="d" * 64,
            error="ValueError: 'Größe'\n\tline",
            released=True,
            kind="actor",
            name="train[größe]",
            queue="gpu",
            priority=-3,
            parent="wörk/1",
            due_at=1700000003.75,
            tags={"team": "vïsion", "n": 2**53, "x": -0.5, "on": True, "off": False, "t": "5"},
            snapshot=2**40,
        )
        append = msgspec.structs.replace(make_append("w", 0, incarnation="i"), catalog=row)
        assert journals.commit([append]) == [OK]
        found = journals.read_catalog("w")
        assert found == row
        assert found is not None
        assert isinstance(found.status, WorkflowStatus)
        assert isinstance(found.released, bool)
        assert [*map(type, found.tags.values())] == [str, int, float, bool, bool, str]
        assert journals.list_catalog(CatalogQuery()).rows == (row,)

    def test_defaults_come_back(self, journals: JournalStore) -> None:
        """A field that is None comes back as None."""
        row = fill(journals, "w")
        assert (row.started_at, row.ended_at, row.error) == (None, None, None)
        assert journals.read_catalog("w") == row

    @pytest.mark.parametrize("status", list(WorkflowStatus))
    def test_every_status_can_be_stored(
        self, journals: JournalStore, status: WorkflowStatus
    ) -> None:
        """A row can have every status, and is found by it."""
        fill(journals, "w", status=status)
        assert list_ids(journals, statuses=(status,)) == ["w"]

    def test_what_is_no_workflow_is_not_listed(self, journals: JournalStore) -> None:
        """Such rows, as those of code packages, are listed only if their status is asked for."""
        fill(journals, "ray_workflows/package/1", status=WorkflowStatus.NONE)
        fill(journals, "w", status=SUCCESSFUL, submitted_at=2000.0)
        fill(journals, "ray_workflows/package/2", status=WorkflowStatus.NONE, submitted_at=3000.0)
        for newest_first in (False, True):
            assert list_ids(journals, newest_first=newest_first) == ["w"]
            assert list_ids(journals, newest_first=newest_first, holders=("h1",)) == ["w"]
        both = ["ray_workflows/package/1", "ray_workflows/package/2"]
        assert list_ids(journals, statuses=(WorkflowStatus.NONE,)) == both

    def test_each_commit_replaces_the_row(self, journals: JournalStore) -> None:
        """Nothing of the former row is left, in the listing neither."""
        fill(
            journals,
            "w",
            status=FAILED,
            error="e",
            ended_at=5.0,
            metadata={"a": 1},
            released=True,
            kind="actor",
            name="f",
            queue="q",
            priority=1,
            parent="p",
            due_at=6.0,
            tags={"a": 1},
            snapshot=1,
        )
        append = make_append("w", 1, submitted_at=2000.0)
        assert journals.commit([append]) == [OK]
        assert journals.read_catalog("w") == append.catalog
        assert journals.list_catalog(CatalogQuery()).rows == (append.catalog,)

    def test_the_number_of_a_snapshot_alone_can_change(self, journals: JournalStore) -> None:
        """In a commit for one workflow, and in one for several."""
        running: dict[str, Any] = {"status": RUNNING, "holder": "h"}
        for name in "abc":
            fill(journals, name, 2, **running)
        alone = make_append("a", 2, snapshot=3, **running)
        assert journals.commit([alone]) == [OK]
        appends = [make_append(name, 2, snapshot=3, **running) for name in "bc"]
        assert journals.commit(appends) == [OK, OK]
        after = make_append("a", 3, snapshot=3, **running)
        assert journals.commit([after]) == [OK]
        assert [journals.read_catalog(name) for name in "abc"] == [
            after.catalog,
            *(append.catalog for append in appends),
        ]

    @pytest.mark.parametrize("due_at", [6.0, NEVER, None])
    def test_when_it_is_due_alone_can_change(
        self, journals: JournalStore, due_at: float | None
    ) -> None:
        """In a new row, in a commit for one workflow, and in one for several."""
        running: dict[str, Any] = {"status": RUNNING, "holder": "h"}
        for name in "abc":
            fill(journals, name, 2, due_at=5.0, **running)
        appends = [make_append("new", 0, due_at=due_at, **running)]
        assert journals.commit(appends) == [OK]
        appends.append(make_append("a", 2, due_at=due_at, **running))
        assert journals.commit(appends[1:]) == [OK]
        appends += [make_append(name, 2, due_at=due_at, **running) for name in "bc"]
        assert journals.commit(appends[2:]) == [OK, OK]
        for append in appends:
            assert journals.read_catalog(append.workflow_id) == append.catalog

    def test_stored_metadata_is_nobodys_object(self, journals: JournalStore) -> None:
        """Changes to metadata that was written or read do not change what is stored."""
        metadata: dict[str, Any] = {"a": [1]}
        tags: dict[str, Any] = {"a": 1}
        fill(journals, "w", metadata=metadata, tags=tags)
        metadata["a"].append(2)
        tags["b"] = 2
        found = journals.read_catalog("w")
        assert found is not None
        found.metadata["b"] = 3
        found.tags["b"] = 3
        journals.list_catalog(CatalogQuery()).rows[0].metadata["a"].append(4)
        again = journals.read_catalog("w")
        assert again is not None
        assert again.metadata == {"a": [1]}
        assert again.tags == {"a": 1}

    def test_text_that_utf8_cannot_hold_does_no_harm(self, journals: JournalStore) -> None:
        """Error messages of the operating system may contain lone surrogates."""
        fill(journals, "w", error="No such file: '\udcff'")
        found = journals.read_catalog("w")
        assert found is not None
        assert found.error is not None
        assert found.error.startswith("No such file: '")

    # -- listing ---------------------------------------------------------------------------

    def test_empty_catalog(self, journals: JournalStore) -> None:
        """An empty catalog gives no rows and no cursor."""
        page = journals.list_catalog(CatalogQuery())
        assert (page.rows, page.cursor) == ((), None)
        assert journals.list_catalog(CatalogQuery(statuses=(RUNNING,))).rows == ()

    def test_listing_is_by_submission_then_id(self, journals: JournalStore) -> None:
        """The order of creation does not matter; ids are ordered by code points."""
        expected = [
            (0.0, "z"),
            (5.0, "B"),
            (5.0, "a"),
            (5.0, "b"),
            (5.0, "é"),
            (5.0, "🦑"),
            (7.5, "a2"),
        ]
        for submitted_at, name in reversed(expected):
            fill(journals, name, submitted_at=submitted_at)
        assert list_ids(journals) == [name for _, name in expected]
        newest = [name for _, name in reversed(expected)]
        assert list_ids(journals, newest_first=True) == newest
        assert list_ids(journals, newest_first=True, limit=1) == newest

    def test_pages(self, journals: JournalStore) -> None:
        """The pages have each row once, in order, also if many have the same submission time."""
        cycle = (RUNNING, FAILED, SUCCESSFUL)
        rows = [(float(i // 10), f"w{i:02}", cycle[i % 3]) for i in range(25)]
        appends = [make_append(n, 0, submitted_at=at, status=status) for at, n, status in rows]
        assert journals.commit(appends) == [OK] * 25
        # All queries use one catalog, because creating it takes most of the time.
        for statuses in ((), (RUNNING,), (FAILED, RUNNING), (RUNNING, RUNNING)):
            expected = [name for _, name, status in rows if not statuses or status in statuses]
            for limit in (1, 2, 3, 7, 24, 25, 26, 1000):
                assert list_ids(journals, limit=limit, statuses=statuses) == expected
                newest = list_ids(journals, limit=limit, statuses=statuses, newest_first=True)
                assert newest == expected[::-1]
                first = journals.list_catalog(CatalogQuery(limit=limit, statuses=statuses))
                assert len(first.rows) == min(limit, len(expected))
                assert len(expected) <= limit or first.cursor is not None

    def test_filters(self, journals: JournalStore) -> None:
        """Listings filter by statuses, by holders, and by both."""
        for number, status in enumerate((RUNNING, FAILED, PENDING)):
            for holder in ("h1", "h2", "it's; --"):
                fill(journals, f"{number}{holder}", status=status, holder=holder)
        assert list_ids(journals, holders=("h1",)) == ["0h1", "1h1", "2h1"]
        assert list_ids(journals, holders=("it's; --",), statuses=(FAILED,)) == ["1it's; --"]
        assert list_ids(journals, statuses=(RUNNING, PENDING), holders=("h1", "h2")) == [
            "0h1",
            "0h2",
            "2h1",
            "2h2",
        ]
        assert list_ids(journals, statuses=(SUCCESSFUL,)) == []
        assert list_ids(journals, holders=("h3",)) == []
        assert list_ids(journals, holders=("h2",), limit=1) == ["0h2", "1h2", "2h2"]
        both = {"statuses": (RUNNING, PENDING), "holders": ("h2",), "newest_first": True}
        assert list_ids(journals, **both) == ["2h2", "0h2"]

    def test_filters_follow_commits(self, journals: JournalStore) -> None:
        """A row is found by its present status only."""
        fill(journals, "w", status=RUNNING, holder="h1")
        assert journals.commit([make_append("w", 1, status=FAILED, holder="h2")]) == [OK]
        assert list_ids(journals, statuses=(RUNNING,)) == list_ids(journals, holders=("h1",)) == []
        assert list_ids(journals, statuses=(FAILED,), holders=("h2",)) == ["w"]

    def test_changes_between_pages(self, journals: JournalStore) -> None:
        """A cursor stays valid when its row is deleted, and finds rows that were added later."""
        for i in range(6):
            fill(journals, f"w{i}", submitted_at=float(i))
        page = journals.list_catalog(CatalogQuery(limit=3))
        last = page.rows[-1]
        assert journals.delete(last.workflow_id, last.incarnation, 1) is OK
        fill(journals, "early", submitted_at=0.5)
        fill(journals, "late", submitted_at=9.0)
        rest = journals.list_catalog(CatalogQuery(cursor=page.cursor))
        assert [row.workflow_id for row in rest.rows] == ["w3", "w4", "w5", "late"]

    @pytest.mark.parametrize("cursor", ["", "w3", "[]", "[1]", "{}", "1"])
    def test_foreign_cursor_is_refused(self, journals: JournalStore, cursor: str) -> None:
        """A cursor that no listing has returned would silently list the wrong rows."""
        with pytest.raises(ValueError, match="cursor"):
            journals.list_catalog(CatalogQuery(cursor=cursor))

    @pytest.mark.parametrize("limit", [0, -1])
    def test_page_without_rows_is_refused(self, journals: JournalStore, limit: int) -> None:
        """A listing with a limit below 1 could never end."""
        with pytest.raises(ValueError, match="limit"):
            journals.list_catalog(CatalogQuery(limit=limit))
