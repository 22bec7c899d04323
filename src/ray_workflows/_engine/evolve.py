"""`evolve` applies events to the state. No other code changes a workflow's state.

Appliers are found by name: ``apply_task_succeeded`` applies event ``TaskSucceeded``. Each adds the
new commands; `commands.commands` derives all that are due.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

from ray_workflows._engine import lifecycle, outbox
from ray_workflows._engine.commands import commands, deliveries, start_attempt
from ray_workflows._engine.names import register_task_ids
from ray_workflows._engine.signals import keep, restart, take
from ray_workflows._engine.sources import SOURCES, WAITING
from ray_workflows._engine.state import Frame, Phase, Task, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.commands import (
    CancelAttempt,
    Command,
    Deliver,
    ReleaseValue,
    Settle,
    WakeAt,
)
from ray_workflows._model.plan import Plan
from ray_workflows._model.tasks import AttemptOutcome
from ray_workflows._model.values import Outcome, Value

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
    for task in state.tasks.values():
        if task.phase is Phase.FAILED:
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
    if state.running:
        deltas.append(start_attempt(state, task))


def apply_task_succeeded(
    state: WorkflowState, event: ev.TaskSucceeded, deltas: list[Command]
) -> None:
    task = state.tasks[event.task]
    if event.messages:
        send(state, event, deltas)
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
    task.phase = Phase.CONTINUED
    if task.is_output:
        # A continuation in tail position takes the place of the frame it ends, so that a loop of
        # continuations needs no more memory than its last turn. Nothing else in the frame is
        # unfinished: all of it led to this task.
        parent = frame.parent
        wraps = wraps or frame.wraps
        close_frame(state, frame, keep=None, deltas=deltas)
    opened = open_frame(
        state,
        event.plan,
        event.task_ids,
        parent=parent,
        wraps=wraps,
        checkpoint=checkpoint,
        stored=stored,
    )
    if event.messages:
        send(state, event, deltas)
    if event.messages or not all(SOURCES[each.kind].repeats for each in event.plan.options):
        store_results(state, opened)
    for number in range(opened.first, opened.first + len(event.plan.tasks)):
        fresh = state.tasks[number]
        if not fresh.unmet:
            activate(state, fresh, event.at)
            announce(state, fresh, deltas)


def store_results(state: WorkflowState, frame: Frame) -> None:
    """Make a frame and those around it store their results, because the frame can't run again."""
    for around in takewhile(lambda around: not around.stored, state.frames_around(frame)):
        around.stored = True


def apply_task_failed(state: WorkflowState, event: ev.TaskFailed, deltas: list[Command]) -> None:
    task = state.tasks[event.task]
    end_wait(state, task)
    task.attempts += 1
    task.phase = Phase.FAILED


def apply_error_caught(state: WorkflowState, event: ev.ErrorCaught, deltas: list[Command]) -> None:
    outcome = Outcome(error=event.error, wrapped=True)
    if event.frame is None:
        resolve(state, state.tasks[event.task], outcome, event.at, deltas)
        return
    frame = state.frames[event.frame]
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
            if consumer.phase is Phase.ACTIVE:
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


def send(
    state: WorkflowState, event: ev.TaskSucceeded | ev.TaskContinued, deltas: list[Command]
) -> None:
    """Put the messages of a task into the outbox."""
    outbox.apply_messages(state, event)
    deltas += [Deliver(message) for message in event.messages]


def apply_delivered(state: WorkflowState, event: ev.Delivered, deltas: list[Command]) -> None:
    outbox.apply_delivered(state, event)


# -- frames --------------------------------------------------------------------------------


def open_frame(
    state: WorkflowState,
    plan: Plan,
    task_ids: tuple[str, ...],
    *,
    parent: int | None,
    wraps: bool,
    checkpoint: bool,
    stored: bool,
) -> Frame:
    frame = Frame(state.next_frame, plan, state.next_task, parent, wraps, checkpoint, stored)
    state.frames[frame.number] = frame
    state.next_frame += 1
    state.next_task += len(plan.tasks)
    for offset, task_id in enumerate(task_ids):
        number = frame.first + offset
        state.tasks[number] = Task(number, task_id, frame)
    register_task_ids(state.names, [spec.name for spec in plan.tasks], task_ids)
    return frame


