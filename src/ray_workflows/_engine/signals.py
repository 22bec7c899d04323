"""Kept signals and the tasks that wait for them. Only `evolve` calls the functions that change the
state.

First come, first served, for each name: the task that has waited longest takes the signal that was
received first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ray_workflows._engine.state import Lifecycle, Phase, Task, WorkflowState
from ray_workflows._model.values import Value

#: How many ids of taken signals are remembered, the newest ones. A signal that is repeated later
#: counts as a new one, because memory has to be bounded.
REMEMBERED = 1000


def is_known(state: Lifecycle, name: str, signal_id: str) -> bool:
    """Whether the signal was received before."""
    return signal_id in state.signals.get(name, ()) or (name, signal_id) in state.taken


def has_another(state: Lifecycle, name: str) -> bool:
    """Whether a signal of the name was received before, as far as taken ones are remembered."""
    return name in state.signals or has_been_taken(state, name)


def has_been_taken(state: Lifecycle, name: str) -> bool:
    """Whether a signal of the name was taken, as far as they are remembered."""
    return any(taken == name for taken, _ in state.taken)


def kept_signals(state: Lifecycle) -> int:
    """How many signals are kept."""
    return sum(map(len, state.signals.values()))


def can_deliver(state: WorkflowState) -> bool:
    """Whether a signal is kept that a task waits for."""
    return not state.signals.keys().isdisjoint(state.waits)


def deliveries(state: WorkflowState) -> Iterator[tuple[Task, str, str, Value]]:
    """The signals that waiting tasks can take now: the task, the signal's name, id and value."""
    for name, waiting in state.waits.items():
        kept = state.signals.get(name)
        if kept is None:
            continue
        for number, (signal_id, value) in zip(waiting, kept.items(), strict=False):
            yield state.tasks[number], name, signal_id, value


def keep(state: Lifecycle, name: str, signal_id: str, value: Value) -> None:
    """Keep a received signal."""
    state.signals.setdefault(name, OrderedDict())[signal_id] = value


def take(state: Lifecycle, name: str, signal_id: str) -> Value:
    """Take a signal, and return its value."""
    kept = state.signals[name]
    value = kept.pop(signal_id)
    if not kept:
        del state.signals[name]
    state.taken[name, signal_id] = None
    if len(state.taken) > REMEMBERED:
        del state.taken[next(iter(state.taken))]
    return value


def wait(state: WorkflowState, task: Task, at: float) -> None:
    """Put the task at the end of the queue for its signal."""
    task.phase = Phase.AWAITING_SIGNAL
    state.waits.setdefault(task.options.signal, OrderedDict())[task.number] = None
    restart(state, task, at)


def restart(state: WorkflowState, task: Task, at: float) -> None:
    """Restart the timeout of a waiting task."""
    task.until = at
    gives_up = gives_up_at(task)
    if gives_up is not None:
        state.timers[task.number] = gives_up


def gives_up_at(task: Task) -> float | None:
    """When a waiting task times out; None if never."""
    timeout = task.options.timeout
    return None if timeout is None else task.until + timeout


def leave(state: WorkflowState, task: Task) -> None:
    """Remove the task from the queue for its signal."""
    waiting = state.waits[task.options.signal]
    del waiting[task.number]
    if not waiting:
        del state.waits[task.options.signal]
    state.timers.pop(task.number, None)
