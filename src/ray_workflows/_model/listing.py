"""Public records of listings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ray_workflows._model.catalog import NEVER, CatalogRow, Tag
from ray_workflows._model.status import WorkflowStatus


class WorkflowInfo(msgspec.Struct, frozen=True):
    """A workflow in a listing. Times are seconds since 1970; None: it has not happened yet.

    Attributes:
        workflow_id: its id.
        status: its status.
        kind: what runs: ``"dag"``, or ``"function"`` for a durable function.
        name: of its root function; empty for a workflow of a release before 0.2.0 that has
            not gone on since.
        queue: the queue that it is in; empty: none.
        priority: its priority there.
        parent: the id of the workflow that started it; empty: none did.
        tags: its tags.
        metadata: its metadata.
        submitted_at: when it was submitted.
        started_at: when it was started.
        ended_at: when it ended.
        due_at: when its next timer is due, if nothing happens before; None: it waits for no time,
            or has something to do now.
        error: the type and first line of its error, if it failed.
    """

    workflow_id: str
    status: WorkflowStatus
    kind: str
    name: str
    queue: str
    priority: int
    parent: str
    tags: dict[str, Tag]
    metadata: dict[str, Any]
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    due_at: float | None
    error: str | None


def info_of(row: CatalogRow, status: WorkflowStatus) -> WorkflowInfo:
    """A row with the status that users see."""
    columns = {name: getattr(row, name) for name in WorkflowInfo.__struct_fields__}
    due_at = None if row.due_at == NEVER else row.due_at
    return WorkflowInfo(**{**columns, "status": status, "due_at": due_at})


class WorkflowPage(msgspec.Struct, frozen=True):
    """A page of workflows, to be iterated.

    Attributes:
        rows: the workflows.
        next: give it as ``after`` to have the next page; None: this is the last.
        damaged: what is wrong with rows that are left out because they can't be read.
    """

    rows: tuple[WorkflowInfo, ...]
    next: str | None = None
    damaged: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[WorkflowInfo]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)
