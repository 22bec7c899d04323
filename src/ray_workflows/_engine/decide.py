"""`decide`: inputs become events. It judges and changes nothing; `evolve` does the reverse.

Handlers are found by name: input ``AttemptRaised`` is handled by ``on_attempt_raised``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ray_workflows._engine.names import assign_task_ids
from ray_workflows._engine.retry import (
    after_crash,
    after_preemption,
    floor,
    next_attempt_at,
)
from ray_workflows._engine.signals import deliveries, is_known
from ray_workflows._engine.state import Frame, Phase, Task, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model import inputs as inp
from ray_workflows._model.plan import TIMER
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import AttemptOutcome
from ray_workflows._model.values import ErrorInfo, Outcome, Value
from ray_workflows.exceptions import SignalTimeoutError

Events = list[ev.Event]

SETTLED = (WorkflowStatus.SUCCESSFUL, WorkflowStatus.FAILED, WorkflowStatus.CANCELED)

#: Signals are kept for these: they run, will run, or may be resumed without saying more.
TAKES_SIGNALS = (WorkflowStatus.PENDING, WorkflowStatus.RUNNING, WorkflowStatus.FAILED)


def decide(state: WorkflowState, input: inp.Input, now: float) -> Events:
    """The events that follow from an input, in order; empty if it changes nothing.

    Stale and duplicate reports change nothing. ``now`` is in seconds since 1970.
    """
    return HANDLERS[type(input)](state, input, now)


# -- asked ---------------------------------------------------------------------------------


def on_submit(state: WorkflowState, input: inp.Submit, now: float) -> Events:
    if state.status is not WorkflowStatus.NONE:
        return []
    events: Events = [
        ev.WorkflowSubmitted(
            at=now,
            plan=input.plan,
            task_ids=assign_task_ids(state.names, [spec.name for spec in input.plan.tasks]),
            metadata=input.metadata,
            holder=input.holder,
            request_id=input.request_id,
            timeout=input.timeout,
        )
    ]
    if input.start or input.history:
        events.append(ev.WorkflowStarted(at=now))
    events += [msgspec.structs.replace(event, at=now) for event in input.history]
    if input.history and not input.start:
        # What has a past has been started, and waits as one that is resumed.
        events.append(ev.WorkflowResumed(at=now, holder=input.holder))
    return events


def on_claim(state: WorkflowState, input: inp.Claim, now: float) -> Events:
    if state.status not in WorkflowStatus.non_terminating_status():
        return []
    if state.holder == input.holder and not state.released:
        return []
    return [ev.WorkflowClaimed(at=now, holder=input.holder)]


def on_start(state: WorkflowState, input: inp.Start, now: float) -> Events:
    if state.status is not WorkflowStatus.PENDING:
        return []
    return [ev.WorkflowStarted(at=now)]


def on_resume(state: WorkflowState, input: inp.Resume, now: float) -> Events:
    if state.status in (WorkflowStatus.NONE, WorkflowStatus.SUCCESSFUL):
        return []
    held = state.holder == input.holder and not state.released
    if held and state.status in WorkflowStatus.non_terminating_status():
        return []
    events: Events = [
        ev.WorkflowResumed(
            at=now, holder=input.holder, change=input.change, request_id=input.request_id
        )
    ]
    if state.output is not None:
        # It had succeeded before it was canceled: there is nothing to run.
        events.append(ev.WorkflowSucceeded(at=now, output=state.output))
    elif input.start:
        events.append(ev.WorkflowStarted(at=now))
    return events


def on_cancel(state: WorkflowState, input: inp.Cancel, now: float) -> Events:
    if state.status in (WorkflowStatus.NONE, WorkflowStatus.CANCELED):
        return []
    return [ev.WorkflowCanceled(at=now)]


def on_request_cancel(state: WorkflowState, input: inp.RequestCancel, now: float) -> Events:
    if state.status in SETTLED or state.cancel_requested:
        return []
    return [ev.CancelRequested(at=now)]


def on_release(state: WorkflowState, input: inp.Release, now: float) -> Events:
    if state.status not in WorkflowStatus.non_terminating_status() or state.released:
        return []
    return [ev.WorkflowReleased(at=now, error=input.error)]


def on_wake(state: WorkflowState, input: inp.Wake, now: float) -> Events:
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


def on_signal(state: WorkflowState, input: inp.Signal, now: float) -> Events:
    """It is only kept. Who takes it is decided when the holder wakes, after all that came with it:
    a signal may end the workflow, and then those that came with it would be refused."""
    if state.status not in TAKES_SIGNALS or is_known(state, input.name, input.signal_id):
        return []
    return [
        ev.SignalReceived(at=now, name=input.name, signal_id=input.signal_id, value=input.value)
    ]


# -- reported ------------------------------------------------------------------------------


def reported_task(state: WorkflowState, report: inp.AttemptNews) -> Task | None:
    """The task that a report is about, if it is about the attempt that counts."""
    task = state.tasks.get(report.task)
    if (
        task is None
        or task.phase is not Phase.ACTIVE
        or report.epoch != state.epoch
        or report.attempt != task.attempts + 1
        or state.status is WorkflowStatus.CANCELED
        or state.released
    ):
        return None
    return task


def on_attempt_runs(state: WorkflowState, input: inp.AttemptRuns, now: float) -> Events:
    if reported_task(state, input) is None:
        return []
    return [
        ev.AttemptStarted(
            at=now,
            task=input.task,
            attempt=input.attempt,
            started_at=input.started_at,
            node=input.node,
        )
    ]


def on_found_unplaceable(state: WorkflowState, input: inp.FoundUnplaceable, now: float) -> Events:
    if input.epoch != state.epoch or not state.running:
        return []
    tasks = tuple(number for number in input.tasks if number in state.active)
    return [ev.TasksUnplaceable(at=now, tasks=tasks, reason=input.reason)] if tasks else []


def on_attempt_returned(state: WorkflowState, input: inp.AttemptReturned, now: float) -> Events:
    task = reported_task(state, input)
    if task is None:
        return []
    succeeded = ev.TaskSucceeded(
        at=now,
        task=task.number,
        attempt=input.attempt,
        value=input.value,
        started_at=input.started_at,
        ended_at=input.ended_at,
        node=input.node,
        metadata=input.metadata,
    )
    if not task.is_output:
        # Most are not: nothing else follows.
        return [succeeded]
    return [succeeded, *after_success(state, task, Outcome(value=input.value), now)]


def on_attempt_returned_plan(
    state: WorkflowState, input: inp.AttemptReturnedPlan, now: float
) -> Events:
    task = reported_task(state, input)
    if task is None:
        return []
    return [
        ev.TaskContinued(
            at=now,
            task=task.number,
            attempt=input.attempt,
            plan=input.plan,
            task_ids=assign_task_ids(state.names, [spec.name for spec in input.plan.tasks]),
            first=state.next_task,
            started_at=input.started_at,
            ended_at=input.ended_at,
            node=input.node,
            metadata=input.metadata,
        )
    ]


def on_attempt_raised(state: WorkflowState, input: inp.AttemptRaised, now: float) -> Events:
    task = reported_task(state, input)
    if task is None:
        return []
    retry_at = next_attempt_at(task, state.incarnation, now) if input.retryable else None
    why = AttemptOutcome.TIMED_OUT if input.timed_out else AttemptOutcome.RAISED
    if retry_at is not None:
        return [attempt_failed(input, retry_at, why, charged=True, now=now)]
    return [task_failed(input, why, now), *after_failure(state, task, input.error, now)]


def on_attempt_crashed(state: WorkflowState, input: inp.AttemptCrashed, now: float) -> Events:
    task = reported_task(state, input)
    if task is None:
        return []
    if input.crash is inp.Crash.PREEMPTED:
        retry_at, why = after_preemption(task, now), AttemptOutcome.PREEMPTED
    else:
        retry_at, why = after_crash(task, state.incarnation, now), AttemptOutcome.CRASHED
    if retry_at is not None:
        charged = why == AttemptOutcome.CRASHED
        return [attempt_failed(input, retry_at, why, charged=charged, now=now)]
    # Not caught by catch_exceptions if the process was killed: that is about what user code does.
    follows = after_failure if input.crash is inp.Crash.EXITED else uncaught
    return [task_failed(input, why, now), *follows(state, task, input.error, now)]


def on_attempt_lost_storage(
    state: WorkflowState, input: inp.AttemptLostStorage, now: float
) -> Events:
    task = reported_task(state, input)
    if task is None:
        return []
    retry_at = now + floor(task)
    return [attempt_failed(input, retry_at, AttemptOutcome.LOST_STORAGE, charged=False, now=now)]


def on_attempt_lost_input(state: WorkflowState, input: inp.AttemptLostInput, now: float) -> Events:
    task = reported_task(state, input)
    if task is None:
        return []
    failed = attempt_failed(input, now, AttemptOutcome.LOST_VALUE, charged=False, now=now)
    return [failed, *lost(state, input.lost, now)]


def on_attempt_found_corruption(
    state: WorkflowState, input: inp.AttemptFoundCorruption, now: float
) -> Events:
    if reported_task(state, input) is None:
        return []
    return on_release(state, inp.Release(error=input.error), now)


def on_lose_values(state: WorkflowState, input: inp.LoseValues, now: float) -> Events:
    return lost(state, input.tasks, now)


# -- consequences --------------------------------------------------------------------------


def attempt_failed(
    report: inp.AttemptRaised | inp.AttemptCrashed | inp.AttemptLostInput | inp.AttemptLostStorage,
    retry_at: float,
    why: str,
    *,
    charged: bool,
    now: float,
) -> ev.AttemptFailed:
    return ev.AttemptFailed(
        at=now,
        task=report.task,
        attempt=report.attempt,
        error=report.error,
        charged=charged,
        retry_at=retry_at,
        started_at=report.started_at,
        why=why,
        node=report.node,
    )


def task_failed(
    report: inp.AttemptRaised | inp.AttemptCrashed, why: str, now: float
) -> ev.TaskFailed:
    return ev.TaskFailed(
        at=now,
        task=report.task,
        attempt=report.attempt,
        error=report.error,
        started_at=report.started_at,
        ended_at=report.ended_at,
        why=why,
        node=report.node,
    )


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


def after_failure(state: WorkflowState, task: Task, error: ErrorInfo, now: float) -> Events:
    """Who catches the error of a task that failed; if nobody does, it fails the workflow."""
    if task.options.catch_exceptions:
        return caught(state, task, None, error, now)
    if state.status is WorkflowStatus.FAILED:
        # To catch it would end a workflow that is settled. It is caught when it is resumed.
        return []
    # The nearest continuation around it whose parent catches.
    for frame in state.frames_around(task.frame):
        if frame.wraps:
            return caught(state, task, frame, error, now)
    return uncaught(state, task, error, now)


def uncaught(state: WorkflowState, task: Task, error: ErrorInfo, now: float) -> Events:
    """Only the first error that nobody caught fails the workflow; siblings report after it.

    One that was resumed and is pending has such siblings too, and fails anew.
    """
    if state.status is WorkflowStatus.FAILED:
        return []
    return [ev.WorkflowFailed(at=now, error=error, task_id=task.task_id)]


def caught(
    state: WorkflowState, task: Task, frame: Frame | None, error: ErrorInfo, now: float
) -> Events:
    outcome = Outcome(error=error, wrapped=True)
    number = None if frame is None else frame.number
    event = ev.ErrorCaught(at=now, task=task.number, frame=number, error=error)
    if frame is None:
        return [event, *after_success(state, task, outcome, now)]
    return [event, *after_frame(state, frame, outcome, now)]


def after_success(state: WorkflowState, task: Task, outcome: Outcome, now: float) -> Events:
    """What follows from a task's result: the end of the workflow, or nothing."""
    if not task.is_output:
        return []
    return after_frame(state, task.frame, outcome.wrap_if(task.options.catch_exceptions), now)


