"""The catalog row of a workflow, from its state."""

from __future__ import annotations

from ray_workflows._engine.state import Lifecycle
from ray_workflows._model.catalog import CatalogRow


def catalog_row(state: Lifecycle, seq: int, snapshot: int = 0) -> CatalogRow:
    """The summary after the journal's entry number ``seq``; ``snapshot`` is the number of the last
    entry with a snapshot, 0 if there is none."""
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
        name=state.name,
        tags=state.tags,
        snapshot=snapshot,
    )
