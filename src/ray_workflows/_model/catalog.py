"""The catalog: one queryable summary row per workflow, written in the same commit as its events."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from enum import Enum, unique
from typing import Any

import msgspec

from ray_workflows._model.status import WorkflowStatus

#: The ``due_at`` of a workflow that waits for requests and not for a time: the end of year 9999.
#: (JSON has no infinity.)
NEVER = 253402300799.0

#: The kinds of workflows.
DAG = "dag"
FUNCTION = "function"
KINDS = (DAG, FUNCTION, "actor", "schedule")

#: The value of a tag.
Tag = str | int | float | bool


class CatalogRow(msgspec.Struct, frozen=True):
    """Summary of a workflow. ``seq`` is the number of the last entry of its journal, ``snapshot``
    that of the last one with a snapshot; 0 if there is none.

    ``status`` is that of the journal. The reader adds whether the holder still lives: a running
    workflow with a dead holder is RESUMABLE. Times are seconds since 1970.

    The fields are the one list of the catalog's columns: each storage has these, under these names
    and in this order. A new column comes last and has a default, which older rows get.

    ``kind`` says what runs (`KINDS`), ``name`` is that of the root function. ``parent`` is
    the id of the workflow that started it. ``due_at``: when its coordinator has to act if nothing
    happens before, or `NEVER`; None if it has something to do now, has ended, or is a
    row of 0.1.0.
    """

    workflow_id: str
    incarnation: str
    seq: int
    status: WorkflowStatus
    holder: str
    submitted_at: float
    started_at: float | None = None
    ended_at: float | None = None
    metadata: dict[str, Any] = {}
    plan_digest: str = ""
    error: str | None = None
    released: bool = False
    kind: str = DAG
    name: str = ""
    queue: str = ""
    priority: int = 0
    parent: str = ""
    due_at: float | None = None
    tags: dict[str, Tag] = {}
    snapshot: int = 0


class Holder(msgspec.Struct, frozen=True):
    """Identity of a coordinator process, by which others can prove its death without waiting for
    the lease.

    ``coordinator`` is stable over restarts of one coordinator actor. ``host`` identifies the
    booted machine and its process namespace; ``pid`` and ``started_ticks`` the process on it.
    """

    holder_id: str
    coordinator: str
    host: str
    pid: int
    started_ticks: int
    lease_until: float = 0.0


class Append(msgspec.Struct, frozen=True):
    """One conditional append: the entry goes in only if ``expected_seq`` is the journal's end.

    ``entry`` holds one or more encoded events and becomes number ``expected_seq + 1``;
    ``catalog`` is the summary after it. ``expected_seq`` 0 creates the workflow, and is stale if
    the id is in use. ``commit_id`` lets an ambiguous append be settled by reading.
    """

    workflow_id: str
    incarnation: str
    expected_seq: int
    commit_id: str
    entry: bytes
    catalog: CatalogRow


class Page(msgspec.Struct, frozen=True):
    """A page of catalog rows. ``cursor`` continues after it; None at the end.

    ``damaged`` says what is wrong with each row that can't be read; ``rows`` has the others.
    """

    rows: tuple[CatalogRow, ...]
    cursor: str | None = None
    damaged: tuple[str, ...] = ()


class JournalEntry(msgspec.Struct, frozen=True):
    """One entry of a journal as it is stored."""

    seq: int
    commit_id: str
    entry: bytes


#: The columns that conditions can compare: texts, times, and the tags.
TEXT_COLUMNS = ("workflow_id", "kind", "name", "queue", "parent")
TIME_COLUMNS = ("submitted_at", "ended_at")
TAGS = "tags"


@unique
class Operator(str, Enum):
    """How a column is compared."""

    IS = "="
    BEGINS = "begins"
    #: The text is not empty, or the tag exists.
    THERE = "there"
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="


class Condition(msgspec.Struct, frozen=True):
    """A condition that a row must satisfy to be listed.

    A text is compared with ``text``, a time with ``number``, in seconds since 1970. The tag named
    ``tag`` is compared with ``number`` if its value is a number, else with ``text``. (``number`` is
    None if ``text`` is not a number; then no numeric tag matches.) The text of a boolean tag is
    ``true`` or ``false``. A missing value matches nothing.

    Raises:
        ValueError: the column does not support the operator.
    """

    column: str
    operator: Operator
    text: str = ""
    number: float | None = None
    tag: str = ""

    def __post_init__(self) -> None:
        has_text, has_number = self.column in TEXT_COLUMNS, self.column in TIME_COLUMNS
        if self.column == TAGS:
            has_text, has_number = True, self.number is not None
        if not (
            (has_text and self.operator in (Operator.IS, Operator.BEGINS, Operator.THERE))
            or (has_number and self.operator in COMPARISONS)
        ):
            raise ValueError(f"{self.column!r} can't be compared by {self.operator.value!r}.")


def matches(row: CatalogRow, conditions: Iterable[Condition]) -> bool:
    """Whether all conditions hold for a row. Each storage implements this in its own way."""
    return all(holds(condition, row) for condition in conditions)


def holds(condition: Condition, row: CatalogRow) -> bool:
    """Whether a condition holds for a row."""
    if condition.column == TAGS:
        value = row.tags.get(condition.tag)
    else:
        value = getattr(row, condition.column)
        # An empty text counts as missing.
        value = None if value == "" else value
    return value is not None and compares(condition, value)


def compares(condition: Condition, value: Tag) -> bool:
    """Whether a condition holds for a value."""
    if condition.operator is Operator.THERE:
        return True
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, str):
        begins = condition.operator is Operator.BEGINS and value.startswith(condition.text)
        return begins or (condition.operator is Operator.IS and value == condition.text)
    compare = COMPARISONS.get(condition.operator)
    return compare is not None and condition.number is not None and compare(value, condition.number)


COMPARISONS: dict[Operator, Callable[[float, float], bool]] = {
    Operator.IS: operator.eq,
    Operator.LESS: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.MORE: operator.gt,
    Operator.AT_LEAST: operator.ge,
}


class CatalogQuery(msgspec.Struct, frozen=True):
    """Which rows to list. Empty ``statuses``: all but NONE. A row of the status NONE belongs to the
    library and is not a workflow; only a query for that status lists it.

    Oldest submission first, or newest first. A cursor continues a listing of the same order.
    """

    statuses: tuple[WorkflowStatus, ...] = ()
    holders: tuple[str, ...] = ()
    limit: int = 1000
    cursor: str | None = None
    newest_first: bool = False
    conditions: tuple[Condition, ...] = ()
