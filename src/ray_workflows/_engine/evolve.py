"""`evolve` applies events to the state. No other code changes a workflow's state.

Appliers are found by name: ``apply_task_succeeded`` applies event ``TaskSucceeded``. Each adds the
new commands; `commands.commands` derives all that are due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_workflows._engine import bodies, lifecycle, outbox
from ray_workflows._engine.commands import commands, deliveries, start_attempt
from ray_workflows._engine.frames import (
    activate,
    announce,
    close_frame,
    end_body,
    end_wait,
    open_frame,
    resolve,
    resolve_frame,
    store_results,
)
from ray_workflows._engine.signals import keep, restart, take
from ray_workflows._engine.sources import SOURCES
from ray_workflows._engine.state import Phase, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.commands import (
    CancelAttempt,
    Command,
    Settle,
    WakeAt,
)
from ray_workflows._model.tasks import AttemptOutcome
from ray_workflows._model.values import Outcome

#: Ends without an error of user code: after several in a row the next attempt waits longer.
SETBACKS = (AttemptOutcome.CRASHED, AttemptOutcome.PREEMPTED, AttemptOutcome.LOST_STORAGE)


def evolve(state: WorkflowState, event: ev.Event) -> list[Command]:
    """Apply one event to the state, in place, and return the new commands."""
    deltas: list[Command] = []
    APPLIERS[type(event)](state, event, deltas)
    return deltas


# -- the workflow --------------------------------------------------------------------------


def apply_workflow_submitted(
    state: WorkflowState, event: ev.WorkflowSubmitted, deltas: list[Command]
) -> None:
    lifecycle.apply_workflow_submitted(state, event)
    open_frame(
        state,
        event.plan,
        event.task_ids,
        parent=None,
        wraps=False,
        checkpoint=True,
        stored=True,
    )


def apply_workflow_claimed(
    state: WorkflowState, event: ev.WorkflowClaimed, deltas: list[Command]
) -> None:
    lifecycle.apply_workflow_claimed(state, event)
    deltas += commands(state)


def apply_workflow_started(
    state: WorkflowState, event: ev.WorkflowStarted, deltas: list[Command]
) -> None:
    starts = state.started_at is None
    lifecycle.apply_workflow_started(state, event)
    if starts:
        for task in state.tasks.values():
            if not task.unmet:
                activate(state, task, event.at)
    else:
        # The workflow has its whole timeout again, and so have tasks that wait for a signal.
        for waiting in state.waits.values():
            for number in waiting:
                restart(state, state.tasks[number], event.at)
    deltas += commands(state)


def apply_workflow_resumed(
    state: WorkflowState, event: ev.WorkflowResumed, deltas: list[Command]
) -> None:
    lifecycle.apply_workflow_resumed(state, event)
    for task in [each for each in state.tasks.values() if each.phase is Phase.FAILED]:
        # Another body, of which it was a step, may have gone back.
        if task.number in state.tasks:
            bodies.go_back(state, task, deltas)
            task.phase = Phase.WAITING
            task.charged = task.preempted = task.setbacks = 0
            # An input may have been lost since the failure.
            if not task.unmet:
                activate(state, task, event.at)
    deltas += deliveries(state)


def apply_workflow_canceled(
    state: WorkflowState, event: ev.WorkflowCanceled, deltas: list[Command]
) -> None:
    stop_attempts(state, deltas)
    lifecycle.apply_workflow_canceled(state, event)
    deltas.append(Settle())


def stop_attempts(state: WorkflowState, deltas: list[Command]) -> None:
    if state.ending is not None:
        return  # `WorkflowEnding` has stopped them.
    for number in state.active:
        # A new number, so that reports of the stopped attempt are ignored after a resumption.
        state.tasks[number].attempts += 1
        state.tasks[number].last_end = AttemptOutcome.CANCELED
        deltas.append(CancelAttempt(number))


def apply_cancel_requested(
    state: WorkflowState, event: ev.CancelRequested, deltas: list[Command]
) -> None:
    lifecycle.apply_cancel_requested(state, event)
    deltas.append(WakeAt(0.0))


def apply_workflow_succeeded(
    state: WorkflowState, event: ev.WorkflowSucceeded, deltas: list[Command]
) -> None:
    lifecycle.apply_workflow_succeeded(state, event)
    deltas.append(Settle())


def apply_workflow_failed(
    state: WorkflowState, event: ev.WorkflowFailed, deltas: list[Command]
) -> None:
    # Attempts in flight go on: tasks that they complete need not run again after a resumption.
    lifecycle.apply_workflow_failed(state, event)
    deltas.append(Settle())


def apply_workflow_ending(
    state: WorkflowState, event: ev.WorkflowEnding, deltas: list[Command]
) -> None:
    stop_attempts(state, deltas)
    outbox.apply_workflow_ending(state, event)


def apply_workflow_timed_out(
    state: WorkflowState, event: ev.WorkflowTimedOut, deltas: list[Command]
) -> None:
    stop_attempts(state, deltas)
    lifecycle.apply_workflow_timed_out(state, event)
    deltas.append(Settle())


def apply_workflow_released(
    state: WorkflowState, event: ev.WorkflowReleased, deltas: list[Command]
) -> None:
    deltas += [CancelAttempt(number) for number in state.active]
    lifecycle.apply_workflow_released(state, event)
    deltas.append(Settle())


# -- attempts and tasks --------------------------------------------------------------------


def apply_attempt_started(
    state: WorkflowState, event: ev.AttemptStarted, deltas: list[Command]
) -> None:
    """Views show it. The engine ignores it, so that nothing waits for its commit."""


def apply_tasks_unplaceable(
    state: WorkflowState, event: ev.TasksUnplaceable, deltas: list[Command]
) -> None:
    """Views show it. The engine ignores it."""


def apply_state_saved(state: WorkflowState, event: ev.StateSaved, deltas: list[Command]) -> None:
    """Nothing to do: a reader that needs the snapshot has started with it."""


def apply_attempt_failed(
    state: WorkflowState, event: ev.AttemptFailed, deltas: list[Command]
) -> None:
    task = state.tasks[event.task]
    task.attempts += 1
    task.charged += event.charged
    task.preempted += event.why == AttemptOutcome.PREEMPTED
    task.setbacks = task.setbacks + 1 if event.why in SETBACKS else 0
    task.last_end = event.why
    task.until = event.retry_at
    if event.step:
        state.bodies[event.task].failed = event.step
        bodies.go_back(state, task, deltas)
    if state.running:
        deltas.append(start_attempt(state, task))


def apply_task_succeeded(
    state: WorkflowState, event: ev.TaskSucceeded, deltas: list[Command]
) -> None:
    task = state.tasks[event.task]
    if event.messages:
        outbox.send(state, event, deltas)
        store_results(state, task.frame)
    resolve(state, task, Outcome(value=event.value), event.at, deltas)


def apply_task_continued(
    state: WorkflowState, event: ev.TaskContinued, deltas: list[Command]
) -> None:
    task = state.tasks[event.task]
    frame = task.frame
    parent: int | None = task.number
    wraps = task.options.catch_exceptions
    checkpoint = task.checkpoint
    stored = task.is_output and frame.stored
    end_wait(state, task)
    step = ""
    if state.bodies:
        end_body(state, task.number, deltas)
    task.phase = Phase.CONTINUED
    if task.is_output:
        # A continuation in tail position takes the place of the frame it ends, so that a loop of
        # continuations needs no more memory than its last turn. Nothing else in the frame is
        # unfinished: all of it led to this task.
        parent = frame.parent
        wraps = wraps or frame.wraps
        step = frame.step
        close_frame(state, frame, keep=None, deltas=deltas)
    opened = open_frame(
        state,
        event.plan,
        event.task_ids,
        parent=parent,
        wraps=wraps,
        checkpoint=checkpoint,
        stored=stored,
        step=step,
    )
    if event.messages:
        outbox.send(state, event, deltas)
    if event.messages or not all(SOURCES[each.kind].repeats for each in event.plan.options):
        store_results(state, opened)
    for number in range(opened.first, opened.first + len(event.plan.tasks)):
        fresh = state.tasks[number]
        if not fresh.unmet:
            activate(state, fresh, event.at)
            announce(state, fresh, deltas)


def apply_task_failed(state: WorkflowState, event: ev.TaskFailed, deltas: list[Command]) -> None:
    task = state.tasks[event.task]
    end_wait(state, task)
    task.attempts += 1
    task.phase = Phase.FAILED
    if event.step:
        state.bodies[event.task].failed = event.step


def apply_error_caught(state: WorkflowState, event: ev.ErrorCaught, deltas: list[Command]) -> None:
    if event.frame is None:
        outcome = Outcome(error=event.error, wrapped=True)
        resolve(state, state.tasks[event.task], outcome, event.at, deltas)
        return
    frame = state.frames[event.frame]
    # The body of a step gets the error as it is, and raises it.
    outcome = Outcome(error=event.error, wrapped=frame.wraps)
    resolve_frame(state, frame, outcome, event.at, deltas)


def apply_values_lost(state: WorkflowState, event: ev.ValuesLost, deltas: list[Command]) -> None:
    lost = [state.tasks[number] for number in event.tasks]
    for task in lost:
        task.phase = Phase.WAITING
        task.outcome = None
        task.attempts += 1
        task.last_end = AttemptOutcome.LOST_VALUE
        for number in task.consumers:
            consumer = state.tasks[number]
            if consumer.phase is Phase.AWAITING_STEPS:
                consumer.phase = Phase.WAITING
            elif consumer.phase is Phase.ACTIVE:
                # It needs the lost value. A new number, so that reports of its attempt are ignored.
                consumer.phase = Phase.WAITING
                consumer.attempts += 1
                consumer.last_end = AttemptOutcome.LOST_VALUE
                state.active.pop(number, None)
                deltas.append(CancelAttempt(number))
            consumer.unmet += 1
    for task in lost:
        if not task.unmet:
            activate(state, task, event.at)
            announce(state, task, deltas)


# -- signals -------------------------------------------------------------------------------


def apply_tags_set(state: WorkflowState, event: ev.TagsSet, deltas: list[Command]) -> None:
    lifecycle.apply_tags_set(state, event)


def apply_signal_received(
    state: WorkflowState, event: ev.SignalReceived, deltas: list[Command]
) -> None:
    keep(state, event.name, event.signal_id, event.value)
    if state.running and event.name in state.waits:
        deltas.append(WakeAt(event.at))


def apply_signal_taken(state: WorkflowState, event: ev.SignalTaken, deltas: list[Command]) -> None:
    value = take(state, event.name, event.signal_id)
    resolve(state, state.tasks[event.task], Outcome(value=value), event.at, deltas)


def apply_signal_acknowledged(
    state: WorkflowState, event: ev.SignalAcknowledged, deltas: list[Command]
) -> None:
    lifecycle.apply_signal_acknowledged(state, event)


# -- the outbox ----------------------------------------------------------------------------


def apply_delivered(state: WorkflowState, event: ev.Delivered, deltas: list[Command]) -> None:
    outbox.apply_delivered(state, event)


APPLIERS: dict[type[ev.Event], Callable[[WorkflowState, Any, list[Command]], None]] = {
    ev.WorkflowSubmitted: apply_workflow_submitted,
    ev.WorkflowClaimed: apply_workflow_claimed,
    ev.WorkflowStarted: apply_workflow_started,
    ev.WorkflowResumed: apply_workflow_resumed,
    ev.WorkflowCanceled: apply_workflow_canceled,
    ev.CancelRequested: apply_cancel_requested,
    ev.WorkflowSucceeded: apply_workflow_succeeded,
    ev.WorkflowFailed: apply_workflow_failed,
    ev.WorkflowTimedOut: apply_workflow_timed_out,
    ev.WorkflowReleased: apply_workflow_released,
    ev.AttemptStarted: apply_attempt_started,
    ev.TasksUnplaceable: apply_tasks_unplaceable,
    ev.AttemptFailed: apply_attempt_failed,
    ev.TaskSucceeded: apply_task_succeeded,
    ev.TaskContinued: apply_task_continued,
    ev.TaskFailed: apply_task_failed,
    ev.ErrorCaught: apply_error_caught,
    ev.StepsAsked: bodies.apply_steps_asked,
    ev.StepsEnded: bodies.apply_steps_ended,
    ev.AttemptSuspended: bodies.apply_attempt_suspended,
    ev.ValuesLost: apply_values_lost,
    ev.TagsSet: apply_tags_set,
    ev.SignalReceived: apply_signal_received,
    ev.SignalTaken: apply_signal_taken,
    ev.SignalAcknowledged: apply_signal_acknowledged,
    ev.StateSaved: apply_state_saved,
    ev.WorkflowEnding: apply_workflow_ending,
    ev.Delivered: apply_delivered,
}
