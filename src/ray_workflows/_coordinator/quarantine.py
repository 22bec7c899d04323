"""What is appended to the journal of a workflow that can't be driven, whatever its state is."""

from __future__ import annotations

import msgspec

from ray_workflows._codec.journal import encode_entry
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import Append, CatalogRow
from ray_workflows._model.errors import error_info, name_of, text_of


def end_of_our_part(row: CatalogRow, error: Exception, *, at: float, commit_id: str) -> Append:
    """Let go of a workflow, and say why, without knowing the state that it has."""
    info = error_info(name_of(error), text_of(error))
    return Append(
        workflow_id=row.workflow_id,
        incarnation=row.incarnation,
        expected_seq=row.seq,
        commit_id=commit_id,
        # Not linked to the entry before it, which perhaps nobody can read.
        entry=encode_entry(
            [ev.WorkflowReleased(at=at, error=info)], row.workflow_id, row.incarnation, row.seq + 1
        ),
        catalog=msgspec.structs.replace(
            row, seq=row.seq + 1, released=True, error=f"{info.type_name}: {info.message}"
        ),
    )
