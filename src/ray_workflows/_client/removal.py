"""Cancels workflows, and deletes those that no coordinator drives, which needs no cluster.

A deletion fails if the journal has grown since it was read: so a resume in between wins. If the
deletion succeeds, the next commit of a coordinator that still drives the workflow is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ray_workflows._client.connection import Connection
from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._coordinator.liveness import Liveness
from ray_workflows._coordinator.recovery import is_awaited
from ray_workflows._environment.shared_items import collect
from ray_workflows._model.catalog import CatalogRow, Holder
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageUnavailableError,
    WorkflowNotFoundError,
    WorkflowStillActiveError,
)
from ray_workflows.storage.base import CommitOutcome

#: The statuses that `prune` deletes by default.
ENDED = (WorkflowStatus.SUCCESSFUL, WorkflowStatus.FAILED, WorkflowStatus.CANCELED)

#: How often a deletion is tried of a workflow whose journal grows meanwhile.
ATTEMPTS = 10


def by_lease_alone(holder: Holder) -> None:
    """A process probe that knows nothing, so that a coordinator counts as alive while its lease
    runs. Deletions use it, because Ray restarts a dead coordinator within seconds, and that one
    goes on with its workflows.
    """


def cancel(connection: Connection, row: CatalogRow) -> None:
    """Have the coordinator cancel a workflow.

    Raises:
        WorkflowNotFoundError: the workflow was deleted.
    """
    connection.ask("cancel", row.workflow_id, incarnation=row.incarnation)


def ask_to_delete(connection: Connection, row: CatalogRow) -> None:
    """Have the coordinator delete a workflow as `delete` does: it knows which ones it drives.

    Raises:
        WorkflowNotFoundError: another workflow has its id.
        WorkflowStillActiveError: it is running or pending, or was seconds ago; or its parent does
            not know yet that it exists.
    """
    connection.ask("delete", row.workflow_id, incarnation=row.incarnation)


def delete(reader: Reader, row: CatalogRow) -> None:
    """Delete a workflow with all that it has stored. If it is gone already, that is no error.

    Shared packages that only this workflow used stay: call `shared_items.collect`, which reads all
    workflows, once after many deletions.

    Args:
        reader: of the storage.
        row: the workflow as it was found. If its journal has grown since, the row is read again.

    Raises:
        WorkflowNotFoundError: another workflow has its id.
        WorkflowStillActiveError: it is running or pending, or was seconds ago; or its parent does
            not know yet that it exists.
    """
    for _ in range(ATTEMPTS):
        if is_active(reader, row):
            raise WorkflowStillActiveError("DELETE", row.workflow_id)
        if is_awaited(reader.storage, row):
            raise WorkflowStillActiveError("DELETE", row.workflow_id, row.parent)
        if delete_row(reader, row):
            return
        try:
            row = read_row(reader.storage, row.workflow_id, row.incarnation)
        except WorkflowNotFoundError as error:
            if error.replaced:
                raise
            return
    raise StorageUnavailableError(
        f"Workflow '{row.workflow_id}' changed each time that it was to be deleted. Try again."
    )


def is_active(reader: Reader, row: CatalogRow) -> bool:
    """Whether a coordinator drives a workflow, or may restart within its lease and go on."""
    return row.status in ACTIVE and reader.claims(by_lease_alone).status(row) in ACTIVE


def delete_row(reader: Reader, row: CatalogRow) -> bool:
    """Delete a workflow that nobody drives. Returns False if it has changed since ``row``."""
    outcome = reader.storage.delete(row.workflow_id, row.incarnation, row.seq)
    return outcome is CommitOutcome.OK


def find_prunable(
    reader: Reader, older_than: float, statuses: Iterable[WorkflowStatus] | None, keep: int
) -> list[CatalogRow]:
    """The workflows that `prune` would delete; those that ended first come first."""
    claims = reader.claims(by_lease_alone)
    latest = reader.storage.now() - older_than
    rows = reader.rows(ENDED if statuses is None else statuses, claims=claims)
    found = sorted(
        ((stopped_at(row, claims), row) for row, _ in rows),
        key=lambda pair: (pair[0], pair[1].workflow_id),
    )
    return [row for at, row in found[: max(0, len(found) - keep)] if at <= latest]


def stopped_at(row: CatalogRow, claims: Liveness) -> float:
    """When a workflow ended, or the latest known time at which it ran, in seconds since 1970."""
    if row.ended_at is not None:
        return row.ended_at
    times = [row.submitted_at, row.started_at or row.submitted_at]
    holder = claims.holders.get(row.holder)
    if holder is not None:
        times.append(holder.lease_until)
    return max(times)


def prune_rows(reader: Reader, rows: Iterable[CatalogRow]) -> Iterator[str]:
    """Delete the workflows of `find_prunable`. Yields the id of each that was deleted.

    Leaves out those that were resumed or deleted since, and children that their parents would start
    again; see `is_awaited`.
    """
    for row in rows:
        stays = is_active(reader, row) or is_awaited(reader.storage, row)
        if not stays and delete_row(reader, row):
            yield row.workflow_id


def prune(
    reader: Reader, older_than: float, statuses: Iterable[WorkflowStatus] | None, keep: int
) -> list[str]:
    """Delete workflows that ended longer ago, except the ``keep`` newest, and packages that no
    workflow uses any more. Returns the ids of the deleted workflows."""
    deleted = list(prune_rows(reader, find_prunable(reader, older_than, statuses, keep)))
    collect(reader.storage)
    return deleted
