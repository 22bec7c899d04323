"""Recovery: reads a workflow's row, and replays its journal from the last snapshot. There is no
other recovery code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from ray_workflows._codec.journal import NO_LINK
from ray_workflows._coordinator.snapshots import NOTHING, Unsaved, saved_in
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.lifecycle import evolve_lifecycle
from ray_workflows._engine.snapshots import restore
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row, due_at_of
from ray_workflows._model.catalog import CatalogQuery, CatalogRow, JournalEntry
from ray_workflows._model.events import AnyEvent, Event, StateSaved
from ray_workflows.exceptions import StorageCorruptError, WorkflowNotFoundError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.histories import History


class Recovered:
    """A workflow as stored. ``seq``: the number of its last journal entry; ``link``: the link for
    the next one. ``whole``: the state has the tasks, not only the lifecycle.
    """

    __slots__ = ("link", "row", "seq", "state", "unsaved", "whole")

    def __init__(
        self,
        state: WorkflowState,
        seq: int,
        link: bytes = NO_LINK,
        unsaved: Unsaved = NOTHING,
        *,
        whole: bool = True,
    ) -> None:
        due_at = due_at_of(state) if whole else None
        self.row = catalog_row(state, seq, unsaved.snapshot, due_at)
        self.state = state
        self.seq = seq
        self.link = link
        self.unsaved = unsaved
        self.whole = whole


def recover(storage: Storage, workflow_id: str, *, whole: bool = True) -> Recovered | None:
    """Read a workflow; None if there is none. ``whole`` False: the lifecycle is enough.

    Raises:
        StorageUnavailableError: the storage does not answer.
        StorageCorruptError: the journal is damaged; names the entry.
    """
    row = storage.read_catalog(workflow_id)
    if row is None:
        return None
    try:
        return read_state(storage, row, whole=whole)
    except WorkflowNotFoundError:
        return None  # Deleted between the two reads.


def read_state(storage: Storage, row: CatalogRow, *, whole: bool = True) -> Recovered:
    """The state of a workflow: its last snapshot, and the entries after it.

    Raises:
        WorkflowNotFoundError: the workflow was deleted.
    """
    begin = row.snapshot
    while True:
        history = History(storage, row, max(begin - 1, 0))
        reading = Reading(row)
        for entry, events in history.read():
            if entry.seq != begin:
                reading.fold(entry, events)
                continue
            saved = saved_in(events)
            if saved is None:
                raise no_snapshot(row)
            if whole and saved.tasks is None:
                # The snapshot has only the lifecycle.
                begin = saved.last_whole
                break
            reading.begin(entry, saved)
        else:
            if begin > history.chain.seq:
                raise no_snapshot(row)
            # The journal was read after the row, and may be longer.
            return reading.recovered(history)


class Reading:
    """A state that is being read from a journal.

    Args:
        row: the row of the workflow.
    """

    def __init__(self, row: CatalogRow) -> None:
        self.state = WorkflowState(row.workflow_id, row.incarnation)
        self.unsaved = NOTHING
        self.whole = True

    def begin(self, entry: JournalEntry, saved: StateSaved) -> None:
        """Start from the snapshot of an entry."""
        self.whole = saved.tasks is not None
        try:
            self.state = restore(saved)
        except Exception as error:
            raise does_not_follow(self.state.workflow_id, entry.seq, error) from error
        self.unsaved = self.unsaved.after(entry.seq, len(entry.entry), saved)

    def fold(self, entry: JournalEntry, events: Sequence[Event]) -> None:
        """Apply the next entry."""
        fold(self.state, entry.seq, events, evolve if self.whole else evolve_lifecycle)
        self.unsaved = self.unsaved.after(entry.seq, len(entry.entry), saved_in(events))

    def recovered(self, history: History) -> Recovered:
        """The workflow, after its journal is read to the end."""
        chain = history.chain
        link = chain.link or NO_LINK
        return Recovered(self.state, chain.seq, link, self.unsaved, whole=self.whole)


class More(NamedTuple):
    """The new entries of a journal that was read before."""

    entries: list[tuple[JournalEntry, list[AnyEvent]]]
    history: History

    def added_to(self, state: WorkflowState, unsaved: Unsaved) -> Recovered:
        """The workflow with the new entries applied to its state, which changes.

        Raises:
            StorageCorruptError: the events can't be applied; names the entry.
        """
        reading = Reading(self.history.row)
        reading.state, reading.unsaved = state, unsaved
        for entry, events in self.entries:
            reading.fold(entry, events)
        return reading.recovered(self.history)


def read_more(storage: Storage, state: WorkflowState, seq: int, link: bytes) -> More | None:
    """The entries after ``seq``, which left this state and this link; None if the workflow was
    deleted. Errors are those of `recover`."""
    row = storage.read_catalog(state.workflow_id)
    if row is None or row.incarnation != state.incarnation:
        return None
    history = History(storage, row, seq, link)
    try:
        return More(list(history.read()), history)
    except WorkflowNotFoundError:
        return None  # Deleted between the two reads.


def no_snapshot(row: CatalogRow) -> StorageCorruptError:
    """The error for a row that names an entry without a snapshot."""
    return StorageCorruptError(
        f"The catalog says that entry {row.snapshot} in the journal of workflow "
        f"'{row.workflow_id}' has a snapshot, and it has none. Write the row anew with "
        f"`ray-workflows repair`, or restore it from a backup."
    )


def fold(
    state: WorkflowState,
    seq: int,
    events: Iterable[Event],
    apply: Callable[[WorkflowState, Event], object] = evolve,
) -> None:
    """Apply the events of an entry.

    Raises:
        StorageCorruptError: they can't be applied to the state; names the entry.
    """
    try:
        for event in events:
            apply(state, event)
    except Exception as error:
        raise does_not_follow(state.workflow_id, seq, error) from error


def does_not_follow(workflow_id: str, seq: int, error: Exception) -> StorageCorruptError:
    """The error for a journal entry whose events can't be applied."""
    return StorageCorruptError(
        f"Journal entry {seq} of workflow '{workflow_id}' does not follow from those before it: "
        f"{type(error).__name__}: {error}. Either the journal is damaged, or another release of "
        f"ray-workflows wrote it: use that one, or delete the workflow."
    )


