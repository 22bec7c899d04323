"""Signals: what is kept of them, who waits for them, and who takes which. Changes the state only
for `evolve`.

First come, first served, for each name: the signal that was received first goes to the task that
has been waiting longest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ray_workflows._engine.state import Lifecycle, Phase, Task, WorkflowState
from ray_workflows._model.values import Value

#: Ids are remembered of so many signals that were taken, the newest ones. A signal that is sent
#: again later than that is another one: memory has to have an end.
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
    """The signal was received."""
    state.signals.setdefault(name, OrderedDict())[signal_id] = value


def take(state: Lifecycle, name: str, signal_id: str) -> Value:
    """The signal is taken: its value."""
    kept = state.signals[name]
    value = kept.pop(signal_id)
    if not kept:
        del state.signals[name]
    state.taken[name, signal_id] = None
    if len(state.taken) > REMEMBERED:
        del state.taken[next(iter(state.taken))]
    return value


def wait(state: WorkflowState, task: Task, at: float) -> None:
    """The task waits from now on, behind those that do already."""
    task.phase = Phase.AWAITING_SIGNAL
    state.waits.setdefault(task.options.signal, OrderedDict())[task.number] = None
    restart(state, task, at)


def restart(state: WorkflowState, task: Task, at: float) -> None:
    """The task that waits has its whole time from now on."""
    task.until = at
    gives_up = gives_up_at(task)
    if gives_up is not None:
        state.timers[task.number] = gives_up


def gives_up_at(task: Task) -> float | None:
    """When the task that waits gives up; None if it never does."""
    timeout = task.options.timeout
    return None if timeout is None else task.until + timeout


def leave(state: WorkflowState, task: Task) -> None:
    """The task waits no more, whatever becomes of it."""
    waiting = state.waits[task.options.signal]
    del waiting[task.number]
    if not waiting:
        del state.waits[task.options.signal]
    state.timers.pop(task.number, None)
