"""`MemoryStorage`: a storage in the memory of one process, for tests and simulation.
Nothing survives the process. It uses only the injected clock, and its order is deterministic.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import msgspec

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
    matches,
)
from ray_workflows._model.status import WORKFLOWS
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.parts import BlobStore, CommitOutcome, Home, JournalStore, LeaseStore
from ray_workflows.storage.validation import (
    Position,
    check,
    check_appends,
    check_limit,
    check_name,
    decode_cursor,
    describe_blob,
    encode_cursor,
    slices,
)

NUMBERS = itertools.count(1)


class StoredBlob(msgspec.Struct, frozen=True):
    """A blob and when it was written."""

    data: bytes
    blob: Blob
    written_at: float


class MemoryHome(Home):
    """What the parts of one storage in memory hold, and the lock around it."""

    def __init__(self, clock: Callable[[], float], name: str) -> None:
        self.clock = clock
        self.name = name
        self.lock: threading.RLock = threading.RLock()
        self.rows: dict[str, CatalogRow] = {}
        self.incarnations: dict[str, str] = {}
        self.journals: dict[str, list[JournalEntry]] = {}
        self.blobs: dict[str, dict[str, StoredBlob]] = {}
        self.holders: dict[str, Holder] = {}

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A MemoryStorage lives in one process and can't be sent to another. Use a path "
            "(SqliteStorage) where several processes share a storage."
        )

    @property
    def url(self) -> str:
        """``memory://`` and the name."""
        return f"memory://{self.name}"

    @property
    def node_bound(self) -> bool:
        """True: not even other processes of this machine can use it."""
        return True

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to give back: the contents stay until the instance is gone."""

    def has_workflows(self) -> bool:
        """Whether there is a row."""
        return bool(self.rows)


class MemoryJournals(JournalStore):
    """Journals and catalog in memory."""

    home: MemoryHome

    def __init__(self, home: MemoryHome) -> None:
        self.home = home

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """Append to several journals at once; see `Storage.commit`."""
        # Read completely before anything is written: a sequence that raises leaves nothing.
        appends = list(appends)
        check_appends(appends)
        with self.home.lock:
            return [self.append(append) for append in appends]

    def append(self, append: Append) -> CommitOutcome:
        """Append one entry; the caller has the lock."""
        home = self.home
        row = home.rows.get(append.workflow_id)
        if append.expected_seq == 0:
            free = row is None and append.incarnation not in home.incarnations
        else:
            free = (
                row is not None
                and row.incarnation == append.incarnation
                and row.seq == append.expected_seq
            )
        if not free:
            return CommitOutcome.STALE
        entry = JournalEntry(append.catalog.seq, append.commit_id, bytes(append.entry))
        home.journals.setdefault(append.incarnation, []).append(entry)
        home.incarnations[append.incarnation] = append.workflow_id
        home.rows[append.workflow_id] = detached(append.catalog)
        return CommitOutcome.OK

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """Entries with ``seq > after``."""
        with self.home.lock:
            # Entry n lies at index n - 1.
            return self.home.journals.get(incarnation, [])[max(after, 0) :]

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of a workflow, or None."""
        with self.home.lock:
            row = self.home.rows.get(workflow_id)
            return None if row is None else detached(row)

    def list_catalog(self, query: CatalogQuery) -> Page:
        """One page of rows, oldest submission first."""
        after = decode_cursor(query.cursor, newest_first=query.newest_first)
        limit = check_limit(query.limit)
        with self.home.lock:
            rows = sorted(
                (
                    row
                    for row in self.home.rows.values()
                    if is_after((row.submitted_at, row.workflow_id), after, query.newest_first)
                    and row.status in (query.statuses or WORKFLOWS)
                    and matches(row, query.conditions)
                    and (not query.holders or row.holder in query.holders)
                ),
                key=lambda row: (row.submitted_at, row.workflow_id),
                reverse=query.newest_first,
            )
        page = tuple(detached(row) for row in rows[:limit])
        if len(rows) <= limit:
            return Page(page)
        return Page(page, encode_cursor((page[-1].submitted_at, page[-1].workflow_id)))

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete a workflow and its blobs, if its journal still ends at ``expected_seq``."""
        with self.home.lock:
            row = self.home.rows.get(workflow_id)
            if row is None or row.incarnation != incarnation or row.seq != expected_seq:
                return CommitOutcome.STALE
            del (
                self.home.rows[workflow_id],
                self.home.incarnations[incarnation],
                self.home.journals[incarnation],
            )
            self.home.blobs.pop(incarnation, None)
            return CommitOutcome.OK

    def sweep(self, grace_seconds: float) -> int:
        """Remove old blobs of incarnations without a catalog row."""
        with self.home.lock:
            old = MemoryBlobs(self.home).old_blobs(grace_seconds)
            swept = [
                incarnation for incarnation in old if incarnation not in self.home.incarnations
            ]
            for incarnation in swept:
                del self.home.blobs[incarnation]
            return len(swept)


class MemoryBlobs(BlobStore):
    """Blobs in memory."""

    home: MemoryHome

    def __init__(self, home: MemoryHome) -> None:
        self.home = home

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Store a blob unless the key exists."""
        check_name("incarnation", incarnation)
        check_name("blob key", key)
        data = b"".join(slices(chunks))
        blob = Blob(key, len(data), str(Checksum(data)))
        with self.home.lock:
            stored = StoredBlob(data, blob, self.home.clock())
            return self.home.blobs.setdefault(incarnation, {}).setdefault(key, stored).blob

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, if they are those that ``blob`` describes."""
        with self.home.lock:
            stored = self.home.blobs.get(incarnation, {}).get(blob.key)
        if stored is None:
            raise StorageCorruptError(f"The {describe_blob(incarnation, blob)} is missing.")
        check(stored.data, blob, describe_blob(incarnation, blob))
        return memoryview(stored.data)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a stored blob, or None."""
        with self.home.lock:
            stored = self.home.blobs.get(incarnation, {}).get(key)
            return None if stored is None else stored.blob

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation."""
        with self.home.lock:
            self.home.blobs.pop(incarnation, None)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations whose newest blob is older than the grace period."""
        with self.home.lock:
            limit = self.home.clock() - grace_seconds
            return [
                incarnation
                for incarnation, blobs in self.home.blobs.items()
                if max(stored.written_at for stored in blobs.values()) <= limit
            ]


