"""Rules for reports of attempts: the events for their tasks and the workflow."""

from __future__ import annotations

import msgspec

from ray_workflows._engine.decision import ACTIVE, Events
from ray_workflows._engine.names import assign_task_ids
from ray_workflows._engine.retry import (
    after_crash,
    after_preemption,
    floor,
    next_attempt_at,
)
from ray_workflows._engine.state import Frame, Phase, Task, WorkflowState
from ray_workflows._engine.values import lose
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.plan import Plan
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import AttemptOutcome
from ray_workflows._model.values import ErrorInfo, Outcome

# -- reported ------------------------------------------------------------------------------


def reported_task(state: WorkflowState, report: msg.AttemptNews) -> Task | None:
    """The task of a report, if the report is about its current attempt; else None."""
    task = state.tasks.get(report.task)
    if (
        task is None
        or task.phase is not Phase.ACTIVE
        or report.epoch != state.epoch
        or report.attempt != task.attempts + 1
        or state.status is WorkflowStatus.CANCELED
        or state.released
        or state.ending is not None
    ):
        return None
    return task


def on_attempt_runs(state: WorkflowState, message: msg.AttemptRuns, now: float) -> Events:
    if reported_task(state, message) is None:
        return []
    return [
        ev.AttemptStarted(
            at=now,
            task=message.task,
            attempt=message.attempt,
            started_at=message.started_at,
            node=message.node,
        )
    ]


def on_found_unplaceable(state: WorkflowState, message: msg.FoundUnplaceable, now: float) -> Events:
    if message.epoch != state.epoch or not state.running:
        return []
    tasks = tuple(number for number in message.tasks if number in state.active)
    return [ev.TasksUnplaceable(at=now, tasks=tasks, reason=message.reason)] if tasks else []


def on_attempt_returned(state: WorkflowState, message: msg.AttemptReturned, now: float) -> Events:
    task = reported_task(state, message)
    if task is None:
        return []
    if message.messages and state.status not in ACTIVE:
        return [too_late_to_send(message, now)]
    succeeded = ev.TaskSucceeded(
        at=now,
        task=task.number,
        attempt=message.attempt,
        value=message.value,
        started_at=message.started_at,
        ended_at=message.ended_at,
        node=message.node,
        metadata=message.metadata,
        messages=message.messages,
    )
    if not task.is_output:
        # Most tasks are no output: nothing else follows.
        return [succeeded]
    return [succeeded, *after_success(state, task, Outcome(value=message.value), now)]


def on_attempt_returned_plan(
    state: WorkflowState, message: msg.AttemptReturnedPlan, now: float
) -> Events:
    task = reported_task(state, message)
    if task is None:
        return []
    if message.messages and state.status not in ACTIVE:
        return [too_late_to_send(message, now)]
    plan = message.plan if message.plan.tasks[-1].name else begun_anew(task, message.plan)
    return [
        ev.TaskContinued(
            at=now,
            task=task.number,
            attempt=message.attempt,
            plan=plan,
            task_ids=assign_task_ids(state.names, [spec.name for spec in plan.tasks]),
            first=state.next_task,
            started_at=message.started_at,
            ended_at=message.ended_at,
            node=message.node,
            metadata=message.metadata,
            messages=message.messages,
        )
    ]


def begun_anew(task: Task, plan: Plan) -> Plan:
    """The plan of a task that is begun anew, under its name: the worker knows its id alone."""
    (spec,) = plan.tasks
    return msgspec.structs.replace(
        plan, tasks=(msgspec.structs.replace(spec, name=task.spec.name),)
    )


def on_attempt_raised(state: WorkflowState, message: msg.AttemptRaised, now: float) -> Events:
    task = reported_task(state, message)
    if task is None:
        return []
    retry_at = next_attempt_at(task, state.incarnation, now) if message.retryable else None
    step = message.step if task.number in state.bodies else ""
    why = AttemptOutcome.TIMED_OUT if message.timed_out else AttemptOutcome.RAISED
    if retry_at is not None:
        failed = attempt_failed(message, retry_at, why, charged=True, now=now)
        return [msgspec.structs.replace(failed, step=step)]
    ended = msgspec.structs.replace(task_failed(message, why, now), step=step)
    return [ended, *after_failure(state, task, message.error, now)]


