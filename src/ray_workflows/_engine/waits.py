"""What waits for time or for signals: what follows when the workflow is woken."""

from __future__ import annotations

from ray_workflows._engine.attempts import after_failure, after_success
from ray_workflows._engine.commands import is_to_be_canceled
from ray_workflows._engine.decision import Events
from ray_workflows._engine.signals import deliveries
from ray_workflows._engine.state import Task, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model import inputs as inp
from ray_workflows._model.plan import TIMER
from ray_workflows._model.tasks import AttemptOutcome
from ray_workflows._model.values import ErrorInfo, Outcome, Value
from ray_workflows.exceptions import SignalTimeoutError


def on_wake(state: WorkflowState, input: inp.Wake, now: float) -> Events:
    if is_to_be_canceled(state):
        return [ev.WorkflowCanceled(at=now)]
    if not state.running:
        return []
    if state.deadline is not None and state.deadline <= now:
        return [ev.WorkflowTimedOut(at=now)]
    events: Events = []
    # What came in time, and was only not looked at, is not too late.
    done: set[int] = set()
    for delivery in deliveries(state):
        done.add(delivery[0].number)
        events += taken(state, *delivery, now)
    due = sorted((at, number) for number, at in state.timers.items() if at <= now)
    closed: set[int] = set()
    for at, number in due:
        task = state.tasks[number]
        around = {frame.number for frame in state.frames_around(task.frame)}
        if number in done or closed & around:
            continue
        if task.options.kind == TIMER:
            events += timer_went_off(state, task, at, now)
            continue
        events += gave_up_waiting(state, task, now)
        last = events[-1]
        if isinstance(last, (ev.WorkflowFailed, ev.WorkflowSucceeded)):
            break
        if isinstance(last, ev.ErrorCaught) and last.frame is not None:
            closed.add(last.frame)
    return events


def timer_went_off(state: WorkflowState, task: Task, at: float, now: float) -> Events:
    succeeded = ev.TaskSucceeded(
        at=now,
        task=task.number,
        attempt=task.attempts + 1,
        value=task.spec.arguments,
        started_at=at - task.options.duration,
        ended_at=now,
    )
    return [succeeded, *after_success(state, task, Outcome(value=task.spec.arguments), now)]


def taken(
    state: WorkflowState, task: Task, name: str, signal_id: str, value: Value, now: float
) -> Events:
    """A task that waited has its signal."""
    event = ev.SignalTaken(
        at=now, task=task.number, name=name, signal_id=signal_id, started_at=task.until
    )
    return [event, *after_success(state, task, Outcome(value=value), now)]


def gave_up_waiting(state: WorkflowState, task: Task, now: float) -> Events:
    """No signal came in time. Nothing is gained by waiting again: there is no retry."""
    error = ErrorInfo(
        type_name=SignalTimeoutError.__name__,
        message=f"Task '{task.task_id}' of workflow '{state.workflow_id}' waited for a signal "
        f"'{task.options.signal}' for {task.options.timeout} s, and none came.",
    )
    failed = ev.TaskFailed(
        at=now,
        task=task.number,
        attempt=task.attempts + 1,
        error=error,
        started_at=task.until,
        ended_at=now,
        why=AttemptOutcome.TIMED_OUT,
    )
    return [failed, *after_failure(state, task, error, now)]