def after_frame(state: WorkflowState, frame: Frame, outcome: Outcome, now: float) -> Events:
    if frame.parent is not None:
        return []  # The parent is not an output: see Frame.
    return [ev.WorkflowSucceeded(at=now, output=outcome.wrap_if(frame.wraps))]


def lost(state: WorkflowState, tasks: Iterable[int], now: float) -> Events:
    """Only results that are not stored, and that somebody can still want, can be lost."""
    numbers = []
    for number in tasks:
        task = state.tasks.get(number)
        if (
            task is not None
            and task.phase is Phase.SUCCEEDED
            and task.outcome is not None
            and not task.outcome.stored
        ):
            numbers.append(number)
    return [ev.ValuesLost(at=now, tasks=tuple(sorted(set(numbers))))] if numbers else []


HANDLERS: dict[type[inp.Input], Callable[[WorkflowState, Any, float], Events]] = {
    inp.Submit: on_submit,
    inp.Claim: on_claim,
    inp.Start: on_start,
    inp.Resume: on_resume,
    inp.Cancel: on_cancel,
    inp.RequestCancel: on_request_cancel,
    inp.Release: on_release,
    inp.Wake: on_wake,
    inp.Signal: on_signal,
    inp.AttemptRuns: on_attempt_runs,
    inp.FoundUnplaceable: on_found_unplaceable,
    inp.AttemptReturned: on_attempt_returned,
    inp.AttemptReturnedPlan: on_attempt_returned_plan,
    inp.AttemptRaised: on_attempt_raised,
    inp.AttemptCrashed: on_attempt_crashed,
    inp.AttemptLostInput: on_attempt_lost_input,
    inp.AttemptLostStorage: on_attempt_lost_storage,
    inp.AttemptFoundCorruption: on_attempt_found_corruption,
    inp.LoseValues: on_lose_values,
}
