"""Results that are in no storage, and can be lost with the process that has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ray_workflows._engine.decision import Events
from ray_workflows._engine.state import Phase, WorkflowState
from ray_workflows._model import events as ev


def unstored(state: WorkflowState) -> Iterator[int]:
    """The tasks whose results are in no storage."""
    for number, task in state.tasks.items():
        if task.phase is Phase.SUCCEEDED and task.outcome is not None and not task.outcome.stored:
            yield number


def lose(state: WorkflowState, tasks: Iterable[int], now: float) -> Events:
    """The results of these tasks are gone, as far as they are there and in no storage."""
    numbers = set()
    for number in tasks:
        task = state.tasks.get(number)
        if (
            task is not None
            and task.phase is Phase.SUCCEEDED
            and task.outcome is not None
            and not task.outcome.stored
        ):
            numbers.add(number)
    return [ev.ValuesLost(at=now, tasks=tuple(sorted(numbers)))] if numbers else []
