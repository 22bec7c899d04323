"""`commands`: all that should be in flight, derived from the state. Recovery calls it."""

from __future__ import annotations

from collections.abc import Iterator

from ray_workflows._engine.decision import ACTIVE
from ray_workflows._engine.signals import can_deliver
from ray_workflows._engine.state import Phase, Task, WorkflowState
from ray_workflows._model.catalog import NEVER
from ray_workflows._model.commands import Command, Deliver, GiveOutcome, StartAttempt, WakeAt
from ray_workflows._model.plan import FUNCTION


def start_attempt(state: WorkflowState, task: Task) -> StartAttempt:
    """The command for a task's current attempt."""
    return StartAttempt(
        task=task.number, epoch=state.epoch, attempt=task.attempts + 1, not_before=task.until
    )


def commands(state: WorkflowState) -> list[Command]:
    """Every command that is due: deliveries of messages, attempts of active tasks, a wake-up for
    the next timer, and an immediate one if a signal can be taken or a cancel was requested."""
    due = deliveries(state)
    if is_to_be_canceled(state):
        return [*due, WakeAt(0.0)]
    if not state.running:
        return due
    due += [start_attempt(state, state.tasks[number]) for number in state.active]
    moments = set(state.timers.values())
    if state.deadline is not None:
        moments.add(state.deadline)
    if can_deliver(state):
        moments.add(0.0)
    due += [WakeAt(at) for at in sorted(moments)]
    return due


def given(state: WorkflowState) -> list[Command]:
    """The commands that give running bodies all of their outcomes. An attempt ignores those that it
    has: they may have been in its history."""
    return [
        GiveOutcome(number, index, outcome)
        for number, body in state.bodies.items()
        if number in state.active
        for index, outcome in enumerate(body.outcomes)
    ]


def followers(state: WorkflowState, task: Task) -> Iterator[Task]:
    """The chain of tasks that can run right after a task in the same worker. Each consumes the
    result of the one before: that result is not stored and has no other consumer, and the follower
    lacks no other input. So nothing needs to be committed in between."""
    while not state.checkpoints(task) and len(task.consumers) == 1:
        follower = state.tasks[task.consumers[0]]
        if (
            follower.unmet != 1
            or follower.phase is not Phase.WAITING
            or follower.options.kind != FUNCTION
            or follower.upstream.index(task.number) in follower.spec.nested
        ):
            return
        yield follower
        task = follower


def deliveries(state: WorkflowState) -> list[Command]:
    """The commands for undelivered messages."""
    if state.status not in ACTIVE or state.released:
        return []
    return [Deliver(message) for message in state.outbox.values()]


def is_to_be_canceled(state: WorkflowState) -> bool:
    """Whether a cancel was requested: then nothing else of the workflow is started."""
    return state.cancel_requested and state.status in ACTIVE and not state.released


def next_wake(state: WorkflowState) -> float | None:
    """When the first timer is due, the workflow times out, or it is to be canceled; None for
    none."""
    if is_to_be_canceled(state):
        return 0.0
    if not state.running:
        return None
    moments = list(state.timers.values())
    if state.deadline is not None:
        moments.append(state.deadline)
    return min(moments, default=None)


def due_at(state: WorkflowState) -> float:
    """When its coordinator has to act if no message comes, in seconds since 1970: 0 for at once, or
    `NEVER`."""
    if state.status not in ACTIVE or state.released:
        return NEVER
    if state.outbox or (state.running and (state.active or can_deliver(state))):
        return 0.0
    at = next_wake(state)
    return NEVER if at is None else at
