"""Reading a workflow back: its row, and its state as a replay of its journal. No other recovery."""

from __future__ import annotations

from collections.abc import Iterable

from ray_workflows._codec.journal import NO_LINK
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.events import Event
from ray_workflows.exceptions import StorageCorruptError, WorkflowNotFoundError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.histories import History


class Recovered:
    """A workflow as storage has it. ``seq`` is the number of its last journal entry, ``link`` what
    links the next one to it.
    """

    __slots__ = ("link", "row", "seq", "state")

    def __init__(
        self, row: CatalogRow, state: WorkflowState, seq: int, link: bytes = NO_LINK
    ) -> None:
        self.row = row
        self.state = state
        self.seq = seq
        self.link = link


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
    history = History(storage, row)
    try:
        for entry, events in history.read():
            fold(state, entry.seq, events)
    except WorkflowNotFoundError:
        return None  # Deleted between the two reads.
    # Read after the row, the journal may say more.
    seq = history.chain.seq
    return Recovered(catalog_row(state, seq), state, seq, history.chain.link or NO_LINK)


def fold(state: WorkflowState, seq: int, events: Iterable[Event]) -> None:
    """Apply the events of an entry.

    Raises:
        StorageCorruptError: they do not follow from the state; names the entry.
    """
    try:
        for event in events:
            evolve(state, event)
    except Exception as error:
        raise does_not_follow(state.workflow_id, seq, error) from error


def does_not_follow(workflow_id: str, seq: int, error: Exception) -> StorageCorruptError:
    """The error for a journal entry that was read, and whose events can't be applied."""
    return StorageCorruptError(
        f"Journal entry {seq} of workflow '{workflow_id}' does not follow from those before it: "
        f"{type(error).__name__}: {error}. Either the journal is damaged, or another release of "
        f"ray-workflows wrote it: use that one, or delete the workflow."
    )


def read_end(storage: Storage, workflow_id: str) -> CatalogRow | None:
    """Where a workflow stands, reading no more than that: a journal of a million tasks takes
    seconds, and to delete it nobody need know what is in it. None if there is none.

    Errors are those of `recover`.
    """
    row = storage.read_catalog(workflow_id)
    if row is None or not storage.read_journal(row.incarnation, row.seq):
        return row
    # The row is behind the journal, as it may be where the two are not written as one.
    recovered = recover(storage, workflow_id)
    return None if recovered is None else recovered.row
