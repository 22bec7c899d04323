"""Canceling workflows, and deleting those that nobody drives, which needs no cluster.

A deletion names the end of the journal that it was decided on. Who goes on with the workflow
meanwhile wins, and a coordinator that still believes to have it finds its own commit refused.
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

#: What is pruned unless asked otherwise: it has ended.
ENDED = (WorkflowStatus.SUCCESSFUL, WorkflowStatus.FAILED, WorkflowStatus.CANCELED)

#: How often to look again at a workflow that changes while it is deleted.
ATTEMPTS = 10


def by_lease_alone(holder: Holder) -> None:
    """Who is alive, for those who destroy: a process that is gone may be about to come back.

    Ray restarts a coordinator within seconds, and it goes on with what it was driving.
    """


def cancel(connection: Connection, row: CatalogRow) -> None:
    """Stop a workflow, which its coordinator does.

    Raises:
        WorkflowNotFoundError: it is not there any more.
    """
    connection.ask("cancel", row.workflow_id, incarnation=row.incarnation)


def ask_to_delete(connection: Connection, row: CatalogRow) -> None:
    """Have the coordinator delete a workflow, as `delete` does: it knows what it drives.

    Raises:
        WorkflowNotFoundError: there is another one of its id.
        WorkflowStillActiveError: it is running or pending, or was seconds ago; or the workflow
            that has started it does not know yet that it is there.
    """
    connection.ask("delete", row.workflow_id, incarnation=row.incarnation)


def delete(reader: Reader, row: CatalogRow) -> None:
    """Delete a workflow with all that it has stored. One that is gone by now is deleted.

    What only it was using of the shared packages is left to `shared_items.collect`, which looks at
    all workflows: call that once for many.

    Args:
        reader: where it is.
        row: the workflow as it was when it was found. If its journal has grown since, it is looked
            at again.

    Raises:
        WorkflowNotFoundError: there is another one of its id.
        WorkflowStillActiveError: it is running or pending, or was seconds ago; or the workflow
            that has started it does not know yet that it is there.
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
    """Whether somebody drives a workflow, or may come back to it."""
    return row.status in ACTIVE and reader.claims(by_lease_alone).status(row) in ACTIVE


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


def prune_rows(reader: Reader, rows: Iterable[CatalogRow]) -> Iterator[str]:
    """Delete what `find_prunable` has found; the id of each when it is deleted.

    What somebody else has resumed or deleted since is left out, and what would be started again,
    see `is_awaited`.
    """
    for row in rows:
        stays = is_active(reader, row) or is_awaited(reader.storage, row)
        if not stays and delete_row(reader, row):
            yield row.workflow_id


def prune(
    reader: Reader, older_than: float, statuses: Iterable[WorkflowStatus] | None, keep: int
) -> list[str]:
    """Delete what ended longer ago, but for the newest ones, and the packages that no workflow uses
    any more; the ids of the workflows that were deleted."""
    deleted = list(prune_rows(reader, find_prunable(reader, older_than, statuses, keep)))
    collect(reader.storage)
    return deleted
