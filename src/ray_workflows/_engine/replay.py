"""Recovery as replay: a state from the events of a journal."""

from __future__ import annotations

from collections.abc import Iterable

from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model.events import Event


def replay(workflow_id: str, incarnation: str, events: Iterable[Event]) -> WorkflowState:
    """Apply events to a new state; `commands.commands` gives what should be in flight."""
    state = WorkflowState(workflow_id, incarnation)
    for event in events:
        evolve(state, event)
    return state
