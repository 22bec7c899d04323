"""The catalog: one queryable summary row per workflow, written in the same commit as its events."""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._model.status import WorkflowStatus

#: The kinds of workflows.
DAG = "dag"
KINDS = (DAG, "function", "actor", "schedule")

#: The value of a tag.
Tag = str | int | float | bool


class CatalogRow(msgspec.Struct, frozen=True):
    """Summary of a workflow. ``seq`` is the number of the last entry of its journal.

    ``status`` is what the journal says; whether its holder still lives is for the reader to add
    (a running workflow with a dead holder is RESUMABLE). Times are seconds since 1970.

    The fields are the one list of the catalog's columns: each storage has these, under these names
    and in this order. A new one comes last and has a default, which rows of before have then.

    ``kind`` is what runs (`KINDS`), and ``name`` what its root function is called. ``parent`` is
    the id of the workflow that started it. ``due_at``: when it is to be woken, if nothing happens
    before.
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


class Holder(msgspec.Struct, frozen=True):
    """Identity of a coordinator process: enough to prove its death without waiting for a lease.

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

    ``damaged`` says of rows that can't be read what is wrong with each; ``rows`` has the others.
    """

    rows: tuple[CatalogRow, ...]
    cursor: str | None = None
    damaged: tuple[str, ...] = ()


class JournalEntry(msgspec.Struct, frozen=True):
    """One entry of a journal as it is stored."""

    seq: int
    commit_id: str
    entry: bytes


class CatalogQuery(msgspec.Struct, frozen=True):
    """Which rows to list. Empty ``statuses``: those that workflows have. A row of the status NONE
    is no workflow: the library keeps it for itself, and lists it only by that status.

    Oldest submission first, or newest first. A cursor continues a listing of the same order.
    """

    statuses: tuple[WorkflowStatus, ...] = ()
    holders: tuple[str, ...] = ()
    limit: int = 1000
    cursor: str | None = None
    newest_first: bool = False
