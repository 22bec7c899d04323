"""Unstored results, which can be lost with the process that has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ray_workflows._engine.decision import Events
from ray_workflows._engine.state import Phase, Task, WorkflowState
from ray_workflows._model import events as ev


def is_unstored(task: Task | None) -> bool:
    """Whether there is a task and its result is not stored."""
    if task is None or task.phase is not Phase.SUCCEEDED:
        return False
    return task.outcome is not None and not task.outcome.stored


def unstored(state: WorkflowState) -> Iterator[int]:
    """The tasks with unstored results."""
    return (number for number, task in state.tasks.items() if is_unstored(task))


def has_unstored(state: WorkflowState) -> bool:
    """Whether a task has an unstored result."""
    return next(unstored(state), None) is not None


def lose(state: WorkflowState, tasks: Iterable[int], now: float) -> Events:
    """The event for the loss of these tasks' unstored results, if there are any."""
    numbers = {number for number in tasks if is_unstored(state.tasks.get(number))}
    return [ev.ValuesLost(at=now, tasks=tuple(sorted(numbers)))] if numbers else []