def on_attempt_crashed(state: WorkflowState, message: msg.AttemptCrashed, now: float) -> Events:
    task = reported_task(state, message)
    if task is None:
        return []
    if message.crash is msg.Crash.PREEMPTED:
        retry_at, why = after_preemption(task, now), AttemptOutcome.PREEMPTED
    else:
        retry_at, why = after_crash(task, state.incarnation, now), AttemptOutcome.CRASHED
    if retry_at is not None:
        charged = why == AttemptOutcome.CRASHED
        return [attempt_failed(message, retry_at, why, charged=charged, now=now)]
    # catch_exceptions does not catch a killed process: it is for errors that user code raises.
    follows = after_failure if message.crash is msg.Crash.EXITED else uncaught
    return [task_failed(message, why, now), *follows(state, task, message.error, now)]


def on_attempt_lost_storage(
    state: WorkflowState, message: msg.AttemptLostStorage, now: float
) -> Events:
    task = reported_task(state, message)
    if task is None:
        return []
    retry_at = now + floor(task)
    return [attempt_failed(message, retry_at, AttemptOutcome.LOST_STORAGE, charged=False, now=now)]


def on_attempt_lost_input(
    state: WorkflowState, message: msg.AttemptLostInput, now: float
) -> Events:
    task = reported_task(state, message)
    if task is None:
        return []
    failed = attempt_failed(message, now, AttemptOutcome.LOST_VALUE, charged=False, now=now)
    return [failed, *lose(state, message.lost, now)]


def on_attempt_found_corruption(
    state: WorkflowState, message: msg.AttemptFoundCorruption, now: float
) -> Events:
    if reported_task(state, message) is None:
        return []
    # The workflow of a current attempt is not released.
    return [ev.WorkflowReleased(at=now, error=message.error)] if state.status in ACTIVE else []


# -- consequences --------------------------------------------------------------------------


def attempt_failed(
    report: msg.AttemptRaised | msg.AttemptCrashed | msg.AttemptLostInput | msg.AttemptLostStorage,
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


def too_late_to_send(
    report: msg.AttemptReturned | msg.AttemptReturnedPlan | msg.BodyProgress, now: float
) -> ev.AttemptFailed:
    """The event for a report with messages after the workflow's end: only an open workflow delivers
    messages, so the task runs again if the workflow is resumed."""
    return ev.AttemptFailed(
        at=now,
        task=report.task,
        attempt=report.attempt,
        error=ErrorInfo(
            type_name="WorkflowExecutionError",
            message="The workflow had failed before it could start what the task wanted to start.",
        ),
        charged=False,
        retry_at=now,
        started_at=report.started_at,
        why=AttemptOutcome.CANCELED,
        node=report.node,
    )


def task_failed(
    report: msg.AttemptRaised | msg.AttemptCrashed, why: str, now: float
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


def after_failure(state: WorkflowState, task: Task, error: ErrorInfo, now: float) -> Events:
    """Give the error of a failed task to the nearest task that catches exceptions; without one,
    the error fails the workflow."""
    if task.options.catch_exceptions:
        return caught(state, task, None, error, now)
    if state.status is WorkflowStatus.FAILED:
        # Catching it would end a settled workflow. It is caught when the workflow is resumed.
        return []
    # The innermost enclosing continuation whose parent catches, or step.
    for frame in state.frames_around(task.frame):
        if frame.wraps or frame.step:
            return caught(state, task, frame, error, now)
    return uncaught(state, task, error, now)


def uncaught(state: WorkflowState, task: Task, error: ErrorInfo, now: float) -> Events:
    """The first error that neither a step nor a task catches fails the workflow. Siblings that fail
    after it change nothing.

    A resumed, pending workflow may have such siblings too: then it fails again.
    """
    if state.status is WorkflowStatus.FAILED:
        return []
    for frame in state.frames_around(task.frame):
        if frame.step:
            return caught(state, task, frame, error, now)
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
    """The events after a task's result: the end of the workflow, or none."""
    if not task.is_output:
        return []
    return after_frame(state, task.frame, outcome.wrap_if(task.options.catch_exceptions), now)


def after_frame(state: WorkflowState, frame: Frame, outcome: Outcome, now: float) -> Events:
    if frame.parent is not None:
        return []  # The parent is not an output: see Frame.
    return [ev.WorkflowSucceeded(at=now, output=outcome.wrap_if(frame.wraps))]
