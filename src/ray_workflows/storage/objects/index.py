"""The index of `PutOnceStorage`: lists workflows in order, by names of objects alone.

The journals are the truth. A reader believes an entry if its holder lives; else it compares the
entry with the journal, and corrects it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import merge
from threading import Lock

from ray_workflows._model.catalog import CatalogQuery, CatalogRow, Page, matches
from ray_workflows._model.status import WORKFLOWS, WorkflowStatus
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError
from ray_workflows.storage.objects.index_keys import (
    ACTIVE,
    OPEN,
    SETTLED,
    Entry,
    day,
    id_of,
    parse,
    place,
    short_hash,
    time_of,
)
from ray_workflows.storage.objects.journals import KNOWN_ENDS, End, Journals, segment_key
from ray_workflows.storage.objects.narrowing import days_within, may_match
from ray_workflows.storage.objects.records import Row, decode, encode, pack_row, unpack_row
from ray_workflows.storage.validation import (
    Position,
    check_limit,
    decode_cursor,
    encode_cursor,
)

logger = logging.getLogger(__name__)

#: How often a page is listed, if workflows move between its prefixes meanwhile.
ATTEMPTS = 3

#: The settled statuses as they stand in names.
SETTLED_STATUSES = tuple(status.value for status in WorkflowStatus if status not in ACTIVE)

#: Rows read at once when only the rows tell which of them match.
LEAST_BATCH = 64

#: A place in the order, the entry at that place, and its row if it was read.
Candidate = tuple[str, Entry, CatalogRow | None]


class Index:
    """The objects ``index/open/...`` and ``index/settled/...``."""

    def __init__(self, journals: Journals, is_alive: Callable[[str], bool]) -> None:
        self.journals = journals
        self.operations = journals.operations
        self.crew = journals.crew
        #: Whether the holder with this hash lives, by its lease.
        self.is_alive = is_alive
        self.lock = Lock()
        #: Rows of entries, which never change, by key.
        self.rows: OrderedDict[str, CatalogRow] = OrderedDict()
        #: Keys of entries that were compared with the journal.
        self.verified: OrderedDict[str, None] = OrderedDict()
        #: Keys to correct when the store answers again, by incarnation.
        self.debts: dict[str, set[str]] = {}

    # -- writing ---------------------------------------------------------------------------

    def put(self, key: str, row: CatalogRow) -> None:
        """Write an entry."""
        self.operations.put(key, encode(pack_row(row), key))

    def advance(self, row: CatalogRow, *, add: str, remove: Iterable[str]) -> bool:
        """Put the entry for a workflow's new end, and delete older ones.

        False if the store does not answer: the journal has the append, and `pay` corrects the index
        later.
        """
        try:
            if add:
                self.put(add, row)
            works = [partial(self.operations.delete, [key for key in remove if key])]
            if add:
                works.append(partial(self.withdraw_if_late, row.incarnation, row.seq, add))
            self.crew.together(works)
        except StorageUnavailableError:
            self.owe(row.incarnation, [add, *remove])
            return False
        return True

    def withdraw_if_late(self, incarnation: str, seq: int, key: str) -> None:
        """Delete an entry if the journal has a later segment: its writer deletes older entries, but
        may have done so before this one was put."""
        if self.operations.get(segment_key(incarnation, seq + 1)) is not None:
            self.operations.delete([key])

    def owe(self, incarnation: str, keys: Iterable[str]) -> None:
        """Note entries of an incarnation that `pay` has to correct."""
        with self.lock:
            self.debts.setdefault(incarnation, set()).update(key for key in keys if key)

    def pay(self) -> None:
        """Correct the noted entries, as far as the store answers."""
        with self.lock:
            debts, self.debts = self.debts, {}
        while debts:
            incarnation, keys = debts.popitem()
            try:
                self.mend(incarnation, keys, sure=False)
            except StorageUnavailableError:
                self.owe(incarnation, keys)
                for incarnation, keys in debts.items():
                    self.owe(incarnation, keys)
                return

    def mend(
        self, incarnation: str, keys: Iterable[str], *, sure: bool = True
    ) -> CatalogRow | None:
        """Make the entries of an incarnation agree with its journal; its row if it has one.

        ``keys``: the entries that exist if ``sure``, else those that may exist.

        Entries for numbers beyond the journal's end stay, because a writer may be about to append.
        The sweep removes them when they are old.
        """
        found = self.live_end(incarnation)
        if found is None:
            return None
        end, row = found
        right = end.segment.listed_as
        if not sure or right not in keys:
            self.put(right, row)
            self.withdraw_if_late(incarnation, end.seq, right)
        known = {*keys, *end.segment.replaced}
        wrong = [key for key in known if key != right and seq_of(key) <= end.seq]
        # Open entries go last: while one is there, readers compare with the journal.
        self.operations.delete(sorted(wrong, key=lambda key: key.startswith(OPEN)))
        with self.lock:
            self.verified[right] = None
            if len(self.verified) > KNOWN_ENDS:
                self.verified.popitem(last=False)
        return row

    def live_end(self, incarnation: str) -> tuple[End, CatalogRow] | None:
        """The end of a journal and its row; None if it is deleted or its creation is incomplete."""
        end = self.journals.end(incarnation)
        if end is None or end.segment.row is None:
            return None
        if end.seq == 1 and not self.journals.is_linked(end.segment.workflow_id, incarnation):
            return None
        return end, unpack_row(end.segment.row)

    def check_end(self, row: CatalogRow) -> None:
        """Raise if the index has a later end than the journal. That is damage, because entries that
        are not tentative are put after their segments.

        Raises:
            StorageCorruptError: names the segment that is missing.
        """
        numbers = [entry.seq for entry in self.entries_for(row) if not entry.tentative]
        listed = max(numbers, default=0)
        if listed <= row.seq:
            return
        key = segment_key(row.incarnation, listed)
        if self.operations.get(key) is None:
            raise StorageCorruptError(
                f"{key} is missing: workflow '{row.workflow_id}' is listed as of it, but its "
                f"journal ends with {row.seq}. Restore it from a backup or an earlier version of "
                f"the object."
            )

    # -- reading ---------------------------------------------------------------------------

    def entries_for(self, row: CatalogRow) -> list[Entry]:
        """All entries for the journal of a row."""
        at, mine = place(row.submitted_at, row.workflow_id), short_hash(row.incarnation)
        days = [f"{SETTLED}/{status}/{day(row.submitted_at)}" for status in SETTLED_STATUSES]

        def those_at(prefix: str) -> list[Entry]:
            found = itertools.takewhile(lambda each: each.place == at, self.entries(prefix, at))
            return [entry for entry in found if entry.incarnation_hash == mine]

        found = self.crew.together([partial(those_at, prefix) for prefix in (OPEN, *days)])
        return list(itertools.chain.from_iterable(found))

    def entries(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """The entries directly below a prefix, in order. Other names are skipped."""
        for listed in self.operations.list(prefix, after):
            entry = parse(prefix, listed.name)
            if entry is not None:
                yield entry

    def row(self, key: str) -> CatalogRow | None:
        """The row of an entry; None if the entry is gone."""
        with self.lock:
            if key in self.rows:
                self.rows.move_to_end(key)
                return copied(self.rows[key])
        found = self.operations.get(key)
        if found is None:
            return None
        try:
            row = unpack_row(decode(Row, found.data, key))
        except StorageCorruptError as damage:
            raise entry_damage(key, damage) from damage
        with self.lock:
            self.rows[key] = row
            if len(self.rows) > KNOWN_ENDS:
                self.rows.popitem(last=False)
        return copied(row)

    def page(self, query: CatalogQuery) -> Page:
        """One page of rows."""
        after = decode_cursor(query.cursor, newest_first=query.newest_first)
        limit = check_limit(query.limit)
        for attempt in range(ATTEMPTS):
            last_try = attempt == ATTEMPTS - 1
            damaged: list[str] = []
            opened = list(self.entries(OPEN))
            resolved = self.resolve(opened, damaged)
            candidates = self.ordered(query, resolved, after)
            # One row more than the limit shows whether there is a next page.
            rows = self.take(candidates, query, after, limit + 1, damaged, patient=not last_try)
            if rows is None or (not last_try and self.moved(query, opened)):
                continue
            if len(rows) <= limit:
                return Page(tuple(rows), None, tuple(damaged))
            del rows[limit:]
            cursor = encode_cursor((rows[-1].submitted_at, rows[-1].workflow_id))
            return Page(tuple(rows), cursor, tuple(damaged))
        raise AssertionError("unreachable")

    def moved(self, query: CatalogQuery, opened: list[Entry]) -> bool:
        """Whether a settled workflow became open during the listing, which may have missed it in
        both places."""
        if query.statuses and not any(status not in ACTIVE for status in query.statuses):
            return False
        before = {entry.incarnation_hash for entry in opened}
        return any(
            entry.incarnation_hash not in before and entry.seq > 1 for entry in self.entries(OPEN)
        )

    def resolve(self, opened: Iterable[Entry], damaged: list[str]) -> dict[str, Candidate | None]:
        """The workflows of the open entries, by hash of the incarnation; None if there is none.

        Appends to ``damaged`` what is wrong with those that can't be read.
        """
        groups: dict[str, list[Entry]] = {}
        for entry in opened:
            groups.setdefault(entry.incarnation_hash, []).append(entry)
        resolved: dict[str, Candidate | None] = {}
        doubtful: list[list[Entry]] = []
        for hash, group in groups.items():
            (first, *others) = group
            if not others and self.is_believed(first):
                resolved[hash] = (first.place, first, None)
            else:
                doubtful.append(group)
        found = self.crew.groups([partial(self.verify, group) for group in doubtful])
        for group, outcome in zip(doubtful, found, strict=True):
            if isinstance(outcome, StorageCorruptError):
                note_damage(damaged, outcome)
                resolved[group[0].incarnation_hash] = None
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                resolved[group[0].incarnation_hash] = outcome
        return resolved

    def is_believed(self, entry: Entry) -> bool:
        """Whether an incarnation's only entry can be used without reading the journal."""
        if entry.key in self.verified:
            return True
        return not entry.tentative and self.is_alive(entry.holder_hash)

    def verify(self, group: list[Entry]) -> Candidate | None:
        """Read the true row of one incarnation from its journal, and correct its entries."""
        best = max(group, key=lambda entry: entry.seq)
        row = None
        for entry in group:
            row = row or self.row(entry.key)
        if row is None:
            return None  # All entries were deleted meanwhile.
        incarnation = row.incarnation
        try:
            true = self.mend(incarnation, [entry.key for entry in group])
        except StorageUnavailableError:
            # This reader may have no right to write. It can still read the journal.
            found = self.live_end(incarnation)
            true = None if found is None else found[1]
        if true is None:
            return None
        return place(true.submitted_at, true.workflow_id), best, true

    def ordered(
        self, query: CatalogQuery, resolved: dict[str, Candidate | None], after: Position
    ) -> Iterator[Candidate]:
        """The workflows that may be on the page, by place, from the cursor on."""
        reverse = query.newest_first
        opened = sorted(
            (candidate for candidate in resolved.values() if candidate is not None),
            key=lambda candidate: candidate[0],
            reverse=reverse,
        )
        streams: list[Iterator[Candidate]] = [iter(opened)]
        prefixes = [
            f"{SETTLED}/{status.value}"
            for status in WorkflowStatus
            if status not in ACTIVE and status in (query.statuses or WORKFLOWS)
        ]
        if prefixes:
            list_days = self.operations.list_prefixes
            found = self.crew.together([partial(list_days, prefix) for prefix in prefixes])
            for prefix, days in zip(prefixes, found, strict=True):
                within = days_within(days, query.conditions)
                streams.append(self.settled(prefix, within, after, resolved, reverse))
        return merge(*streams, key=lambda candidate: candidate[0], reverse=reverse)

    def settled(
        self,
        prefix: str,
        days: Sequence[str],
        after: Position,
        resolved: dict[str, Candidate | None],
        reverse: bool,
    ) -> Iterator[Candidate]:
        """The settled workflows of a status that are not open, by place, from the cursor on."""
        first = day(after[0]) if abs(after[0]) != float("inf") else None
        for name in sorted(days, reverse=reverse):
            if first is not None and (name > first if reverse else name < first):
                continue
            start = place(*after) if name == first and not reverse else ""
            entries: Iterable[Entry] = self.entries(f"{prefix}/{name}", start)
            if reverse:
                entries = reversed(list(entries))
            for entry in entries:
                if entry.incarnation_hash not in resolved:
                    yield entry.place, entry, None

    def take(
        self,
        candidates: Iterator[Candidate],
        query: CatalogQuery,
        after: Position,
        count: int,
        damaged: list[str],
        *,
        patient: bool,
    ) -> list[CatalogRow] | None:
        """The first rows that match the query; None if ``patient`` and one vanished meanwhile.

        Appends to ``damaged`` what is wrong with those that can't be read.
        """
        holders = {short_hash(holder): holder for holder in query.holders}
        statuses = query.statuses or WORKFLOWS
        rows: list[CatalogRow] = []
        wanted = self.after_cursor(
            (
                candidate
                for candidate in candidates
                if candidate[2] is not None
                or (
                    candidate[1].status in statuses
                    and may_match(candidate[1], query.conditions)
                    and (not holders or candidate[1].holder_hash in holders)
                )
            ),
            after,
            query.newest_first,
            damaged,
        )
        # Conditions need the rows, so many are read at once.
        least = LEAST_BATCH if query.conditions else 1
        while len(rows) < count:
            batch = list(itertools.islice(wanted, max(count - len(rows), least)))
            if not batch:
                break
            for row in self.load(batch):
                if isinstance(row, StorageCorruptError):
                    note_damage(damaged, row)
                    continue
                if row is None:
                    if patient:
                        return None
                    continue
                if (
                    row.status in statuses
                    and (not query.holders or row.holder in query.holders)
                    and matches(row, query.conditions)
                ):
                    rows.append(row)
        return rows

    def load(self, batch: list[Candidate]) -> list[CatalogRow | StorageCorruptError | None]:
        """The rows of candidates, or what is wrong with them."""
        missing = [entry.key for _, entry, row in batch if row is None]
        found = iter(self.crew.together([partial(self.readable, key) for key in missing]))
        return [next(found) if row is None else row for _, _, row in batch]

    def readable(self, key: str) -> CatalogRow | StorageCorruptError | None:
        """As `row`, with damage as the result."""
        try:
            return self.row(key)
        except StorageCorruptError as error:
            return error

    def after_cursor(
        self,
        candidates: Iterator[Candidate],
        after: Position,
        reverse: bool,
        damaged: list[str],
    ) -> Iterator[Candidate]:
        """The candidates after the cursor, by submission time and id. At equal places the id
        decides, which is read from the row if the name has only its first bytes."""
        for where, group in itertools.groupby(candidates, key=lambda candidate: candidate[0]):
            at = time_of(where)
            # Only candidates with the cursor's time need their id compared.
            if at < after[0] if not reverse else at > after[0]:
                continue
            by_id: dict[str, Candidate] = {}
            for candidate in group:
                _, entry, row = candidate
                name = row.workflow_id if row is not None else id_of(entry)
                if name is None:
                    read = self.readable(entry.key)
                    if isinstance(read, StorageCorruptError):
                        note_damage(damaged, read)
                        continue
                    if read is None:
                        continue
                    name = read.workflow_id
                # The workflow moved from one entry to the other meanwhile.
                if name not in by_id or by_id[name][1].seq < entry.seq:
                    by_id[name] = candidate
            for name in sorted(by_id, reverse=reverse):
                if (at, name) < after if reverse else (at, name) > after:
                    yield by_id[name]


def note_damage(damaged: list[str], error: StorageCorruptError) -> None:
    """Log that a workflow is left out of a listing, and why."""
    logger.warning("A workflow is left out of a listing: %s", error)
    damaged.append(str(error))


def entry_damage(key: str, damage: StorageCorruptError) -> StorageCorruptError:
    """The error for a damaged entry, with the advice to rebuild it from the journal."""
    entry = parse("", key.rpartition("/")[2])
    name = "" if entry is None else id_of(entry) or ""
    return StorageCorruptError(
        f"{damage} Or write it anew from the workflow's journal: ray-workflows repair "
        f"{name or 'ID'}"
    )


def seq_of(key: str) -> int:
    """The number of the journal entry that an index entry is for."""
    entry = parse("", key.rpartition("/")[2])
    return 0 if entry is None else entry.seq


def copied(row: CatalogRow) -> CatalogRow:
    """The row with dicts of its own."""
    return unpack_row(pack_row(row)) if row.metadata or row.tags else row


def quietly(work: Callable[[], object]) -> None:
    """Do work that the sweep can do later, and ignore that the store does not answer."""
    with contextlib.suppress(StorageUnavailableError):
        work()
