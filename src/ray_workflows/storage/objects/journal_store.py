"""`ObjectsJournals`: journals on any store that can create an object only if it is not there.

Object stores and shared directories are the two kinds; this is the one algorithm of both. The next
number of a journal can be created only once: that fences a stale writer. See
``docs/decisions/011-put-once-storage.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    JournalEntry,
    Page,
)
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.objects.deletion import Blobs, Burial
from ray_workflows.storage.objects.home import ObjectsHome
from ray_workflows.storage.objects.index import quietly
from ray_workflows.storage.objects.index_keys import ACTIVE, entry_key, short_hash
from ray_workflows.storage.objects.journals import End, segment_key
from ray_workflows.storage.objects.records import (
    Segment,
    encode,
    new_nonce,
    pack_row,
    tombstone,
    unpack_row,
)
from ray_workflows.storage.objects.relisting import Relisting
from ray_workflows.storage.parts import CommitOutcome, JournalStore
from ray_workflows.storage.validation import check_appends

OK, STALE, AMBIGUOUS = CommitOutcome.OK, CommitOutcome.STALE, CommitOutcome.AMBIGUOUS

#: A tentative index entry older than this, in seconds, when its segment is created is put again.
PROMPT_SECONDS = 60.0


class Ready(NamedTuple):
    """An append with the objects that it puts.

    ``unlisted``: the index entry stays as it is. ``doubt``: the key of the tentative index entry to
    put before the segment, or empty.
    """

    append: Append
    before: End
    key: str
    segment: Segment
    data: bytes
    unlisted: bool
    doubt: str
    made_at: float


class ObjectsJournals(JournalStore):
    """Journals and catalog as objects. Deletes a workflow's blobs in the same home with it.

    Args:
        home: the store.
        blobs: the blobs in it.
    """

    home: ObjectsHome

    def __init__(self, home: ObjectsHome, blobs: Blobs) -> None:
        self.home = home
        self.blobs = blobs
        self.burial = Burial(home.index, blobs)
        self.relisting = Relisting(home.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.home, self.blobs)

    @property
    def lists_current_rows(self) -> bool:
        """False: a process that dies between two puts has changed a journal and not the index."""
        return False

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """Append to several journals at once; see `Storage.commit`."""
        appends = list(appends)
        check_appends(appends)
        self.home.index.pay()
        groups: dict[str, list[int]] = {}
        for number, append in enumerate(appends):
            groups.setdefault(append.workflow_id, []).append(number)
        parts = list(groups.values())
        single = [self.single_put([appends[number] for number in numbers]) for numbers in parts]
        works: list[Callable[[], Any]] = [
            partial(self.append_in_turn, [appends[number] for number in numbers])
            if ready is None
            else partial(self.home.operations.put_if_absent, ready.key, ready.data)
            for numbers, ready in zip(parts, single, strict=True)
        ]
        found = self.home.crew.groups(works) if works else []
        outcomes = [AMBIGUOUS] * len(appends)
        refusal: Exception | None = None
        for numbers, ready, outcome in zip(parts, single, found, strict=True):
            if isinstance(outcome, StorageUnavailableError):
                continue
            if isinstance(outcome, Exception):
                # Finish the others first: their objects are there.
                refusal = refusal or outcome
                continue
            said = outcome if ready is None else [self.settle(ready, outcome)]
            for number, each in zip(numbers, said, strict=True):
                outcomes[number] = each
        if refusal is not None:
            raise refusal
        if found and all(isinstance(outcome, Exception) for outcome in found):
            # The caller can report the reason.
            assert isinstance(found[0], Exception)
            raise found[0]
        return outcomes

    def single_put(self, appends: list[Append]) -> Ready | None:
        """The append to a workflow if one put does it, as nearly always; else None.

        Then only the put runs on a thread. If the preparation ran there too, the threads of a large
        group would compete for the interpreter lock, and take four times as long.
        """
        if len(appends) > 1 or appends[0].expected_seq <= 1:
            return None
        before = self.home.journals.known(appends[0].incarnation, appends[0].expected_seq)
        if before is None or not is_journal_of(before, appends[0]):
            return None
        ready = self.make_ready(appends[0], before)
        return ready if ready.unlisted else None

    def append_in_turn(self, appends: list[Append]) -> list[CommitOutcome]:
        """Append to one workflow, one after the other, up to the first unknown outcome."""
        outcomes: list[CommitOutcome] = []
        for append in appends:
            try:
                put = self.append if append.expected_seq else self.create
                outcomes.append(put(append))
            except StorageUnavailableError:
                if not outcomes:
                    raise
                return outcomes + [AMBIGUOUS] * (len(appends) - len(outcomes))
        return outcomes

    def append(self, append: Append) -> CommitOutcome:
        """Append an entry to a journal that exists."""
        journals, incarnation, seq = self.home.journals, append.incarnation, append.expected_seq
        before = journals.at(incarnation, seq)
        if before is None or not is_journal_of(before, append):
            return STALE
        if seq == 1 and not journals.is_linked(append.workflow_id, incarnation):
            return STALE
        ready = self.make_ready(append, before)
        if ready.doubt:
            self.home.index.put(ready.doubt, append.catalog)
        return self.settle(ready, self.home.operations.put_if_absent(ready.key, ready.data))

    def make_ready(self, append: Append, before: End) -> Ready:
        """Prepare an append after an end. Writes nothing."""
        assert before.segment.row is not None
        row = append.catalog
        was = before.segment.row.row
        segment = new_segment(append)
        # Other coordinators need not see the owner's appends at once. The owner must see theirs
        # (requests), and finds them by scanning the listing.
        ours = self.home.holders.is_ours(row.holder)
        unlisted = ours and before.listed and is_same_listing(before.segment, segment)
        doubt = ""
        if unlisted:
            segment.listed_as = before.segment.listed_as
        else:
            segment.listed_as = entry_key(row, segment.nonce)
            entries = before.segment.entries
            # If we listed that end, its older index entries are already deleted.
            segment.replaced = entries[-1:] if before.listed else entries
            if was.status not in ACTIVE:
                # An open entry comes before a settled workflow changes: until it is there, readers
                # believe the settled one.
                doubt = entry_key(row, segment.nonce, tentative=True)
                if row.status in ACTIVE:
                    segment.listed_as = doubt
        key = segment_key(append.incarnation, append.expected_seq + 1)
        data = encode(segment, key)
        return Ready(append, before, key, segment, data, unlisted, doubt, self.home.clock())

    def settle(self, ready: Ready, created: bool) -> CommitOutcome:
        """Finish an append after its put; ``created``: whether the put created the segment."""
        journals, segment, doubt = self.home.journals, ready.segment, ready.doubt
        row, incarnation = ready.append.catalog, ready.append.incarnation
        if not created:
            journals.forget(incarnation)
            if doubt:
                quietly(partial(self.home.operations.delete, [doubt]))
            return STALE
        journals.remember(ready.key, segment, len(ready.data))
        if not self.is_timely(ready.before, incarnation):
            return STALE
        listed = True
        if not ready.unlisted:
            late = self.home.clock() - ready.made_at > PROMPT_SECONDS
            listed = self.home.index.advance(
                row,
                add="" if segment.listed_as == doubt and not late else segment.listed_as,
                # Keep the tentative entry: a concurrent listing of settled workflows notices by it
                # that it may have missed this one, which moved from one settled state to another.
                remove=[key for key in segment.replaced if key != segment.listed_as],
            )
        journals.learn(incarnation, End(row.seq, segment, self.home.clock(), listed))
        return OK

    def is_timely(self, before: End, incarnation: str) -> bool:
        """Whether the end that an append followed was still valid. The process may have been paused
        for hours while the workflow was deleted and swept. If not, takes the append back."""
        if self.home.journals.is_recent(before.read_at):
            return True
        found = self.home.journals.segment_now(incarnation, before.seq)
        if found is not None and not found.tombstone:
            return True
        self.home.journals.forget(incarnation)
        self.burial.abandon(incarnation, before.segment.workflow_id, before.segment.entries)
        return False

    def create(self, append: Append) -> CommitOutcome:
        """Create a workflow: first its segment, then the pointer from its id. The workflow exists
        from when the pointer exists."""
        journals = self.home.journals
        workflow_id, incarnation, row = append.workflow_id, append.incarnation, append.catalog
        segment = new_segment(append)
        doubt = entry_key(row, segment.nonce, tentative=True)
        segment.listed_as = doubt if row.status in ACTIVE else entry_key(row, segment.nonce)
        started_at = self.home.clock()
        steps: list[Callable[[], Any]] = [
            partial(self.home.index.put, doubt, row),
            partial(journals.put, incarnation, 1, segment),
            partial(journals.chain_keys, workflow_id),
        ]
        _, created, keys = self.home.crew.together(steps)
        chain = journals.follow(keys)
        link = None
        if not created:
            # An earlier try of this creation was interrupted, or it is another's incarnation.
            first = journals.end(incarnation)
            if first is None or first.seq != 1 or not is_same_creation(first.segment, append):
                self.undo(append, False, None, doubt)
                return STALE
            segment = first.segment
        while link is None:
            mine = any(pointer.incarnation == incarnation for _, pointer in chain)
            if mine or journals.current(chain) is not None:
                self.undo(append, created and not mine, None, doubt)
                return STALE
            link = journals.link(workflow_id, incarnation, chain)
            chain = journals.chain(workflow_id)
        # Two creators that find no pointer in different hours create different ones. Listing again
        # shows both pointers to both.
        others = [(key, pointer) for key, pointer in chain if pointer.incarnation != incarnation]
        if journals.current(others) is not None or not journals.is_recent(started_at):
            self.undo(append, created, link, doubt)
            return STALE
        journals.note_linked(incarnation)
        listed = True
        if segment.listed_as != doubt:
            listed = self.home.index.advance(row, add=segment.listed_as, remove=[doubt])
        journals.learn(incarnation, End(1, segment, self.home.clock(), listed))
        return OK

    def undo(self, append: Append, created: bool, link: str | None, doubt: str) -> None:
        """Take back a creation that came too late. The incarnation can be used again."""
        incarnation = append.incarnation

        def work() -> None:
            if link is not None:
                self.home.operations.delete([link])
            if created:
                self.home.journals.forget_all(incarnation)
                self.home.operations.delete([segment_key(incarnation, 1)])
            self.home.operations.delete([doubt])

        quietly(work)

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """Entries with ``seq > after``, in order."""
        segments = self.home.journals.read(incarnation, after)
        # A single entry may belong to a creation that was never completed.
        if [seq for seq, _ in segments] == [1] and not self.home.journals.is_linked(
            segments[0][1].workflow_id, incarnation
        ):
            return []
        return [JournalEntry(seq, s.commit_id, s.entry) for seq, s in segments]

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of a workflow, from the end of its journal, or None.

        Raises:
            StorageCorruptError: an object is damaged, or the journal ends before what is listed.
        """
        current = self.home.journals.current(self.home.journals.chain(workflow_id))
        if current is None or current[1].segment.row is None:
            return None
        row = unpack_row(current[1].segment.row)
        if row.status in ACTIVE and not self.is_driven(row):
            # It seems that no coordinator drives it: its last segments may be lost.
            self.home.index.check_end(row)
        return row

    def is_driven(self, row: CatalogRow) -> bool:
        """Whether a live coordinator drives a workflow; False if that can't be found out."""
        try:
            return self.home.holders.is_alive(short_hash(row.holder))
        except StorageUnavailableError:
            # A directory's clock needs a write. On a read-only disk rows must stay readable.
            return False

    def list_catalog(self, query: CatalogQuery) -> Page:
        """One page of rows. While a live coordinator drives a workflow, its ``seq`` may be that of
        the last entry that changed its status or came from another process."""
        self.home.index.pay()
        return self.home.index.page(query)

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete a workflow and its blobs, if its journal still ends at ``expected_seq``."""
        journals = self.home.journals
        before = journals.at(incarnation, expected_seq) if expected_seq > 0 else None
        if before is None or before.segment.row is None:
            return STALE
        if before.segment.workflow_id != workflow_id:
            return STALE
        if expected_seq == 1 and not journals.is_linked(workflow_id, incarnation):
            return STALE
        row = msgspec.structs.replace(unpack_row(before.segment.row), seq=expected_seq + 1)
        doubt = entry_key(row, new_nonce(), tentative=True)
        self.home.index.put(doubt, row)
        if not journals.put(incarnation, expected_seq + 1, tombstone(before.segment)):
            journals.forget(incarnation)
            quietly(partial(self.home.operations.delete, [doubt]))
            return STALE
        # The workflow is deleted, whatever happens now. The tentative entry leads the sweep to what
        # is left.
        quietly(partial(self.burial.bury, incarnation, workflow_id, (doubt,)))
        return OK

    def relist(self, workflow_id: str) -> bool:
        """Rewrite the pointer and the index entry of a workflow if they are damaged."""
        return self.relisting.relist(workflow_id)

    def sweep(self, grace_seconds: float) -> int:
        """Finish interrupted deletions and creations, and remove blobs of no workflow."""
        self.home.index.pay()
        return self.burial.sweep(self.home.holders.fresh_now(), grace_seconds)


def new_segment(append: Append) -> Segment:
    """The segment of an append, not yet listed."""
    return Segment(
        nonce=new_nonce(),
        workflow_id=append.workflow_id,
        commit_id=append.commit_id,
        row=pack_row(append.catalog),
        entry=append.entry,
    )


def is_journal_of(end: End, append: Append) -> bool:
    """Whether an end is that of the workflow appended to, and not of a deleted one."""
    return not end.segment.tombstone and end.segment.workflow_id == append.workflow_id


def is_same_creation(first: Segment, append: Append) -> bool:
    """Whether a segment was written by an earlier try of a creation."""
    return first.commit_id == append.commit_id and first.workflow_id == append.workflow_id


def is_same_listing(before: Segment, after: Segment) -> bool:
    """Whether two rows differ in their numbers only."""
    if before.row is None or after.row is None:
        return False
    same = msgspec.structs.replace(before.row.row, seq=after.row.row.seq)
    return same == after.row.row and before.row.metadata == after.row.metadata
