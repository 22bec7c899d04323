"""What is done to each workflow that a filter means. One that fails keeps no other from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import ray

from ray_workflows._client import signals, workflows
from ray_workflows._client.code_changes import FORK, CodeChanges
from ray_workflows._client.connection import connect
from ray_workflows._client.environments import ResumeOptions
from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.filters import Filter
from ray_workflows._model.status import WORKFLOWS, WorkflowStatus
from ray_workflows.exceptions import CoordinatorUnavailableError, StorageUnavailableError

#: How many at once. Each waits for a commit, and the coordinator commits together what comes
#: together.
THREADS = 16

#: The statuses that a filter means that names none.
TO_CANCEL = (*ACTIVE, WorkflowStatus.RESUMABLE)
TO_RESUME = (WorkflowStatus.RESUMABLE, WorkflowStatus.FAILED)
TO_DELETE = tuple(status for status in WORKFLOWS if status not in ACTIVE)
TO_SIGNAL = (*TO_RESUME, *ACTIVE)
TO_FORK = WORKFLOWS


class BulkResult(msgspec.Struct, frozen=True):
    """What became of one of many workflows.

    Attributes:
        workflow_id: its id.
        value: what the verb gave: of `resume_many` an ObjectRef of the output, of `fork_many` the
            id of the new workflow; None of the others, and of a dry run.
        error: why it could not be done; None if it was.
    """

    workflow_id: str
    value: Any = None
    error: Exception | None = None


def find_targets(
    reader: Reader, filter: Filter, usual: Iterable[WorkflowStatus]
) -> list[CatalogRow]:
    """The workflows that a filter means, the oldest first, all before anything is done.

    ``usual``: the statuses that it means if it names none.

    Raises:
        ValueError: the filter is empty.
    """
    if not filter.statuses and not filter.conditions:
        raise ValueError("The filter is empty, which would mean all workflows. Write id=* for all.")
    statuses = filter.statuses or tuple(usual)
    return [row for row, _ in reader.rows(statuses, conditions=filter.conditions)]


def do_each(
    targets: list[CatalogRow], verb: Callable[[CatalogRow], Any], threads: int = THREADS
) -> list[BulkResult]:
    """Do something to each workflow.

    Raises:
        StorageUnavailableError: the storage is away, or (CoordinatorUnavailableError) the
            coordinator: no other could be done.
    """

    def do(row: CatalogRow) -> BulkResult:
        try:
            return BulkResult(row.workflow_id, verb(row))
        except (StorageUnavailableError, CoordinatorUnavailableError):
            raise
        except Exception as error:
            return BulkResult(row.workflow_id, error=error)

    if threads == 1:
        return list(map(do, targets))
    with ThreadPoolExecutor(threads, "ray-workflows-bulk") as pool:
        return list(pool.map(do, targets))


def many(
    filter: Filter,
    usual: Iterable[WorkflowStatus],
    verb: Callable[[CatalogRow], Any],
    *,
    dry_run: bool,
    threads: int = THREADS,
) -> list[BulkResult]:
    """Do something to each workflow that a filter means, or only say to which."""
    targets = find_targets(connect(), filter, usual)
    if dry_run:
        return [BulkResult(row.workflow_id) for row in targets]
    return do_each(targets, verb, threads)


def cancel_many(filter: Filter, dry_run: bool) -> list[BulkResult]:
    return many(filter, TO_CANCEL, cancel, dry_run=dry_run)


def cancel(row: CatalogRow) -> None:
    connect().ask("cancel", row.workflow_id, incarnation=row.incarnation)


def delete_many(filter: Filter, dry_run: bool) -> list[BulkResult]:
    return many(filter, TO_DELETE, delete, dry_run=dry_run)


def delete(row: CatalogRow) -> None:
    connect().ask("delete", row.workflow_id, incarnation=row.incarnation)


def signal_many(
    filter: Filter, name: str, value: Any, signal_id: str | None, dry_run: bool
) -> list[BulkResult]:
    def send(row: CatalogRow) -> None:
        signals.send(connect(), row.workflow_id, name, value, signal_id)

    return many(filter, TO_SIGNAL, send, dry_run=dry_run)


def resume_many(
    filter: Filter, canceled: bool, resume_options: ResumeOptions, dry_run: bool
) -> list[BulkResult]:
    usual = (*TO_RESUME, WorkflowStatus.CANCELED) if canceled else TO_RESUME
    changes = CodeChanges(connect().storage)

    def resume(row: CatalogRow) -> ray.ObjectRef:
        return workflows.resumed_ref(row.workflow_id, canceled, resume_options, changes)

    # One after the other: what each needs is looked for here first.
    results = many(filter, usual, resume, dry_run=dry_run, threads=1)
    changes.warn()
    return results


def fork_many(
    filter: Filter, from_task: str, resume_options: ResumeOptions, dry_run: bool
) -> list[BulkResult]:
    changes = CodeChanges(connect().storage)

    def fork(row: CatalogRow) -> str:
        return workflows.forked(
            connect(), row.workflow_id, from_task, None, resume_options, changes
        )

    results = many(filter, TO_FORK, fork, dry_run=dry_run, threads=1)
    changes.warn(FORK)
    return results
