"""Outputs: waits for a workflow or a task, and reads its output."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray_workflows._capture.values import as_task_error
from ray_workflows._client.connection import Connection
from ray_workflows._client.patience import HERE, Surroundings, watch
from ray_workflows._client.progress import ProgressDisplay
from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._client.views import WorkflowView
from ray_workflows._coordinator.recovery import read_state
from ray_workflows._coordinator.requests import Watched
from ray_workflows._engine.lifecycle import TIMED_OUT
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Outcome
from ray_workflows.exceptions import (
    OutputNotAvailableError,
    StorageCorruptError,
    WorkflowCancellationError,
    WorkflowExecutionError,
    WorkflowNotFoundError,
    WorkflowTimeoutError,
    did_you_mean,
)
from ray_workflows.storage.base import Storage
from ray_workflows.storage.histories import History, unless_deleted

#: How often to poll the storage for a workflow that another cluster drives, in seconds.
POLL_SECONDS = 0.5

#: How long to wait for the takeover of a workflow whose coordinator is dead, if this cluster has
#: ``auto_resume``, in seconds. Its limits may be reached, or it may not be able to read the
#: workflow.
ORPHAN_SECONDS = 30.0

#: The error of a workflow without an output.
WorkflowEndError = WorkflowExecutionError | WorkflowCancellationError | OutputNotAvailableError

ENDED_BADLY = (WorkflowStatus.FAILED, WorkflowStatus.CANCELED)


def read_row(storage: Storage, workflow_id: str, incarnation: str = "") -> CatalogRow:
    """The catalog row of a workflow.

    ``incarnation``: which one of this id; any if it is empty.

    Raises:
        WorkflowNotFoundError: there is none, or (``replaced``) another one has its id.
    """
    row = storage.read_catalog(workflow_id)
    if row is None:
        raise WorkflowNotFoundError(workflow_id)
    if incarnation not in ("", row.incarnation):
        raise WorkflowNotFoundError(workflow_id, replaced=True)
    return row


def read_output(reader: Reader, row: CatalogRow, output: Outcome, live: Any = None) -> Any:
    """The output of a successful workflow, from the outcome in its journal.

    ``live``: the ObjectRef of a live copy, which may be lost by now.
    """
    values = reader.values(row.incarnation)
    if live is not None and output.value is not None and isinstance(output.value.data, Blob):
        values.live = {output.value.data.key: live}
    with unless_deleted(reader.storage, row):
        return values.read_outcome(output, where=f"output of '{row.workflow_id}'")


def seen_output(reader: Reader, watched: Watched | None) -> tuple[bool, Any]:
    """Whether the answer of a watch has the output of a workflow, and the output."""
    if watched is None or watched.row is None or watched.output is None:
        return False, None
    return True, read_output(reader, watched.row, watched.output, watched.live)


def workflow_output(reader: Reader, row: CatalogRow) -> Any:
    """The output of a workflow that has succeeded.

    Raises:
        Exception: the output is an error of the kind that `read_outcome` raises.
    """
    # It is in the last entry, or before an entry without events: see `repairs`.
    for event in reversed(History(reader.storage, row, row.seq - 1).events()):
        if isinstance(event, ev.WorkflowSucceeded):
            return read_output(reader, row, event.output)
    output = read_state(reader.storage, row, whole=False).state.output
    if output is not None:
        return read_output(reader, row, output)
    raise StorageCorruptError(
        f"Workflow '{row.workflow_id}' is SUCCESSFUL, but its journal ({row.seq} entries) has no "
        f"output."
    )


def as_raised(error: WorkflowEndError) -> BaseException:
    """The error of a workflow in the form that is raised: ``except RayTaskError`` catches it too,
    because under ``ray.workflow`` all outputs came from an actor, and errors as RayTaskErrors."""
    return as_task_error(f"workflow '{error.workflow_id}'", str(error), error)


def execution_error(reader: Reader, row: CatalogRow) -> WorkflowExecutionError:
    """The error of a failed workflow, with its cause chained."""
    state = read_state(reader.storage, row, whole=False).state
    info, task_id = state.error, state.failed_task
    reason = f"{info.type_name}: {info.message}" if info is not None else None
    if info is not None and info.type_name == TIMED_OUT:
        return WorkflowTimeoutError(row.workflow_id)
    error = WorkflowExecutionError(row.workflow_id, task_id, reason)
    if info is not None:
        where = f"task '{task_id}'" if task_id else f"workflow '{row.workflow_id}'"
        with unless_deleted(reader.storage, row):
            error.__cause__ = reader.values(row.incarnation).read_error(info, where=where)
    return error


def settled_output(reader: Reader, row: CatalogRow, status: WorkflowStatus) -> Any:
    """The output of a workflow after a wait, or raise its error."""
    if status is WorkflowStatus.SUCCESSFUL:
        return workflow_output(reader, row)
    if status is WorkflowStatus.FAILED:
        raise as_raised(execution_error(reader, row))
    if status is WorkflowStatus.CANCELED:
        raise as_raised(WorkflowCancellationError(row.workflow_id))
    raise not_there(row, not_driven(row))


def not_driven(row: CatalogRow) -> str:
    why = f" ({row.error})" if row.error else ""
    return f"it is in RESUMABLE status{why}, please resume it: resume({row.workflow_id!r})."


def not_there(
    row: CatalogRow, reason: str, task_id: str | None = None, cause: BaseException | None = None
) -> BaseException:
    """The error for a missing output, with its reason and cause."""
    error = OutputNotAvailableError(row.workflow_id, task_id, reason)
    error.__cause__ = cause
    return as_raised(error)


def stopped_output(reader: Reader, row: CatalogRow, status: WorkflowStatus) -> Any:
    """The output of a workflow that no coordinator drives, for `get_output`: errors are
    ValueErrors, because nothing failed during this call."""
    if status is WorkflowStatus.SUCCESSFUL:
        return workflow_output(reader, row)
    if status is WorkflowStatus.FAILED:
        cause = execution_error(reader, row)
        raise not_there(row, f"it failed: {cause}", cause=as_raised(cause))
    if status is WorkflowStatus.CANCELED:
        raise not_there(row, "it was canceled.")
    raise not_there(row, not_driven(row))


class TaskOutput:
    """Follows a journal until a task has its result."""

    def __init__(self, reader: Reader, row: CatalogRow, task_id: str) -> None:
        self.reader = reader
        self.row = row
        self.task_id = task_id
        self.view = WorkflowView(reader.storage, row)

    def read(self) -> tuple[bool, Any]:
        """Whether the result is there, and the result."""
        self.view.read()
        task = self.view.tasks.get(self.task_id)
        if task is not None and task.outcome is not None:
            return True, self.value(task.outcome)
        return False, None

    def missing(self, status: WorkflowStatus) -> BaseException:
        """The error if the result is missing and no coordinator drives the workflow."""
        task = self.view.tasks.get(self.task_id)
        reason = f"the workflow is {status} and the task has no result."
        cause = None
        if task is None:
            reason = f"there is no such task.{did_you_mean(self.task_id, self.view.tasks)}"
        elif task.error is not None:
            values = self.reader.values(self.row.incarnation)
            with unless_deleted(self.reader.storage, self.row):
                cause = values.read_error(task.error, where=f"task '{self.task_id}'")
            reason = f"it failed: {cause}"
        return not_there(self.row, reason, self.task_id, cause)

    def value(self, outcome: Outcome) -> Any:
        if not outcome.stored:
            reason = "it was not checkpointed (checkpoint=False)."
            raise not_there(self.row, reason, self.task_id)
        values = self.reader.values(self.row.incarnation)
        where = f"result of task '{self.task_id}' of workflow '{self.row.workflow_id}'"
        with unless_deleted(self.reader.storage, self.row):
            return values.read_outcome(outcome, where=where)


class Awaited:
    """An output that a caller waits for. Call `look` after each change until the output is there.

    Args:
        reader: reads it. workflow_id: the workflow. task_id: the task; None: the workflow's output.
        fresh: the caller started or resumed the workflow, or saw it running: then its failure
        raises
            WorkflowExecutionError. Otherwise a missing output is a ValueError.
        incarnation: the incarnation that is meant; empty: the present one. After its deletion the
            workflow is not found, even if another one has its id.
        monotonic: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        reader: Reader,
        workflow_id: str,
        task_id: str | None,
        *,
        fresh: bool,
        incarnation: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reader = reader
        self.workflow_id = workflow_id
        self.fresh = fresh
        self.incarnation = incarnation
        self.monotonic = monotonic
        self.row = self.read_row()
        self.incarnation = self.row.incarnation
        self.task = TaskOutput(reader, self.row, task_id) if task_id is not None else None
        #: Since when no coordinator drives it, on the monotonic clock.
        self.orphan_since: float | None = None

    @property
    def after(self) -> int | None:
        """The watch to set: growth beyond this seq, or (None) the end."""
        return self.task.view.seq if self.task is not None else None

    def read_row(self) -> CatalogRow:
        """Its present catalog row."""
        return read_row(self.reader.storage, self.workflow_id, self.incarnation)

    def is_about(self, watched: Watched | None) -> bool:
        """Whether the answer of a watch, which knows ids alone, is about this incarnation."""
        row = None if watched is None else watched.row
        return row is not None and row.incarnation == self.incarnation

    def look(self) -> tuple[bool, Any]:
        """Whether the output is there, and the output; raises if there will be none."""
        self.row = self.read_row()
        status = self.reader.status(self.row)
        if self.task is not None:
            done, value = self.task.read()
            if done:
                return True, value
        if status in ACTIVE:
            self.fresh = True
            self.orphan_since = None
            return False, None
        if self.goes_on(status):
            return False, None
        if self.task is not None and not (self.fresh and status in ENDED_BADLY):
            raise self.task.missing(status)
        read = settled_output if self.fresh else stopped_output
        return True, read(self.reader, self.row, status)

    def goes_on(self, status: WorkflowStatus) -> bool:
        """Whether this cluster's coordinator may take it over soon."""
        if status is not WorkflowStatus.RESUMABLE or self.row.released:
            return False
        if not self.reader.resumes_orphans:
            return False
        now = self.monotonic()
        if self.orphan_since is None:
            self.orphan_since = now
        return now < self.orphan_since + ORPHAN_SECONDS


