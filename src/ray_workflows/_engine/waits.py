"""Rules for a wake-up: due timers, and signals that waiting tasks take."""

from __future__ import annotations

from ray_workflows._engine.attempts import after_success
from ray_workflows._engine.commands import is_to_be_canceled
from ray_workflows._engine.decision import Events
from ray_workflows._engine.signals import deliveries
from ray_workflows._engine.sources import WAITING
from ray_workflows._engine.state import Task, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.values import Outcome, Value


def on_wake(state: WorkflowState, message: msg.Wake, now: float) -> Events:
    if is_to_be_canceled(state):
        return [ev.WorkflowCanceled(at=now)]
    if not state.running:
        return []
    if state.deadline is not None and state.deadline <= now:
        return [ev.WorkflowTimedOut(at=now)]
    events: Events = []
    # Signals first: one that came before the timeout counts, however late the wake-up is.
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
        events += WAITING[task.phase].on_time(state, task, at, now)
        last = events[-1]
        if isinstance(last, (ev.WorkflowFailed, ev.WorkflowSucceeded)):
            break
        if isinstance(last, ev.ErrorCaught) and last.frame is not None:
            closed.add(last.frame)
    return events


def taken(
    state: WorkflowState, task: Task, name: str, signal_id: str, value: Value, now: float
) -> Events:
    """The events for a waiting task that takes a signal."""
    event = ev.SignalTaken(
        at=now, task=task.number, name=name, signal_id=signal_id, started_at=task.until
    )
    return [event, *after_success(state, task, Outcome(value=value), now)]
