"""`PutOnceStorage`: a `Storage` on any store that can create an object only if it is not there.

Object stores and shared directories are the two kinds; this is the one algorithm of both. What
keeps a stale writer out is that the next number of a journal can be created once. See
``docs/decisions/011-put-once-storage.md``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
)
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.objects.client import Crew, Operations
from ray_workflows.storage.objects.deletion import Blobs, Burial
from ray_workflows.storage.objects.index import Index, quietly
from ray_workflows.storage.objects.index_keys import ACTIVE, entry_key, short_hash
from ray_workflows.storage.objects.journals import End, Journals, segment_key
from ray_workflows.storage.objects.leases import Holders
from ray_workflows.storage.objects.records import (
    Layout,
    Segment,
    decode,
    encode,
    new_nonce,
    pack_row,
    tombstone,
    unpack_row,
)
from ray_workflows.storage.records import check_appends

OK, STALE, AMBIGUOUS = CommitOutcome.OK, CommitOutcome.STALE, CommitOutcome.AMBIGUOUS

LAYOUT_KEY = "layout"
LAYOUT_VERSION = 1

#: An entry that was put longer ago than this before its segment is put again after it.
PROMPT_SECONDS = 60.0


class Ready(NamedTuple):
    """An append with what it puts. ``unlisted``: nothing is listed anew. ``doubt``: what is listed
    before, if anything."""

    append: Append
    before: End
    key: str
    segment: Segment
    data: bytes
    unlisted: bool
    doubt: str
    made_at: float


class PutOnceStorage(Storage):
    """Journals, index and holders as objects. Subclasses say where; they are what users name.

    Args:
        operations: the store.
        blobs: where the blobs are.
        crew: what runs independent requests at once.
        clock: this machine's time, in seconds since 1970.
    """

    def __init__(
        self,
        operations: Operations,
        blobs: Blobs,
        *,
        crew: Crew | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.operations = operations
        self.blobs = blobs
        self.crew = crew or Crew()
        self.clock = clock
        self.journals = Journals(operations, self.crew, clock)
        self.holders = Holders(operations, self.crew, clock)
        self.index = Index(self.journals, self.holders.is_alive)
        self.burial = Burial(self.index, blobs)

    def open(self) -> None:
        """Create what is needed, and check that the store keeps what it promises.

        Raises:
            StorageConfigError: it can't be used; the message names the remedy.
        """
        first = Layout(new_nonce(), LAYOUT_VERSION)
        self.operations.put_if_absent(LAYOUT_KEY, encode(first, LAYOUT_KEY))
        self.open_existing()
        again = Layout(new_nonce(), LAYOUT_VERSION)
        if self.operations.put_if_absent(LAYOUT_KEY, encode(again, LAYOUT_KEY)):
            raise StorageConfigError(
                f"{self.url} does not support conditional writes: an object that existed was "
                f"created again, so that nothing would keep two coordinators apart. Use a store "
                f"that honours If-None-Match on PUT (Amazon S3, Google Cloud Storage, Azure Blob "
                f"Storage, recent MinIO, Ceph and R2 do), or another kind of storage."
            )

    def open_existing(self) -> None:
        """Check that there is a storage here that can be read; creates nothing.

        Raises:
            StorageConfigError: there is none, it can't be read, or a newer release wrote it.
        """
        found = self.operations.get(LAYOUT_KEY)
        if found is None:
            raise StorageConfigError(
                f"{self.url} is not a storage of workflows: it has no object {LAYOUT_KEY!r}. "
                f"Nothing was created. Name what was given to init(storage=...), with --storage "
                f"or $RAY_WORKFLOW_STORAGE."
            )
        layout = decode(Layout, found.data, LAYOUT_KEY)
        if layout.layout > LAYOUT_VERSION:
            raise StorageConfigError(
                f"{self.url} was written by a newer release of ray-workflows (layout "
                f"{layout.layout}; this one knows up to {LAYOUT_VERSION}). Upgrade ray-workflows "
                f"here."
            )

    def close(self) -> None:
        """Give back threads and connections; the next use takes them anew."""
        quietly(self.index.pay)
        quietly(self.holders.forget_clock)
        self.crew.close()
        self.operations.close()

    # -- journal and catalog ---------------------------------------------------------------

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """Append to several journals at once; see `Storage.commit`."""
        appends = list(appends)
        check_appends(appends)
        self.index.pay()
        groups: dict[str, list[int]] = {}
        for number, append in enumerate(appends):
            groups.setdefault(append.workflow_id, []).append(number)
        parts = list(groups.values())
        single = [self.single_put([appends[number] for number in numbers]) for numbers in parts]
        works: list[Callable[[], Any]] = [
            partial(self.append_in_turn, [appends[number] for number in numbers])
            if ready is None
            else partial(self.operations.put_if_absent, ready.key, ready.data)
            for numbers, ready in zip(parts, single, strict=True)
        ]
        found = self.crew.groups(works) if works else []
        outcomes = [AMBIGUOUS] * len(appends)
        for numbers, ready, outcome in zip(parts, single, found, strict=True):
            if isinstance(outcome, StorageUnavailableError):
                continue
            if isinstance(outcome, Exception):
                raise outcome
            said = outcome if ready is None else [self.settle(ready, outcome)]
            for number, each in zip(numbers, said, strict=True):
                outcomes[number] = each
        if found and all(isinstance(outcome, Exception) for outcome in found):
            # So that the caller can say why.
            assert isinstance(found[0], Exception)
            raise found[0]
        return outcomes

    def single_put(self, appends: list[Append]) -> Ready | None:
        """The append to a workflow, if all that it takes is one put: nearly every one is so.

        Then only the put has a thread. With all of it on one, threads of a large group take the
        interpreter from each other, and it takes four times as long.
        """
        if len(appends) > 1 or appends[0].expected_seq <= 1:
            return None
        before = self.journals.known(appends[0].incarnation, appends[0].expected_seq)
        if before is None or not is_journal_of(before, appends[0]):
            return None
        ready = self.make_ready(appends[0], before)
        return ready if ready.unlisted else None

    def append_in_turn(self, appends: list[Append]) -> list[CommitOutcome]:
        """Append to one workflow. What comes after an unknown outcome is not tried."""
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
        journals, incarnation, seq = self.journals, append.incarnation, append.expected_seq
        before = journals.at(incarnation, seq)
        if before is None or not is_journal_of(before, append):
            return STALE
        if seq == 1 and not journals.is_linked(append.workflow_id, incarnation):
            return STALE
        ready = self.make_ready(append, before)
        if ready.doubt:
            self.index.put(ready.doubt, append.catalog)
        return self.settle(ready, self.operations.put_if_absent(ready.key, ready.data))

    def make_ready(self, append: Append, before: End) -> Ready:
        """What an append after an end puts; does nothing."""
        assert before.segment.row is not None
        row = append.catalog
        was = before.segment.row.row
        segment = new_segment(append)
        # What its own coordinator appends need not be seen by others at once. What another one
        # does (a request) has to be, and its holder looks for it in the listing.
        ours = self.holders.is_ours(row.holder)
        unlisted = ours and before.listed and is_same_listing(before.segment, segment)
        doubt = ""
        if unlisted:
            segment.listed_as = before.segment.listed_as
        else:
            segment.listed_as = entry_key(row, segment.nonce)
            entries = before.segment.entries
            # What came before the entry of an end that we listed is gone.
            segment.replaced = entries[-1:] if before.listed else entries
            if was.status not in ACTIVE:
                # Before a settled workflow becomes something else, it is listed as open.
                doubt = entry_key(row, segment.nonce, tentative=True)
                if row.status in ACTIVE:
                    segment.listed_as = doubt
        key = segment_key(append.incarnation, append.expected_seq + 1)
        data = encode(segment, key)
        return Ready(append, before, key, segment, data, unlisted, doubt, self.clock())

    def settle(self, ready: Ready, created: bool) -> CommitOutcome:
        """What follows from whether the segment of an append could be created."""
        journals, segment, doubt = self.journals, ready.segment, ready.doubt
        row, incarnation = ready.append.catalog, ready.append.incarnation
        if not created:
            journals.forget(incarnation)
            if doubt:
                quietly(partial(self.operations.delete, [doubt]))
            return STALE
        journals.remember(ready.key, segment, len(ready.data))
        if not self.is_timely(ready.before, incarnation):
            return STALE
        listed = True
        if not ready.unlisted:
            late = self.clock() - ready.made_at > PROMPT_SECONDS
            listed = self.index.advance(
                row,
                add="" if segment.listed_as == doubt and not late else segment.listed_as,
                # The doubt stays for the next who lists: between two settled states, somebody who
                # is listing them now sees by it that he may have missed this one.
                remove=[key for key in segment.replaced if key != segment.listed_as],
            )
        journals.learn(incarnation, End(row.seq, segment, self.clock(), listed))
        return OK

    def is_timely(self, before: End, incarnation: str) -> bool:
        """Whether what an append was based on still held: its process may have slept for hours,
        and the workflow been deleted meanwhile, with all traces. Takes the append back if not."""
        if self.journals.is_recent(before.read_at):
            return True
        found = self.journals.segment_now(incarnation, before.seq)
        if found is not None and not found.tombstone:
            return True
        self.journals.forget(incarnation)
        self.burial.abandon(incarnation, before.segment.workflow_id, before.segment.entries)
        return False

    def create(self, append: Append) -> CommitOutcome:
        """Create a workflow: its first segment, then the pointer from its id. It exists from the
        moment that the pointer is there."""
        journals = self.journals
        workflow_id, incarnation, row = append.workflow_id, append.incarnation, append.catalog
        segment = new_segment(append)
        doubt = entry_key(row, segment.nonce, tentative=True)
        segment.listed_as = doubt if row.status in ACTIVE else entry_key(row, segment.nonce)
        started_at = self.clock()
        steps: list[Callable[[], Any]] = [
            partial(self.index.put, doubt, row),
            partial(journals.put, incarnation, 1, segment),
            partial(journals.chain_keys, workflow_id),
        ]
        _, created, keys = self.crew.together(steps)
        chain = journals.follow(keys)
        link = None
        if not created:
            # An earlier try of this creation that broke off, or somebody else's incarnation.
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
        # Two that find nothing in different hours create different pointers; both then see both.
        others = [(key, pointer) for key, pointer in chain if pointer.incarnation != incarnation]
        if journals.current(others) is not None or not journals.is_recent(started_at):
            self.undo(append, created, link, doubt)
            return STALE
        journals.note_linked(incarnation)
        listed = True
        if segment.listed_as != doubt:
            listed = self.index.advance(row, add=segment.listed_as, remove=[doubt])
        journals.learn(incarnation, End(1, segment, self.clock(), listed))
        return OK

    def undo(self, append: Append, created: bool, link: str | None, doubt: str) -> None:
        """Take back a creation that came too late. The incarnation can be used again."""
        incarnation = append.incarnation

        def work() -> None:
            if link is not None:
                self.operations.delete([link])
            if created:
                self.journals.forget_all(incarnation)
                self.operations.delete([segment_key(incarnation, 1)])
            self.operations.delete([doubt])

        quietly(work)

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """Entries with ``seq > after``, in order."""
        segments = self.journals.read(incarnation, after)
        # A single one may be of a creation that came to nothing.
        if [seq for seq, _ in segments] == [1] and not self.journals.is_linked(
            segments[0][1].workflow_id, incarnation
        ):
            return []
        return [JournalEntry(seq, s.commit_id, s.entry) for seq, s in segments]

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of a workflow, from the end of its journal, or None.

        Raises:
            StorageCorruptError: an object is damaged, or the journal ends before what is listed.
        """
        current = self.journals.current(self.journals.chain(workflow_id))
        if current is None or current[1].segment.row is None:
            return None
        row = unpack_row(current[1].segment.row)
        if row.status in ACTIVE and not self.is_driven(row):
            # Nobody drives it, or so it seems: its last segments may be lost.
            self.index.check_end(row)
        return row

    def is_driven(self, row: CatalogRow) -> bool:
        """Whether a live coordinator drives a workflow, as far as that can be told."""
        try:
            return self.holders.is_alive(short_hash(row.holder))
        except StorageUnavailableError:
            # The clock of a directory takes a write, and a disk that is read-only can be read.
            return False

    def list_catalog(self, query: CatalogQuery) -> Page:
        """One page of rows. Of a workflow in the hands of a live coordinator, ``seq`` may be that
        of its last change of status or by another process."""
        self.index.pay()
        return self.index.page(query)

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete a workflow and its blobs, if its journal still ends at ``expected_seq``."""
        journals = self.journals
        before = journals.at(incarnation, expected_seq) if expected_seq > 0 else None
        if before is None or before.segment.row is None:
            return STALE
        if before.segment.workflow_id != workflow_id:
            return STALE
        if expected_seq == 1 and not journals.is_linked(workflow_id, incarnation):
            return STALE
        row = msgspec.structs.replace(unpack_row(before.segment.row), seq=expected_seq + 1)
        doubt = entry_key(row, new_nonce(), tentative=True)
        self.index.put(doubt, row)
        if not journals.put(incarnation, expected_seq + 1, tombstone(before.segment)):
            journals.forget(incarnation)
            quietly(partial(self.operations.delete, [doubt]))
            return STALE
        # The workflow is gone, whatever happens now; the entry in doubt leads to what is left.
        quietly(partial(self.burial.bury, incarnation, workflow_id, (doubt,)))
        return OK

    # -- blobs -----------------------------------------------------------------------------

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob durably unless the key exists; return what is stored."""
        return self.blobs.write(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, checked."""
        return self.blobs.read(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, checked at the end."""
        return self.blobs.stream(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a stored blob, or None."""
        return self.blobs.find(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation."""
        self.blobs.delete(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations whose newest blob is older than the grace period, with a workflow or not."""
        before = self.holders.fresh_now() - grace_seconds
        newest = ((name, self.blobs.newest(name)) for name in self.blobs.incarnations())
        return [name for name, time in newest if time is not None and time <= before]

    def sweep(self, grace_seconds: float) -> int:
        """Finish interrupted deletions and creations, and remove blobs of no workflow."""
        self.index.pay()
        return self.burial.sweep(self.holders.fresh_now(), grace_seconds)

    # -- holders ---------------------------------------------------------------------------

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew the holder's row; the lease runs from when the store wrote it."""
        self.holders.renew(holder, lease_seconds)
        quietly(self.index.pay)

    def remove_holder(self, holder_id: str) -> None:
        """Remove the holder's row, if there is one."""
        self.holders.remove(holder_id)

    def read_holders(self) -> list[Holder]:
        """All holders, by id."""
        return self.holders.read()

    def now(self) -> float:
        """The store's clock, at most a second late."""
        return self.holders.now()


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