def await_output(
    connection: Connection,
    workflow_id: str,
    task_id: str | None,
    *,
    fresh: bool = False,
    incarnation: str = "",
    tick: Callable[[], float] | None = None,
    here: Surroundings = HERE,
) -> Any:
    """Wait for an output and return it. ``fresh``, ``incarnation`` and errors are as in `Awaited`,
    ``tick`` and ``here`` as in `Patience`."""
    awaited = Awaited(
        connection,
        workflow_id,
        task_id,
        fresh=fresh,
        incarnation=incarnation,
        monotonic=here.monotonic,
    )
    seen, elsewhere = -1, False
    while True:
        done, value = awaited.look()
        if done:
            return value
        if elsewhere:
            # Another cluster drives it, so poll.
            here.sleep(POLL_SECONDS)
        asked = here.monotonic()
        watched = watch(connection, workflow_id, awaited.after, tick, here)
        if task_id is None and awaited.is_about(watched):
            done, value = seen_output(connection, watched)
            if done:
                return value
        elsewhere = watched is not None and watched.row is None
        if awaited.row.seq == seen and not elsewhere and here.monotonic() < asked + POLL_SECONDS:
            # The coordinator's limit of long polls is reached.
            here.sleep(POLL_SECONDS)
        seen = awaited.row.seq


def await_shown(connection: Connection, workflow_id: str, incarnation: str) -> Any:
    """Wait for the output of a workflow that the caller has started, and show its progress."""
    row = read_row(connection.storage, workflow_id, incarnation)
    with ProgressDisplay(connection, row) as display:
        return await_output(
            connection,
            workflow_id,
            None,
            fresh=True,
            incarnation=incarnation,
            tick=display.update,
        )
