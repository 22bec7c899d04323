"""Sources of results, for which a task waits once its inputs are there: the end of an attempt, a
time, or a signal.

Each is an entry of one table; `evolve`, `waits` and `snapshots` name none of them. Only `evolve`
calls the functions that change the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ray_workflows._engine import signals
from ray_workflows._engine.attempts import after_failure, after_success
from ray_workflows._engine.commands import start_attempt
from ray_workflows._engine.decision import Events
from ray_workflows._engine.state import Phase, Task, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.commands import Command, WakeAt
from ray_workflows._model.plan import BODY, FUNCTION, LISTENER, SIGNAL, TIMER
from ray_workflows._model.tasks import AttemptOutcome
from ray_workflows._model.values import ErrorInfo, Outcome
from ray_workflows.exceptions import SignalTimeoutError


class Source(NamedTuple):
    """A source of a task's result.

    Attributes:
        phase: the phase of tasks that wait for it.
        begin: starts a task's wait.
        commands: the commands for a waiting task of a running workflow.
        leave: ends a task's wait.
        goes_off: when time ends the wait; None if it does not.
        on_time: the events when that time has come.
        repeats: whether a task can wait for it again, so that its result need not be stored.
    """

    phase: Phase
    begin: Callable[[WorkflowState, Task, float], None]
    commands: Callable[[WorkflowState, Task], Sequence[Command]]
    leave: Callable[[WorkflowState, Task], None]
    goes_off: Callable[[Task], float | None]
    on_time: Callable[[WorkflowState, Task, float, float], Events]
    repeats: bool = True


# -- attempts ------------------------------------------------------------------------------


def begin_attempt(state: WorkflowState, task: Task, at: float) -> None:
    task.phase = Phase.ACTIVE
    task.until = 0.0
    state.active[task.number] = None


def commands_of_attempt(state: WorkflowState, task: Task) -> Sequence[Command]:
    return (start_attempt(state, task),)


def leave_attempt(state: WorkflowState, task: Task) -> None:
    del state.active[task.number]


# -- timers --------------------------------------------------------------------------------


def begin_timer(state: WorkflowState, task: Task, at: float) -> None:
    task.phase = Phase.AWAITING_TIMER
    task.until = at + task.options.duration
    state.timers[task.number] = task.until


def commands_of_timer(state: WorkflowState, task: Task) -> Sequence[Command]:
    return (WakeAt(task.until),)


def leave_timer(state: WorkflowState, task: Task) -> None:
    del state.timers[task.number]


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


# -- signals -------------------------------------------------------------------------------


def commands_of_signal(state: WorkflowState, task: Task) -> Sequence[Command]:
    due: list[Command] = []
    if task.number in state.timers:
        due.append(WakeAt(state.timers[task.number]))
    if signals.can_deliver(state):
        due.append(WakeAt(task.until))
    return due


def gave_up_waiting(state: WorkflowState, task: Task, at: float, now: float) -> Events:
    """No signal came in time. The wait is not retried: waiting again would gain nothing."""
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


# -- the table -----------------------------------------------------------------------------

#: The worker watches an attempt's timeout.
ATTEMPT = Source(
    phase=Phase.ACTIVE,
    begin=begin_attempt,
    commands=commands_of_attempt,
    leave=leave_attempt,
    goes_off=lambda task: None,
    on_time=lambda state, task, at, now: [],
)

#: By the kind of a task.
SOURCES: dict[str, Source] = {
    FUNCTION: ATTEMPT,
    LISTENER: ATTEMPT,
    # Steps, such as waits for a signal, can't run again.
    BODY: ATTEMPT._replace(repeats=False),
    TIMER: Source(
        phase=Phase.AWAITING_TIMER,
        begin=begin_timer,
        commands=commands_of_timer,
        leave=leave_timer,
        goes_off=lambda task: task.until,
        on_time=timer_went_off,
    ),
    SIGNAL: Source(
        phase=Phase.AWAITING_SIGNAL,
        begin=signals.wait,
        commands=commands_of_signal,
        leave=signals.leave,
        goes_off=signals.gives_up_at,
        on_time=gave_up_waiting,
        # A signal can be taken once only.
        repeats=False,
    ),
}

#: A body without an attempt: `frames.give_outcome` starts one.
SUSPENDED = Source(
    phase=Phase.AWAITING_STEPS,
    begin=begin_attempt,
    commands=lambda state, task: (),
    leave=lambda state, task: None,
    goes_off=lambda task: None,
    on_time=lambda state, task, at, now: [],
)

#: By the phase of a task that waits.
WAITING: dict[Phase, Source] = {source.phase: source for source in (*SOURCES.values(), SUSPENDED)}
