"""The present status of a task, and why it has not ended. Reads a view; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ray_workflows._client.reader import Observation
from ray_workflows._client.views import TaskView, WorkflowView, close_attempt, describe_error
from ray_workflows._engine.lifecycle import TIMED_OUT
from ray_workflows._engine.state import Phase, Task
from ray_workflows._model.plan import LISTENER
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import AttemptInfo, AttemptOutcome, TaskInfo, TaskStatus

#: The most tasks that a reason names; it counts the others.
MAX_NAMED = 3

#: Reasons that don't depend on the task.
PENDING = "its workflow is PENDING: as many others run as may"
UNDRIVEN = "nobody drives its workflow: resume it"
FAILED = "its workflow has failed: resume it"
CANCELED = "its workflow was canceled"
OVERRAN = "its workflow ran into its timeout"


#: Statuses of tasks by phase, in a workflow that is driven.
STATUSES = {
    Phase.WAITING: TaskStatus.WAITING,
    Phase.ACTIVE: TaskStatus.QUEUED,
    Phase.AWAITING_TIMER: TaskStatus.WAITING,
    Phase.AWAITING_SIGNAL: TaskStatus.WAITING,
    Phase.AWAITING_STEPS: TaskStatus.WAITING,
    Phase.CONTINUED: TaskStatus.CONTINUED,
    Phase.SUCCEEDED: TaskStatus.SUCCESSFUL,
    Phase.FAILED: TaskStatus.FAILED,
}

#: Statuses of tasks that have not ended.
UNFINISHED = (TaskStatus.WAITING, TaskStatus.QUEUED, TaskStatus.RUNNING, TaskStatus.RETRYING)


def task_status(view: WorkflowView, task: TaskView, seen: Observation) -> TaskStatus:
    if task.outcome is not None:
        return TaskStatus.SUCCESSFUL
    found = view.state.tasks.get(task.number)
    if found is None:
        if task.error is not None:
            return TaskStatus.FAILED
        # The engine dropped it: a later tail continuation has replaced it, or its continuation was
        # abandoned.
        return TaskStatus.CONTINUED if task.attempts and task.ended_at else TaskStatus.ABANDONED
    status = STATUSES[found.phase]
    if status not in UNFINISHED:
        return status
    if is_stopped(view, seen):
        return TaskStatus.CANCELED
    if found.phase is Phase.ACTIVE:
        return active_status(view, task, found, seen)
    return status


def is_stopped(view: WorkflowView, seen: Observation) -> bool:
    """Whether the workflow's attempts were stopped with it."""
    error = view.state.error
    return seen.status is WorkflowStatus.CANCELED or (
        seen.status is WorkflowStatus.FAILED and error is not None and error.type_name == TIMED_OUT
    )


def active_status(view: WorkflowView, task: TaskView, found: Task, seen: Observation) -> TaskStatus:
    """The status of a task that can run."""
    if not seen.driven or seen.status is WorkflowStatus.PENDING:
        return TaskStatus.WAITING
    if found.until > seen.now:
        return TaskStatus.RETRYING
    if found.options.kind == LISTENER:
        return TaskStatus.WAITING
    running = task.running == (view.state.epoch, found.attempts + 1)
    return TaskStatus.RUNNING if running else TaskStatus.QUEUED


def task_reason(
    view: WorkflowView, task: TaskView, status: TaskStatus, seen: Observation
) -> str | None:
    """Why a task has not ended; None if it has."""
    found = view.state.tasks.get(task.number)
    if found is None or status not in (*UNFINISHED, TaskStatus.CANCELED):
        return None
    if status is TaskStatus.CANCELED:
        return CANCELED if seen.status is WorkflowStatus.CANCELED else OVERRAN
    if status is TaskStatus.RUNNING:
        where = f" on node {task.node}" if task.node else ""
        return f"a worker{where} runs attempt {found.attempts + 1} since {moment(task.started_at)}"
    if status is TaskStatus.RETRYING:
        error = describe_error(task.last_error) or "it was lost"
        return (
            f"attempt {found.attempts} failed ({error.splitlines()[0]}); the next one starts at "
            f"{moment(found.until)}"
        )
    if status is TaskStatus.QUEUED:
        epoch, unplaceable = task.unplaceable
        if unplaceable and epoch == view.state.epoch:
            return unplaceable
        return f"attempt {found.attempts + 1} was handed to Ray and does not run yet"
    return waiting_reason(view, found, seen)


