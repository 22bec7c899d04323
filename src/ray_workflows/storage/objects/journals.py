"""Journals as objects, one per entry, and which journal a workflow id means.

Creating the object of the next number appends an entry. Each number of a deleted journal stays
taken for longer than a writer may rely on what it has read.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import NamedTuple

from ray_workflows._elapsed import elapsed
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.objects.client import Crew, Operations
from ray_workflows.storage.objects.index_keys import short_hash
from ray_workflows.storage.objects.records import Pointer, Segment, decode, encode, new_nonce

#: Seconds for which a writer may rely on what it has read; after that it reads again.
READING_SECONDS = 3600.0
#: Seconds for which the tombstones of a deleted workflow stay: longer than any such reading.
GRAVE_SECONDS = 2 * READING_SECONDS

#: The size of the segment cache, in bytes, and of the largest segment in it. Segments never change.
CACHE_BYTES = 16 * 1024 * 1024
CACHED_SEGMENT_BYTES = 128 * 1024

#: How many journals' ends are remembered.
KNOWN_ENDS = 50_000

HOUR = 3600.0

#: The names of segments and of pointers. Other names in their directories are skipped.
SEGMENT_NAME = re.compile(r"[0-9]{10}")
POINTER_NAME = re.compile(r"[0-9]{14}")


class End(NamedTuple):
    """The end of a journal as this process knows it. ``listed``: its index entry is in place."""

    seq: int
    segment: Segment
    read_at: float
    listed: bool = False


class Journals:
    """The objects ``journal/<incarnation>/<number>`` and ``ids/<hash of the id>/<number>``."""

    def __init__(
        self, operations: Operations, crew: Crew, clock: Callable[[], float] = elapsed
    ) -> None:
        self.operations = operations
        self.crew = crew
        #: For durations.
        self.clock = clock
        self.lock = Lock()
        self.ends: OrderedDict[str, End] = OrderedDict()
        self.cache: OrderedDict[str, tuple[Segment, int]] = OrderedDict()
        self.cached_bytes = 0
        #: Pointers never change.
        self.pointers: OrderedDict[str, Pointer] = OrderedDict()
        self.linked: OrderedDict[str, None] = OrderedDict()

    # -- segments --------------------------------------------------------------------------

    def segment(self, incarnation: str, seq: int) -> Segment | None:
        """A segment, or None if there is none of this number."""
        key = segment_key(incarnation, seq)
        with self.lock:
            if key in self.cache:
                self.cache.move_to_end(key)
                return self.cache[key][0]
        found = self.operations.get(key)
        if found is None:
            return None
        segment = decode(Segment, found.data, key)
        if not segment.tombstone:
            self.remember(key, segment, len(found.data))
        return segment

    def remember(self, key: str, segment: Segment, size: int) -> None:
        """Cache a segment."""
        if size > CACHED_SEGMENT_BYTES:
            return
        with self.lock:
            if key not in self.cache:
                self.cached_bytes += size
            self.cache[key] = (segment, size)
            while self.cached_bytes > CACHE_BYTES:
                _, (_, dropped) = self.cache.popitem(last=False)
                self.cached_bytes -= dropped

    def put(self, incarnation: str, seq: int, segment: Segment) -> bool:
        """Append a segment; False if the number is taken."""
        key = segment_key(incarnation, seq)
        data = encode(segment, key)
        if not self.operations.put_if_absent(key, data):
            return False
        if not segment.tombstone:
            self.remember(key, segment, len(data))
        return True

    def numbers(self, incarnation: str, after: int = 0) -> list[int]:
        """The numbers of all segments after one."""
        found = self.operations.list(journal_prefix(incarnation), f"{after:010d}" if after else "")
        return [int(listed.name) for listed in found if SEGMENT_NAME.fullmatch(listed.name)]

    def known(self, incarnation: str, seq: int) -> End | None:
        """The end of a journal, if it is known to be this segment and was read not long ago."""
        with self.lock:
            known = self.ends.get(incarnation)
        if known is None or known.seq != seq or not self.is_recent(known.read_at):
            return None
        return known

    def at(self, incarnation: str, seq: int) -> End | None:
        """A segment as an end, unless the journal is known to be longer."""
        if (known := self.known(incarnation, seq)) is not None:
            return known
        with self.lock:
            later = self.ends.get(incarnation)
        if later is not None and later.seq > seq:
            return None
        read_at = self.clock()
        segment = self.segment_now(incarnation, seq)
        return None if segment is None else End(seq, segment, read_at)

    def segment_now(self, incarnation: str, seq: int) -> Segment | None:
        """A segment, read from the store and not from the cache."""
        with self.lock:
            if (dropped := self.cache.pop(segment_key(incarnation, seq), None)) is not None:
                self.cached_bytes -= dropped[1]
        return self.segment(incarnation, seq)

    def is_recent(self, read_at: float) -> bool:
        """Whether a writer may still rely on a reading."""
        return abs(self.clock() - read_at) < READING_SECONDS

    def learn(self, incarnation: str, end: End) -> None:
        """Remember where a journal ends."""
        with self.lock:
            self.ends[incarnation] = end
            self.ends.move_to_end(incarnation)
            if len(self.ends) > KNOWN_ENDS:
                self.ends.popitem(last=False)

    def forget(self, incarnation: str) -> None:
        """Forget where a journal ends, after it turned out to be wrong."""
        with self.lock:
            self.ends.pop(incarnation, None)

    def forget_all(self, incarnation: str) -> None:
        """Forget all that was read of a journal."""
        prefix = journal_prefix(incarnation) + "/"
        with self.lock:
            self.ends.pop(incarnation, None)
            self.linked.pop(incarnation, None)
            for key in [key for key in self.cache if key.startswith(prefix)]:
                self.cached_bytes -= self.cache.pop(key)[1]

    def end(self, incarnation: str) -> End | None:
        """The end of a journal, which may be a tombstone; None if it has no segments."""
        with self.lock:
            known = self.ends.get(incarnation)
        if known is not None and not self.is_recent(known.read_at):
            known = None
        read_at = self.clock()
        numbers = self.numbers(incarnation, known.seq if known else 0)
        if not numbers:
            return known
        segment = self.segment(incarnation, numbers[-1])
        if segment is None:
            return None  # Removed since the listing: the journal was deleted long ago.
        end = End(numbers[-1], segment, read_at)
        if not segment.tombstone:
            self.learn(incarnation, end)
        return end

    def read(self, incarnation: str, after: int) -> list[tuple[int, Segment]]:
        """All segments after one, in order; none if the journal is deleted.

        Raises:
            StorageCorruptError: one is missing or damaged; names the key.
        """
        after = max(after, 0)
        read_at = self.clock()
        numbers = self.numbers(incarnation, after)
        if not numbers:
            return []
        # A listing during writes may show a later segment without an earlier one.
        wanted = range(after + 1, numbers[-1] + 1)
        last = self.segment(incarnation, wanted[-1])
        if last is None or last.tombstone:
            return []
        segments = self.crew.together([partial(self.segment, incarnation, n) for n in wanted[:-1]])
        found: list[tuple[int, Segment]] = []
        for seq, segment in zip(wanted, [*segments, last], strict=True):
            if segment is None:
                now = self.end(incarnation)
                if now is None or now.segment.tombstone:
                    return []
                raise StorageCorruptError(
                    f"{segment_key(incarnation, seq)} is missing, but the journal goes on until "
                    f"{now.seq}. Restore it from a backup or an earlier version of the object."
                )
            if segment.tombstone:
                return []
            found.append((seq, segment))
        with self.lock:
            known = self.ends.get(incarnation)
        if known is None or known.seq < wanted[-1]:
            self.learn(incarnation, End(wanted[-1], last, read_at))
        return found

    # -- ids -------------------------------------------------------------------------------

    def chain(self, workflow_id: str) -> list[tuple[str, Pointer]]:
        """The pointers of an id that are not cleaned up yet, oldest first, with their keys."""
        return self.follow(self.chain_keys(workflow_id))

    def chain_keys(self, workflow_id: str) -> list[str]:
        """The keys of a chain."""
        prefix = id_prefix(workflow_id)
        names = [listed.name for listed in self.operations.list(prefix)]
        return [f"{prefix}/{name}" for name in names if POINTER_NAME.fullmatch(name)]

    def follow(self, keys: Sequence[str]) -> list[tuple[str, Pointer]]:
        """The pointers of a chain. More than one only if an id was used again."""
        found = [(key, self.pointer(key)) for key in keys]
        return [(key, pointer) for key, pointer in found if pointer is not None]

    def pointer(self, key: str) -> Pointer | None:
        """What an id means, by the key of the pointer."""
        with self.lock:
            if key in self.pointers:
                return self.pointers[key]
        found = self.operations.get(key)
        if found is None:
            return None
        try:
            pointer = decode(Pointer, found.data, key)
        except StorageCorruptError as damage:
            raise StorageCorruptError(
                f"{damage} Where the index lists the workflow, `ray-workflows repair` and its id "
                f"write it anew."
            ) from damage
        self.keep(key, pointer)
        return pointer

    def keep(self, key: str, pointer: Pointer) -> None:
        """Remember a pointer."""
        with self.lock:
            self.pointers[key] = pointer
            if len(self.pointers) > KNOWN_ENDS:
                self.pointers.popitem(last=False)

    def link(
        self, workflow_id: str, incarnation: str, chain: Sequence[tuple[str, Pointer]]
    ) -> str | None:
        """Put the next pointer of an id; its key, or None if another one took the number.

        The number has the hour in it, so that no removed number is used again, and a late removal
        hits no newer pointer.
        """
        number = int(self.clock() // HOUR) * 1_000_000
        if chain:
            number = max(number, int(chain[-1][0].rpartition("/")[2]) + 1)
        key = f"{id_prefix(workflow_id)}/{number:014d}"
        pointer = Pointer(new_nonce(), workflow_id, incarnation)
        if not self.operations.put_if_absent(key, encode(pointer, key)):
            return None
        self.keep(key, pointer)
        return key

    def is_linked(self, workflow_id: str, incarnation: str) -> bool:
        """Whether an id means, or meant, this incarnation."""
        with self.lock:
            if incarnation in self.linked:
                return True
        found = any(p.incarnation == incarnation for _, p in self.chain(workflow_id))
        if found:
            self.note_linked(incarnation)
        return found

    def note_linked(self, incarnation: str) -> None:
        """Remember that an id means it."""
        with self.lock:
            self.linked[incarnation] = None
            if len(self.linked) > KNOWN_ENDS:
                self.linked.popitem(last=False)

    def current(self, chain: Sequence[tuple[str, Pointer]]) -> tuple[str, End] | None:
        """The incarnation that an id means now (the first not deleted one), and its end."""
        for _, pointer in chain:
            end = self.end(pointer.incarnation)
            if end is not None and not end.segment.tombstone:
                self.note_linked(pointer.incarnation)
                return pointer.incarnation, end
        return None


def journal_prefix(incarnation: str) -> str:
    """The prefix of an incarnation's segments. Reserved: a later release may put packs of many
    segments there."""
    return f"journal/{incarnation}"


def segment_key(incarnation: str, seq: int) -> str:
    """Where a segment is."""
    return f"{journal_prefix(incarnation)}/{seq:010d}"


def id_prefix(workflow_id: str) -> str:
    """Where the pointers of an id are."""
    return f"ids/{short_hash(workflow_id)}"
