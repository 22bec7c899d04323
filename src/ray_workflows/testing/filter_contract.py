"""The part of `JournalStoreContract` about conditions: whatever way a storage finds rows, they are
those of which `matches` is true. Uses the public methods of a journal store only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from ray_workflows._model.catalog import (
    TAGS,
    CatalogQuery,
    CatalogRow,
    Condition,
    Operator,
    matches,
)
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.parts import JournalStore
from ray_workflows.testing.builders import OK, list_ids, make_append, make_row

RUNNING, FAILED = WorkflowStatus.RUNNING, WorkflowStatus.FAILED
SUCCESSFUL = WorkflowStatus.SUCCESSFUL

IS, BEGINS, THERE = Operator.IS, Operator.BEGINS, Operator.THERE
COMPARING = (Operator.LESS, Operator.AT_MOST, Operator.MORE, Operator.AT_LEAST, IS)

TEXTS: dict[str, tuple[str, ...]] = {
    "workflow_id": ("order-1", "order", "ord", "\U0010ffff", "größe", "o'; --", "%", "w*"),
    "kind": ("dag", "actor"),
    "name": ("train", "tr", "train[1]", "\ud7ff", "no such"),
    "queue": ("gpu", "g"),
    "parent": ("order-1",),
}

#: The tags of rows, in turn.
TAGS_OF_ROWS: tuple[dict[str, Any], ...] = (
    {},
    {"team": "vision"},
    {"team": "vis", "n": 5},
    {"team": "5", "n": 5.5, "on": True},
    {"team": 5, "on": "true", "größe": "ü"},
    {"n": -(2**53), "on": False, "team": ""},
)


def conditions() -> list[Condition]:
    """Many conditions on all columns."""
    found = [
        Condition(column, operator, text)
        for column, texts in TEXTS.items()
        for text in texts
        for operator in (IS, BEGINS)
    ]
    found += [Condition(column, THERE) for column in TEXTS]
    found += [
        Condition(column, operator, number=number)
        for column in ("submitted_at", "ended_at")
        for operator in COMPARING
        for number in (0.0, 1002.0, 1003.5, 5000.0)
    ]
    for tag in ("team", "n", "on", "größe", "none"):
        found.append(Condition(TAGS, THERE, tag=tag))
        found += [Condition(TAGS, IS, text, tag=tag) for text in ("vision", "5", "true", "")]
        found += [Condition(TAGS, BEGINS, text, tag=tag) for text in ("vis", "5", "t", "")]
        found += [Condition(TAGS, operator, "5", 5.0, tag=tag) for operator in COMPARING]
    return found


def rows_to_find() -> list[CatalogRow]:
    """Rows that differ in every column that conditions use, and rows that hardly differ."""
    ids = ("order-1", "order-2", "order", "ordes", "w", "größe", "\U0010ffff" * 2, "o'; --", "W")
    statuses = itertools.cycle((RUNNING, FAILED, SUCCESSFUL, SUCCESSFUL))
    values: dict[str, Iterator[Any]] = {
        "kind": itertools.cycle(("dag", "dag", "actor")),
        "name": itertools.cycle(("train", "train[1]", "", "\ud7ff\ue000", "eval")),
        "queue": itertools.cycle(("", "gpu")),
        "parent": itertools.cycle(("", "", "", "order-1")),
        "tags": itertools.cycle(TAGS_OF_ROWS),
        "ended_at": itertools.cycle((None, 1002.0, 2000.5)),
        "priority": itertools.cycle((0, 7)),
    }
    names = [*ids, *(f"many-{number:02}" for number in range(20))]
    return [
        make_row(
            name,
            f"i{number}",
            1,
            submitted_at=1000.0 + number // 3,
            status=next(statuses),
            **{column: next(cycle) for column, cycle in values.items()},
        )
        for number, name in enumerate(names)
    ]


class FilterContract:
    """Conditions of catalog rows."""

    def fill(self, journals: JournalStore) -> list[CatalogRow]:
        """Store the rows in another order than that of a listing, in which they are returned."""
        rows = sorted(rows_to_find(), key=lambda row: (row.submitted_at, row.workflow_id))
        appends = [
            make_append(row.workflow_id, 0, incarnation=row.incarnation, **without_ids(row))
            for row in rows[::-1]
        ]
        assert journals.commit(appends) == [OK] * len(appends)
        return rows

    def check(
        self, journals: JournalStore, rows: list[CatalogRow], newest_first: bool, **query: Any
    ) -> int:
        """Compare the rows that a query finds with those that match it. Returns their number."""
        statuses = query.get("statuses") or (RUNNING, FAILED, SUCCESSFUL)
        wanted = [
            row.workflow_id
            for row in (rows[::-1] if newest_first else rows)
            if row.status in statuses and matches(row, query["conditions"])
        ]
        assert list_ids(journals, newest_first=newest_first, limit=7, **query) == wanted, query
        return len(wanted)

    def test_each_condition(self, journals: JournalStore) -> None:
        """Each condition alone finds the rows that match it."""
        rows = self.fill(journals)
        found = [
            self.check(journals, rows, number % 2 == 0, conditions=(each,))
            for number, each in enumerate(conditions())
        ]
        assert len(set(found)) > 8

    def test_counts(self, journals: JournalStore) -> None:
        """A count is the number of rows on all pages."""
        rows = self.fill(journals)
        for each in conditions()[::5]:
            for statuses in ((), (FAILED, RUNNING)):
                query = CatalogQuery(statuses=statuses, conditions=(each,), limit=3)
                wanted = [
                    row
                    for row in rows
                    if matches(row, (each,)) and (not statuses or row.status in statuses)
                ]
                assert journals.count_catalog(query) == len(wanted), query

    def test_conditions_together(self, journals: JournalStore) -> None:
        """Conditions can be combined with each other and with statuses."""
        rows = self.fill(journals)
        every = conditions()
        some = 0
        for number, first in enumerate(every):
            second = every[(number * 7 + 3) % len(every)]
            statuses = ((FAILED,), (SUCCESSFUL, RUNNING), ())[number % 3]
            newest_first = number % 2 == 0
            query = {"conditions": (first, second), "statuses": statuses}
            some += bool(self.check(journals, rows, newest_first, **query))
        assert some > 10

    def test_conditions_follow_commits(self, journals: JournalStore) -> None:
        """A row is found by its present values only."""
        rows = self.fill(journals)
        old = next(row for row in rows if row.tags.get("team") == "vision")
        append = make_append(
            old.workflow_id,
            1,
            incarnation=old.incarnation,
            tags={"team": "audio"},
            name="new",
            kind="actor",
            ended_at=9.0,
        )
        assert journals.commit([append]) == [OK]
        rows = [append.catalog if row is old else row for row in rows]
        rows.sort(key=lambda row: (row.submitted_at, row.workflow_id))
        for each in (
            Condition(TAGS, IS, "vision", tag="team"),
            Condition(TAGS, IS, "audio", tag="team"),
            Condition("name", IS, "new"),
            Condition("ended_at", Operator.LESS, number=10.0),
        ):
            self.check(journals, rows, True, conditions=(each,))
        gone = append.catalog
        assert journals.delete(gone.workflow_id, gone.incarnation, gone.seq) is OK
        rows.remove(gone)
        for each in (Condition(TAGS, IS, "audio", tag="team"), Condition("name", IS, "new")):
            assert self.check(journals, rows, True, conditions=(each,)) == 0


def without_ids(row: CatalogRow) -> dict[str, Any]:
    """The fields of a row that an append takes beside its ids."""
    ids = ("workflow_id", "incarnation", "seq")
    return {name: getattr(row, name) for name in row.__struct_fields__ if name not in ids}
