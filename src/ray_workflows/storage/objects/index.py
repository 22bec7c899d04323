"""The index of `PutOnceStorage`: which workflows there are, in order, by names of objects alone.

The journals are the truth. An entry is believed if its holder lives; others are compared with the
journal, and mended, by whoever meets them.
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

#: How often a page is listed anew because workflows moved while it was.
ATTEMPTS = 3

#: As names have them.
SETTLED_STATUSES = tuple(status.value for status in WorkflowStatus if status not in ACTIVE)

#: So many rows are read at once where it is not known which of them are wanted.
LEAST_BATCH = 64

#: A place in the order, the entry that stands there, and its row where that was read.
Candidate = tuple[str, Entry, CatalogRow | None]


class Index:
    """The objects ``index/open/...`` and ``index/settled/...``."""

    def __init__(self, journals: Journals, is_alive: Callable[[str], bool]) -> None:
        self.journals = journals
        self.operations = journals.operations
        self.crew = journals.crew
        #: Whether the holder of this hash lives, by its lease.
        self.is_alive = is_alive
        self.lock = Lock()
        #: Rows of entries, which never change, by key.
        self.rows: OrderedDict[str, CatalogRow] = OrderedDict()
        #: Keys of entries that were compared with the journal.
        self.verified: OrderedDict[str, None] = OrderedDict()
        #: Entries to be mended when the store answers again, by incarnation.
        self.debts: dict[str, set[str]] = {}

    # -- writing ---------------------------------------------------------------------------

    def put(self, key: str, row: CatalogRow) -> None:
        """Write an entry."""
        self.operations.put(key, encode(pack_row(row), key))

    def advance(self, row: CatalogRow, *, add: str, remove: Iterable[str]) -> bool:
        """List a workflow by the entry for its new end, in place of others.

        False if the store does not answer: the journal has it, and what is owed to the index is
        paid later.
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
        """Take an entry back if the journal has gone on: who did that has removed what it knew of,
        and may have done so before it was written."""
        if self.operations.get(segment_key(incarnation, seq + 1)) is not None:
            self.operations.delete([key])

    def owe(self, incarnation: str, keys: Iterable[str]) -> None:
        """Note that entries of an incarnation are to be mended."""
        with self.lock:
            self.debts.setdefault(incarnation, set()).update(key for key in keys if key)

    def pay(self) -> None:
        """Mend what is owed, as far as the store answers."""
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
        """Let the entries of an incarnation be what its journal says; its row if it has one.

        ``keys``: what entries there are, if that is sure, or may be.

        Entries for numbers that the journal has not reached stay: they may be somebody's who is
        about to append. `Sweeper` takes them when they are old.
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
        # The open ones last: they say that something is in doubt.
        self.operations.delete(sorted(wrong, key=lambda key: key.startswith(OPEN)))
        with self.lock:
            self.verified[right] = None
            if len(self.verified) > KNOWN_ENDS:
                self.verified.popitem(last=False)
        return row

    def live_end(self, incarnation: str) -> tuple[End, CatalogRow] | None:
        """The end of a journal and its row, unless it is deleted or never came to be."""
        end = self.journals.end(incarnation)
        if end is None or end.segment.row is None:
            return None
        if end.seq == 1 and not self.journals.is_linked(end.segment.workflow_id, incarnation):
            return None
        return end, unpack_row(end.segment.row)

    def check_end(self, row: CatalogRow) -> None:
        """Raise if a workflow is listed with a later end than its journal has: an entry is put
        after its segment, unless it is tentative.

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
        """The entries directly below a prefix, in order. Other names are none of ours."""
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
            # One more shows whether there is a next page.
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
        """Whether a settled workflow was opened while the settled ones were listed: it may have
        been missed among both."""
        if query.statuses and not any(status not in ACTIVE for status in query.statuses):
            return False
        before = {entry.incarnation_hash for entry in opened}
        return any(
            entry.incarnation_hash not in before and entry.seq > 1 for entry in self.entries(OPEN)
        )

    def resolve(self, opened: Iterable[Entry], damaged: list[str]) -> dict[str, Candidate | None]:
        """What the open entries come to, by hash of the incarnation; None for what is not there.

        ``damaged`` is told what is wrong with those that can't be read.
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
        """Whether an entry that is alone needs no comparison with the journal."""
        if entry.key in self.verified:
            return True
        return not entry.tentative and self.is_alive(entry.holder_hash)

    def verify(self, group: list[Entry]) -> Candidate | None:
        """Read from the journal what entries of one incarnation come to, and mend them."""
        best = max(group, key=lambda entry: entry.seq)
        row = None
        for entry in group:
            row = row or self.row(entry.key)
        if row is None:
            return None  # All gone meanwhile.
        incarnation = row.incarnation
        try:
            true = self.mend(incarnation, [entry.key for entry in group])
        except StorageUnavailableError:
            # This reader may not be allowed to write; what it reads is true nevertheless.
            found = self.live_end(incarnation)
            true = None if found is None else found[1]
        if true is None:
            return None
        return place(true.submitted_at, true.workflow_id), best, true

    def ordered(
        self, query: CatalogQuery, resolved: dict[str, Candidate | None], after: Position
    ) -> Iterator[Candidate]:
        """All that may be on the page, by place, from the cursor on."""
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
        """The first rows that the query asks for; None if one vanished and should be looked for.

        ``damaged`` is told what is wrong with those that can't be read.
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
        # Of conditions only the rows tell, and those are read at once.
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
        """Those after the cursor, by submission time and id. Equal places are sorted by the ids,
        which are read where the names have not all of them."""
        for where, group in itertools.groupby(candidates, key=lambda candidate: candidate[0]):
            at = time_of(where)
            # What is far from the cursor needs no id.
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
                # Two entries of one workflow: it moved from one to the other meanwhile.
                if name not in by_id or by_id[name][1].seq < entry.seq:
                    by_id[name] = candidate
            for name in sorted(by_id, reverse=reverse):
                if (at, name) < after if reverse else (at, name) > after:
                    yield by_id[name]


def note_damage(damaged: list[str], error: StorageCorruptError) -> None:
    """A workflow is left out of a listing."""
    logger.warning("A workflow is left out of a listing: %s", error)
    damaged.append(str(error))


def entry_damage(key: str, damage: StorageCorruptError) -> StorageCorruptError:
    """The error for an entry, which says nothing that the journal does not say."""
    entry = parse("", key.rpartition("/")[2])
    name = "" if entry is None else id_of(entry) or ""
    return StorageCorruptError(
        f"{damage} Or write it anew from the workflow's journal: ray-workflows repair "
        f"{name or 'ID'}"
    )


def seq_of(key: str) -> int:
    """The journal's number that an entry is for."""
    entry = parse("", key.rpartition("/")[2])
    return 0 if entry is None else entry.seq


def copied(row: CatalogRow) -> CatalogRow:
    """The row with dicts of its own."""
    return unpack_row(pack_row(row)) if row.metadata or row.tags else row


def quietly(work: Callable[[], object]) -> None:
    """Do what may be left to the sweep, if the store does not answer."""
    with contextlib.suppress(StorageUnavailableError):
        work()
