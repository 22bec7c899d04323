"""Canceling workflows, and deleting those that nobody drives, which needs no cluster.

A deletion names the end of the journal that it was decided on. Who goes on with the workflow
meanwhile wins, and a coordinator that still believes to have it finds its own commit refused.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_workflows._client.connection import Connection
from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._coordinator.liveness import Liveness
from ray_workflows._coordinator.recovery import is_awaited
from ray_workflows._environment.shared_items import collect
from ray_workflows._model.catalog import CatalogRow, Holder
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageUnavailableError, WorkflowStillActiveError
from ray_workflows.storage.base import CommitOutcome

#: What is pruned unless asked otherwise: it has ended.
ENDED = (WorkflowStatus.SUCCESSFUL, WorkflowStatus.FAILED, WorkflowStatus.CANCELED)

#: How often to look again at a workflow that changes while it is deleted.
ATTEMPTS = 10


def by_lease_alone(holder: Holder) -> None:
    """Who is alive, for those who destroy: a process that is gone may be about to come back.

    Ray restarts a coordinator within seconds, and it goes on with what it was driving.
    """


def cancel(connection: Connection, workflow_id: str) -> None:
    """Stop a workflow, which its coordinator does.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
    """
    row = read_row(connection.storage, workflow_id)
    connection.ask("cancel", workflow_id, incarnation=row.incarnation)


def delete(reader: Reader, workflow_id: str) -> None:
    """Delete a workflow with all that it has stored.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        WorkflowStillActiveError: it is running or pending, or was seconds ago; or the workflow
            that has started it does not know yet that it is there.
    """
    workflow_id = validate_workflow_id(workflow_id)
    for _ in range(ATTEMPTS):
        row = read_row(reader.storage, workflow_id)
        if reader.claims(by_lease_alone).status(row) in ACTIVE:
            raise WorkflowStillActiveError("DELETE", workflow_id)
        if is_awaited(reader.storage, row):
            raise WorkflowStillActiveError("DELETE", workflow_id, row.parent)
        if delete_row(reader, row):
            collect(reader.storage)
            return
    raise StorageUnavailableError(
        f"Workflow '{workflow_id}' changed each time that it was to be deleted. Try again."
    )


def delete_row(reader: Reader, row: CatalogRow) -> bool:
    """Delete a workflow that nobody drives; False if it is not any more what ``row`` says."""
    outcome = reader.storage.delete(row.workflow_id, row.incarnation, row.seq)
    return outcome is CommitOutcome.OK


def find_prunable(
    reader: Reader, older_than: float, statuses: Iterable[WorkflowStatus] | None, keep: int
) -> list[CatalogRow]:
    """What `prune` would delete, the longest ended first."""
    claims = reader.claims(by_lease_alone)
    latest = reader.storage.now() - older_than
    rows = reader.rows(ENDED if statuses is None else statuses, claims=claims)
    found = sorted(
        ((stopped_at(row, claims), row) for row, _ in rows),
        key=lambda pair: (pair[0], pair[1].workflow_id),
    )
    return [row for at, row in found[: max(0, len(found) - keep)] if at <= latest]


def stopped_at(row: CatalogRow, claims: Liveness) -> float:
    """When a workflow ended, or was last heard of, in seconds since 1970."""
    if row.ended_at is not None:
        return row.ended_at
    times = [row.submitted_at, row.started_at or row.submitted_at]
    holder = claims.holders.get(row.holder)
    if holder is not None:
        times.append(holder.lease_until)
    return max(times)


def prune(
    reader: Reader, older_than: float, statuses: Iterable[WorkflowStatus] | None, keep: int
) -> list[str]:
    """Delete what ended longer ago, but for the newest ones; the ids of what was deleted.

    What was resumed or deleted by somebody else meanwhile is left out, and what would be started
    again, see `is_awaited`.
    """
    rows = find_prunable(reader, older_than, statuses, keep)
    deleted = [
        row.workflow_id
        for row in rows
        if not is_awaited(reader.storage, row) and delete_row(reader, row)
    ]
    if deleted:
        collect(reader.storage)
    return deleted