class MemoryLeases(LeaseStore):
    """Holders in memory, on the clock of the home."""

    home: MemoryHome

    def __init__(self, home: MemoryHome) -> None:
        self.home = home

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew the holder's row."""
        with self.home.lock:
            lease_until = self.home.clock() + lease_seconds
            self.home.holders[holder.holder_id] = msgspec.structs.replace(
                holder, lease_until=lease_until
            )

    def remove_holder(self, holder_id: str) -> None:
        """Remove the holder's row, if there is one."""
        with self.home.lock:
            self.home.holders.pop(holder_id, None)

    def read_holders(self) -> list[Holder]:
        """All holders, by id."""
        with self.home.lock:
            return [self.home.holders[holder_id] for holder_id in sorted(self.home.holders)]

    def now(self) -> float:
        """What the clock says."""
        return self.home.clock()


class MemoryStorage(Storage):
    """A storage in the memory of this process.

    Args:
        clock: what `now` returns, in seconds since 1970; give a virtual clock to a simulation.
        name: makes the URL ``memory://<name>``. By default each instance has a name of its own.

    Example:
        >>> storage = MemoryStorage(clock=lambda: 0.0, name="example")
        >>> storage.url, storage.now(), storage.read_catalog("none")
        ('memory://example', 0.0, None)
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, name: str | None = None) -> None:
        self.name: str = str(next(NUMBERS)) if name is None else name
        home = MemoryHome(clock, self.name)
        super().__init__(
            journals=MemoryJournals(home), blobs=MemoryBlobs(home), leases=MemoryLeases(home)
        )

    def __repr__(self) -> str:
        return f"MemoryStorage(name={self.name!r})"


def is_after(place: Position, other: Position, newest_first: bool) -> bool:
    """Whether a place comes later in a listing."""
    return place < other if newest_first else place > other


def detached(row: CatalogRow) -> CatalogRow:
    """The row with dicts of its own: no caller can change what is stored."""
    if not row.metadata and not row.tags:
        return row
    metadata = copy.deepcopy(row.metadata)
    return msgspec.structs.replace(row, metadata=metadata, tags=dict(row.tags))