def waiting_reason(view: WorkflowView, found: Task, seen: Observation) -> str:
    if seen.status is WorkflowStatus.PENDING:
        return PENDING
    if seen.status is WorkflowStatus.FAILED and found.phase is not Phase.ACTIVE:
        return FAILED
    if not seen.driven:
        return UNDRIVEN
    if found.phase is Phase.AWAITING_TIMER:
        return f"it sleeps until {moment(found.until)}"
    if found.phase is Phase.AWAITING_SIGNAL:
        gives_up = view.state.timers.get(found.number)
        until = "" if gives_up is None else f", at the latest until {moment(gives_up)}"
        return f"it waits for the signal '{found.options.signal}'{until}"
    if found.phase is Phase.AWAITING_STEPS:
        return f"it waits for {named(running_steps(view, found))}"
    if found.phase is Phase.ACTIVE:
        return "it waits for an event"
    return f"it waits for {named(missing_inputs(view, found))}"


def missing_inputs(view: WorkflowView, found: Task) -> Iterator[str]:
    """Ids of the upstream tasks without a result yet."""
    for number in found.upstream:
        if view.state.tasks[number].phase is not Phase.SUCCEEDED:
            yield view.state.tasks[number].task_id


def running_steps(view: WorkflowView, found: Task) -> Iterator[str]:
    """Ids of the tasks whose results are those of the steps for which a body waits."""
    for number in view.state.bodies[found.number].frames.values():
        frame = view.state.frames[number]
        yield view.state.tasks[frame.output].task_id


def named(ids: Iterator[str]) -> str:
    """Some task ids, and how many more there are."""
    distinct = list(dict.fromkeys(ids))
    shown = ", ".join(f"'{task_id}'" for task_id in distinct[:MAX_NAMED])
    more = len(distinct) - MAX_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def moment(at: float | None) -> str:
    """A time, in UTC and to the second."""
    if at is None:
        return "?"
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    except (OverflowError, ValueError, OSError):
        # A timeout may exceed any calendar.
        return f"{at:.3g} s after 1970"


def task_infos(view: WorkflowView, seen: Observation) -> list[TaskInfo]:
    """Every task of a workflow, in the order of creation."""
    return [task_info(view, task, seen) for task in view.by_number.values()]


def task_info(view: WorkflowView, task: TaskView, seen: Observation) -> TaskInfo:
    status = task_status(view, task, seen)
    error = task.error or (task.outcome.error if task.outcome is not None else None)
    if status is TaskStatus.RETRYING:
        error = task.last_error
    retries = status is TaskStatus.RETRYING
    return TaskInfo(
        task_id=task.task_id,
        status=status,
        attempts=task.attempts,
        started_at=task.started_at,
        ended_at=task.ended_at,
        upstream=tuple(task.upstream),
        error=describe_error(error),
        reason=task_reason(view, task, status, seen),
        retry_at=view.state.tasks[task.number].until if retries else None,
        history=history(view, task),
        starts=tuple(task.starts.values()),
    )


def history(view: WorkflowView, task: TaskView) -> tuple[AttemptInfo, ...]:
    """The recorded attempts of a task."""
    found = view.state.tasks.get(task.number)
    if found is None or task.running != (view.state.epoch, found.attempts + 1):
        close_attempt(task, AttemptOutcome.CANCELED)
    return tuple(task.history)