def activate(state: WorkflowState, task: Task, at: float) -> None:
    """Begin the task's wait for its source (attempt, timer, signal): all inputs are there."""
    SOURCES[task.options.kind].begin(state, task, at)


def announce(state: WorkflowState, task: Task, deltas: list[Command]) -> None:
    """Add the commands for an activated task."""
    if state.running:
        deltas += WAITING[task.phase].commands(state, task)


def end_wait(state: WorkflowState, task: Task) -> None:
    """End the task's wait for its source, if it waits."""
    source = WAITING.get(task.phase)
    if source is not None:
        source.leave(state, task)


def resolve(
    state: WorkflowState, task: Task, outcome: Outcome, at: float, deltas: list[Command]
) -> None:
    """Give a task its one result, and update its consumers and frame."""
    end_wait(state, task)
    task.phase = Phase.SUCCEEDED
    outcome = task.outcome = outcome.wrap_if(task.options.catch_exceptions)
    if task.is_output:
        resolve_frame(state, task.frame, outcome, at, deltas)
        return
    if task.spec.upstream and outcome.stored:
        forget_inputs(state, task, deltas)
    for number in task.consumers:
        consumer = state.tasks[number]
        consumer.unmet -= 1
        if not consumer.unmet and consumer.phase is Phase.WAITING:
            activate(state, consumer, at)
            announce(state, consumer, deltas)


def resolve_frame(
    state: WorkflowState, frame: Frame, outcome: Outcome, at: float, deltas: list[Command]
) -> None:
    """Close a frame that has its result, and give the result to its parent."""
    outcome = outcome.wrap_if(frame.wraps)
    close_frame(state, frame, keep=outcome, deltas=deltas)
    # Without a parent, the result is in the event of the workflow's end, which follows.
    if frame.parent is not None:
        resolve(state, state.tasks[frame.parent], outcome, at, deltas)


def close_frame(
    state: WorkflowState, frame: Frame, keep: Outcome | None, deltas: list[Command]
) -> None:
    """Drop a frame and the frames inside it. ``keep``: the outcome that stays in use."""
    kept = None if keep is None else keep.value
    doomed = [frame]
    while doomed:
        current = doomed.pop()
        del state.frames[current.number]
        for number in range(current.first, current.first + len(current.plan.tasks)):
            task = state.tasks.pop(number)
            phase = task.phase
            if phase is Phase.SUCCEEDED:
                # First, because nearly all tasks have succeeded.
                value = task.outcome.value if task.outcome is not None else None
                if value is not None and value is not kept:
                    release(value, deltas)
            elif phase is Phase.CONTINUED:
                # An error that an outer task caught abandons this frame.
                doomed += [child for child in state.frames.values() if child.parent == number]
            else:
                end_wait(state, task)
                if phase is Phase.ACTIVE:
                    deltas.append(CancelAttempt(number))


def release(value: Value, deltas: list[Command]) -> None:
    """Add the command that drops a reference to a value, if it may have live copies."""
    if value.has_copies:
        deltas.append(ReleaseValue(value))


def forget_inputs(state: WorkflowState, task: Task, deltas: list[Command]) -> None:
    """Release the inputs of a task that will never run again."""
    settled = [task]
    while settled:
        for number in settled.pop().upstream:
            upstream = state.tasks[number]
            upstream.wanted -= 1
            if upstream.wanted or upstream.outcome is None:
                continue
            outcome, upstream.outcome, upstream.released = upstream.outcome, None, True
            if outcome.value is not None:
                release(outcome.value, deltas)
            if not outcome.stored:
                # The upstream task might have had to run again until now, and kept its inputs.
                settled.append(upstream)


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
    ev.ValuesLost: apply_values_lost,
    ev.TagsSet: apply_tags_set,
    ev.SignalReceived: apply_signal_received,
    ev.SignalTaken: apply_signal_taken,
    ev.SignalAcknowledged: apply_signal_acknowledged,
    ev.StateSaved: apply_state_saved,
    ev.WorkflowEnding: apply_workflow_ending,
    ev.Delivered: apply_delivered,
}