def read_end(storage: Storage, workflow_id: str) -> CatalogRow | None:
    """The row of a workflow as of its journal's end, without reading the tasks: a journal of a
    million tasks takes seconds to read. None if there is no workflow.

    Errors are those of `recover`.
    """
    row = storage.read_catalog(workflow_id)
    if row is None or not storage.read_journal(row.incarnation, row.seq):
        return row
    # The row is older than the journal, in a storage that does not write both at once.
    recovered = recover(storage, workflow_id, whole=False)
    return None if recovered is None else recovered.row


def is_awaited(storage: Storage, row: CatalogRow) -> bool:
    """Whether the workflow that has started this one does not know yet that it is there: it would
    hand it over again, and this one would begin anew if it was deleted."""
    parent = storage.read_catalog(row.parent) if row.parent else None
    if parent is None or parent.status not in ACTIVE:
        # A workflow that has ended knows of all that it has started.
        return False
    try:
        outbox = read_state(storage, parent, whole=False).state.outbox
        if not any(message.target == row.workflow_id for message in outbox.values()):
            return False
        # One that is damaged can't say that it is there, and its parent waits for it: to delete it
        # and have it begin anew is a way out.
        read_state(storage, row, whole=False)
    except (WorkflowNotFoundError, StorageCorruptError):
        # One of the two was deleted meanwhile, or can't be read.
        return False
    return True


def list_rows(
    storage: Storage, query: CatalogQuery, damaged: list[str] | None = None
) -> Iterator[CatalogRow]:
    """All rows of a query, page by page. ``damaged`` gets what is wrong with those left out."""
    while True:
        page = storage.list_catalog(query)
        if damaged is not None:
            damaged += page.damaged
        yield from page.rows
        if page.cursor is None:
            return
        query = msgspec.structs.replace(query, cursor=page.cursor)
