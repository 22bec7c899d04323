"""Verbs on each workflow that matches a filter. An error at one does not stop the others.

A verb acts on the workflows that were listed. If one was deleted since and another workflow has its
id, the verb fails for it: the filter did not match that other workflow.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import ray

from ray_workflows._client import environments, reads, removal, signals, workflows
from ray_workflows._client.code_changes import FORK, CodeChanges
from ray_workflows._client.connection import Connection, connect
from ray_workflows._client.environments import ResumeOptions
from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._client.waiter import OutputError
from ray_workflows._model.answers import Accepted, Finished
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.filters import Filter
from ray_workflows._model.status import WORKFLOWS, WorkflowStatus
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    StorageUnavailableError,
    WorkflowAlreadyRunningError,
)

logger = logging.getLogger(__name__)

#: How many workflows at once. Each waits for a commit, and the coordinator groups the commits of
#: requests that come at the same time.
THREADS = 16

#: The statuses that a filter without a status stands for, by verb.
TO_CANCEL = (*ACTIVE, WorkflowStatus.RESUMABLE)
TO_RESUME = (WorkflowStatus.RESUMABLE, WorkflowStatus.FAILED)
TO_DELETE = tuple(status for status in WORKFLOWS if status not in ACTIVE)
TO_SIGNAL = (*TO_RESUME, *ACTIVE)
TO_FORK = WORKFLOWS


class BulkResult(msgspec.Struct, frozen=True):
    """The result of a verb for one of many workflows.

    Attributes:
        workflow_id: its id.
        value: for `resume_many` an ObjectRef of the output, for `fork_many` the id of the new
            workflow; None for other verbs, and in a dry run.
        error: why the verb failed; None if it did not.
    """

    workflow_id: str
    value: Any = None
    error: Exception | None = None


# -- the verbs -----------------------------------------------------------------------------


class Verb(NamedTuple):
    """An operation on each of many workflows.

    ``usual``: the statuses that a filter without a status stands for. ``act``: does it to one
    workflow, given its row as listed, and returns the result. ``threads``: to how many at once.
    """

    usual: tuple[WorkflowStatus, ...]
    act: Callable[[CatalogRow], Any]
    threads: int = THREADS


def canceling(connection: Connection) -> Verb:
    return Verb(TO_CANCEL, functools.partial(removal.cancel, connection))


def deleting(reader: Reader) -> Verb:
    """Delete through the coordinator, which may be driving the workflow; without a coordinator,
    delete from the storage."""
    if isinstance(reader, Connection):
        return Verb(TO_DELETE, functools.partial(removal.ask_to_delete, reader))
    return Verb(TO_DELETE, functools.partial(removal.delete, reader))


def signaling(connection: Connection, name: str, value: Any, signal_id: str | None) -> Verb:
    """Raises:
    SerializationError: the value can't be stored.
    """
    pickled = signals.pickle_signal(name, value)
    return Verb(TO_SIGNAL, lambda row: signals.send(connection, row, name, pickled, signal_id))


def resuming(
    connection: Connection, canceled: bool, resume_options: ResumeOptions, changes: CodeChanges
) -> Verb:
    """``changes`` collects the differences between the code here and that of the workflows."""

    def resume(row: CatalogRow) -> Accepted | Finished:
        # The workflow may have failed since it was listed: then `resume` checks its environment.
        row = environments.row_to_resume(connection.storage, row.workflow_id, row.incarnation)
        return environments.resume(connection, row, canceled, resume_options, changes.look)

    usual = (*TO_RESUME, WorkflowStatus.CANCELED) if canceled else TO_RESUME
    # One after the other: each first checks in this process what the workflow needs.
    return Verb(usual, resume, threads=1)


def forking(
    connection: Connection, from_task: str, resume_options: ResumeOptions, changes: CodeChanges
) -> Verb:
    """``changes`` collects the differences between the code here and that of the forks."""

    def fork(row: CatalogRow) -> str:
        return workflows.forked(connection, row, from_task, None, resume_options, changes)

    return Verb(TO_FORK, fork, threads=1)


# -- doing them ----------------------------------------------------------------------------


def do_many(
    reader: Reader, filter: Filter, verb: Verb, agree: Callable[[list[CatalogRow]], bool]
) -> list[BulkResult]:
    """Apply a verb to each workflow that matches a filter.

    ``agree`` gets these workflows, the oldest first, and says whether to go on. If not, the results
    only name them.

    Raises:
        ValueError: the filter is empty.
        StorageUnavailableError: as for `do_each`.
    """
    targets = find_targets(reader, filter, verb.usual)
    if agree(targets):
        return do_each(targets, verb)
    return [BulkResult(row.workflow_id) for row in targets]


def find_targets(
    reader: Reader, filter: Filter, usual: tuple[WorkflowStatus, ...]
) -> list[CatalogRow]:
    """The workflows that match a filter, the oldest first, all before anything is done.

    ``usual``: the statuses that a filter without a status stands for.

    Raises:
        ValueError: the filter is empty.
    """
    if not filter.statuses and not filter.conditions:
        raise ValueError("The filter is empty, which would mean all workflows. Write id=* for all.")
    statuses = filter.statuses or usual
    return [row for row, _ in reader.rows(statuses, conditions=filter.conditions)]


def do_each(targets: list[CatalogRow], verb: Verb) -> list[BulkResult]:
    """Apply a verb to each workflow.

    Raises:
        StorageUnavailableError: the storage is away, or (CoordinatorUnavailableError) the
            coordinator: the verb would fail for all others too.
    """

    def do(row: CatalogRow) -> BulkResult:
        try:
            return BulkResult(row.workflow_id, verb.act(row))
        except (StorageUnavailableError, CoordinatorUnavailableError):
            raise
        except Exception as error:
            return BulkResult(row.workflow_id, error=error)

    if verb.threads == 1:
        return list(map(do, targets))
    with ThreadPoolExecutor(verb.threads, "ray-workflows-bulk") as pool:
        return list(pool.map(do, targets))


# -- for users of Python -------------------------------------------------------------------


def unless(dry_run: bool) -> Callable[[list[CatalogRow]], bool]:
    """Agree without asking anybody, except in a dry run."""
    return lambda targets: not dry_run


def cancel_many(filter: Filter, dry_run: bool) -> list[BulkResult]:
    connection = connect()
    return do_many(connection, filter, canceling(connection), unless(dry_run))


def delete_many(filter: Filter, dry_run: bool) -> list[BulkResult]:
    connection = connect()
    return do_many(connection, filter, deleting(connection), unless(dry_run))


def signal_many(
    filter: Filter, name: str, value: Any, signal_id: str | None, dry_run: bool
) -> list[BulkResult]:
    connection = connect()
    verb = signaling(connection, name, value, signal_id)
    return do_many(connection, filter, verb, unless(dry_run))


def resume_many(
    filter: Filter, canceled: bool, resume_options: ResumeOptions, dry_run: bool
) -> list[BulkResult]:
    connection = connect()
    changes = CodeChanges(connection.storage)
    verb = resuming(connection, canceled, resume_options, changes)
    results = do_many(connection, filter, verb, unless(dry_run))
    changes.warn()
    return [with_output(connection, each) for each in results]


def with_output(connection: Connection, resumed: BulkResult) -> BulkResult:
    """A result of `resuming`, with an ObjectRef of the output as its value."""
    if resumed.value is None:
        return resumed
    ref = workflows.output_ref(
        connection, resumed.workflow_id, resumed.value.incarnation, fresh=True
    )
    return msgspec.structs.replace(resumed, value=ref)


def fork_many(
    filter: Filter, from_task: str, resume_options: ResumeOptions, dry_run: bool
) -> list[BulkResult]:
    connection = connect()
    changes = CodeChanges(connection.storage)
    verb = forking(connection, from_task, resume_options, changes)
    results = do_many(connection, filter, verb, unless(dry_run))
    changes.warn(FORK)
    return results


def resume_all(include_failed: bool) -> list[tuple[str, ray.ObjectRef]]:
    """Resume all. Each ObjectRef gives the output, or raises the reason if the resume failed."""
    connection = connect()
    wanted = {WorkflowStatus.RESUMABLE}
    if include_failed:
        wanted.add(WorkflowStatus.FAILED)
    resumed = []
    changes = CodeChanges(connection.storage)
    verb = resuming(connection, False, ResumeOptions(), changes)
    for row, _ in reads.list_rows(connection, wanted):
        workflow_id, incarnation = row.workflow_id, row.incarnation
        try:
            verb.act(row)
        except WorkflowAlreadyRunningError:
            pass  # Another cluster was faster. The output is the same, of the same run.
        except Exception as error:
            # Go on with the others.
            logger.error("Workflow '%s' could not be resumed: %s", workflow_id, error)
            resumed.append((workflow_id, ray.put(OutputError(error))))
            continue
        ref = workflows.output_ref(connection, workflow_id, incarnation, fresh=True)
        resumed.append((workflow_id, ref))
    changes.warn()
    return resumed
