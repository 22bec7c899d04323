"""The catalog row of a workflow, from its state."""

from __future__ import annotations

import msgspec

from ray_workflows._engine.commands import due_at
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._engine.state import Lifecycle, WorkflowState
from ray_workflows._model.catalog import CatalogRow


def catalog_row(
    state: Lifecycle, seq: int, snapshot: int = 0, due_at: float | None = None
) -> CatalogRow:
    """The summary after the journal's entry number ``seq``.

    ``snapshot``: the number of the last entry with a snapshot, 0 if there is none. ``due_at``: as
    `due_at_of` a state with its tasks.
    """
    error = state.error
    return CatalogRow(
        workflow_id=state.workflow_id,
        incarnation=state.incarnation,
        seq=seq,
        status=state.status,
        holder=state.holder,
        submitted_at=state.submitted_at,
        started_at=state.started_at,
        ended_at=state.ended_at,
        metadata=state.metadata,
        plan_digest=state.plan_digest,
        error=None if error is None else f"{error.type_name}: {error.message}",
        released=state.released,
        kind=state.kind,
        name=state.name,
        parent=state.parent,
        due_at=due_at,
        tags=state.tags,
        snapshot=snapshot,
    )


def is_row_of(row: CatalogRow, said: CatalogRow) -> bool:
    """Whether a row agrees with ``said``, the row by its journal. Some writers did not know
    ``due_at``, and 0.1.0 wrote no name."""
    name = said.name if row.name else ""
    return row == msgspec.structs.replace(said, due_at=row.due_at, name=name)


def due_at_of(state: WorkflowState) -> float | None:
    """The ``due_at`` of the row of a state with its tasks."""
    return due_at(state) or None if state.status in ACTIVE else None
