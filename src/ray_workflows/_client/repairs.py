"""Rebuilds a workflow's catalog row, or the objects in its place, from its journal, whose entries
have checksums of their own.
"""

from __future__ import annotations

import uuid

from ray_workflows._codec.journal import Chain, encode_entry
from ray_workflows._coordinator.recovery import fold
from ray_workflows._coordinator.snapshots import saved_in
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row, due_at_of, is_row_of
from ray_workflows._model.catalog import Append, CatalogRow
from ray_workflows.exceptions import StorageCorruptError, WorkflowNotFoundError
from ray_workflows.storage import Storage
from ray_workflows.storage.base import CommitOutcome
from ray_workflows.storage.rows import DamagedRowError


def repair(storage: Storage, workflow_id: str) -> CatalogRow | None:
    """Rewrite the catalog row of a workflow if it disagrees with its journal.

    This appends an entry without events: an append is the only way to write a row, and fences
    concurrent writers. Object stores have the row in the journal; there, the pointer and the index
    entry are rewritten.

    Returns:
        the row; None if there was nothing to repair.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        StorageCorruptError: it can't be repaired from the journal; says why.
    """
    relisted = storage.relist(workflow_id)
    try:
        row = storage.read_catalog(workflow_id)
    except DamagedRowError as damage:
        row, incarnation, known = None, damage.incarnation, damage.seq
    else:
        if row is None:
            raise WorkflowNotFoundError(workflow_id)
        incarnation, known = row.incarnation, row.seq
    chain = Chain(workflow_id, incarnation)
    state = WorkflowState(workflow_id, incarnation)
    # Each entry names its workflow: the row may name the journal of another one.
    snapshot = 0
    for entry in storage.read_journal(incarnation):
        events = chain.decode(entry)
        fold(state, entry.seq, events)
        snapshot = entry.seq if saved_in(events) else snapshot
    if not chain.seq or chain.seq < known:
        raise not_repaired(workflow_id, f"its journal ends with entry {chain.seq} of {known}")
    if row is not None and is_row_of(row, catalog_row(state, chain.seq, snapshot)):
        return row if relisted else None
    seq = chain.seq + 1
    repaired = catalog_row(state, seq, snapshot, due_at_of(state))
    append = Append(
        workflow_id=workflow_id,
        incarnation=incarnation,
        expected_seq=chain.seq,
        commit_id=uuid.uuid4().hex,
        entry=encode_entry([], workflow_id, incarnation, seq, chain.link or b""),
        catalog=repaired,
    )
    if storage.commit([append]) != [CommitOutcome.OK]:
        raise not_repaired(
            workflow_id,
            "its number in the row is damaged too, or somebody wrote to it at the same time",
        )
    return repaired


def not_repaired(workflow_id: str, why: str) -> StorageCorruptError:
    """The error for a row that can't be repaired."""
    return StorageCorruptError(
        f"The catalog row of workflow '{workflow_id}' can't be written anew from its journal: "
        f"{why}. Restore the storage from a backup."
    )
