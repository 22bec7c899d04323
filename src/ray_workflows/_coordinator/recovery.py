"""Reading a workflow back: its row, and its state as a replay of its journal. No other recovery."""

from __future__ import annotations

from ray_workflows._codec.journal import events_of
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model.catalog import CatalogRow
from ray_workflows.storage.base import Storage


class Recovered:
    """A workflow as storage has it. ``seq`` is the number of its last journal entry.

    Where only the end of it was read, ``state`` is that of a workflow of which nothing is known.
    """

    __slots__ = ("row", "seq", "state")

    def __init__(self, row: CatalogRow, state: WorkflowState, seq: int) -> None:
        self.row = row
        self.state = state
        self.seq = seq


def recover(storage: Storage, workflow_id: str) -> Recovered | None:
    """Read a workflow; None if there is none.

    Raises:
        StorageUnavailableError: the storage does not answer.
        StorageCorruptError: the journal is damaged; names the entry.
    """
    row = storage.read_catalog(workflow_id)
    if row is None:
        return None
    state = WorkflowState(workflow_id, row.incarnation)
    seq = 0
    for entry in storage.read_journal(row.incarnation):
        for event in events_of(entry, workflow_id):
            evolve(state, event)
        seq = entry.seq
    if seq == 0:
        return None  # Deleted between the two reads.
    # Read after the row, the journal may say more.
    return Recovered(catalog_row(state, seq), state, seq)


def recover_end(storage: Storage, workflow_id: str) -> Recovered | None:
    """As `recover`, but reading no more than where it stands: a journal of a million tasks takes
    seconds, and to delete it nobody need know what is in it.
    """
    row = storage.read_catalog(workflow_id)
    if row is None:
        return None
    if storage.read_journal(row.incarnation, row.seq):
        # The row is behind the journal, as it may be where the two are not written as one.
        return recover(storage, workflow_id)
    return Recovered(row, WorkflowState(workflow_id, row.incarnation), row.seq)
