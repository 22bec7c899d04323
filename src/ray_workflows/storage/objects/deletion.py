"""Removes the objects of deleted workflows and of interrupted creations.

Each number of a deleted journal stays taken by an empty object for two hours, so that a writer that
read the journal before can't append to it. This module does not decide what is deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.objects.index import Index
from ray_workflows.storage.objects.index_keys import OPEN, SETTLED, Entry, parse, short_hash
from ray_workflows.storage.objects.journals import (
    GRAVE_SECONDS,
    READING_SECONDS,
    segment_key,
)
from ray_workflows.storage.objects.leases import CLOCK_NAME, CLOCKS, HOLDER_NAME, HOLDERS
from ray_workflows.storage.objects.records import (
    Grave,
    Segment,
    decode,
    encode,
    new_nonce,
    tombstone,
)
from ray_workflows.storage.validation import is_name

logger = logging.getLogger(__name__)

Work = TypeVar("Work")

GRAVES = "graves"

#: Holders whose lease ran out this long ago, in seconds, are removed: a missing holder is dead too.
HOLDER_SECONDS = 7 * 24 * 3600.0
#: Age in seconds at which clock objects are removed; each process writes one to learn the time.
CLOCK_SECONDS = 24 * 3600.0


class Blobs(Protocol):
    """What `Burial` needs of the blobs in the same home; `BlobFiles` has it."""

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation."""

    def incarnations(self) -> list[str]:
        """All incarnations that have blobs."""

    def newest(self, incarnation: str) -> float | None:
        """When the last blob of an incarnation was written; None without blobs."""

    def remove_temporaries(self, incarnation: str, before: float) -> None:
        """Remove temporary files that killed writers left."""


class Burial:
    """Deletes what no workflow needs. After an interruption at any step, a sweep completes it."""

    def __init__(self, index: Index, blobs: Blobs) -> None:
        self.index = index
        self.journals = index.journals
        self.operations = index.operations
        self.crew = index.crew
        self.blobs = blobs

    def bury(self, incarnation: str, workflow_id: str, entries: Iterable[str]) -> None:
        """Remove the contents of a journal that ends in a tombstone, its blobs and entries."""
        key = f"{GRAVES}/{incarnation}"
        end = self.journals.end(incarnation)
        known = {*entries, *(end.segment.entries if end is not None else ())}
        grave = Grave(incarnation, workflow_id, tuple(sorted(known)))
        self.operations.put(key, encode(grave, key))
        numbers = self.journals.numbers(incarnation)
        self.crew.together(
            [
                *(partial(self.empty, incarnation, workflow_id, number) for number in numbers),
                partial(self.blobs.delete_blobs, incarnation),
                partial(self.operations.delete, [k for k in known if not k.startswith(OPEN)]),
            ]
        )
        self.journals.forget_all(incarnation)
        # Open entries go last: without one, readers believe a settled entry.
        self.operations.delete([k for k in known if k.startswith(OPEN)])
        grave.done = True
        self.operations.put(key, encode(grave, key))

    def empty(self, incarnation: str, workflow_id: str, seq: int) -> None:
        """Put a tombstone in the place of a segment."""
        key = segment_key(incarnation, seq)
        self.operations.put(key, encode(Segment(new_nonce(), workflow_id), key))

    def abandon(self, incarnation: str, workflow_id: str, entries: Iterable[str] = ()) -> bool:
        """Delete a journal that no id points to, so that none ever can; False if one does by
        now."""
        end = self.journals.end(incarnation)
        if end is None or not end.segment.tombstone:
            seq = 1 if end is None else end.seq + 1
            last = Segment(new_nonce(), workflow_id) if end is None else end.segment
            if not self.journals.put(incarnation, seq, tombstone(last)):
                return False
        self.bury(incarnation, workflow_id, entries)
        return True

    def sweep(self, now: float, grace_seconds: float) -> int:
        """Remove old leftovers. Returns the number of incarnations with interrupted deletions or
        blobs of no workflow."""
        graves, finished = self.visit_graves(now)
        known = self.visit_entries(now) | graves
        self.visit_journals(now, known)
        finished += self.visit_blobs(now - grace_seconds, known)
        self.visit_holders(now)
        self.operations.sweep(now - READING_SECONDS)
        return finished

    def visit_graves(self, now: float) -> tuple[set[str], int]:
        """Finish interrupted deletions; remove tombstones that no reader can still need.

        Returns the hashes of the deleted incarnations, and how many deletions it finished.
        """
        found: set[str] = set()
        finished = 0
        for listed in filter(lambda each: is_name(each.name), list(self.operations.list(GRAVES))):
            key = f"{GRAVES}/{listed.name}"
            object = self.operations.get(key)
            if object is None:
                continue
            try:
                grave = decode(Grave, object.data, key)
            except StorageCorruptError as error:
                # Not ours, or damaged: its name says which incarnation it is for, and it stays.
                logger.warning("A deletion is not finished: %s", error)
                found.add(short_hash(listed.name))
                continue
            found.add(short_hash(grave.incarnation))
            if not grave.done:
                self.bury(grave.incarnation, grave.workflow_id, grave.entries)
                finished += 1
            elif object.modified <= now - GRAVE_SECONDS:
                self.clear(key, grave)
        return found, finished

    def clear(self, key: str, grave: Grave) -> None:
        """Remove the last objects of a deleted workflow."""
        incarnation = grave.incarnation
        chain = self.journals.chain(grave.workflow_id)
        self.operations.delete([k for k, pointer in chain if pointer.incarnation == incarnation])
        numbers = self.journals.numbers(incarnation)
        keys = [segment_key(incarnation, number) for number in numbers]
        self.operations.delete(keys[:-1])
        self.operations.delete(keys[-1:])
        self.blobs.delete_blobs(incarnation)
        self.operations.delete([key])

    def visit_entries(self, now: float) -> set[str]:
        """Compare open entries that can't be believed with their journals. Returns the hashes of
        all incarnations that have an entry."""
        groups: dict[str, list[tuple[Entry, float]]] = {}
        for listed in list(self.operations.list(OPEN)):
            entry = parse(OPEN, listed.name)
            if entry is not None:
                group = groups.setdefault(entry.incarnation_hash, [])
                group.append((entry, listed.modified))
        due = [
            group
            for group in groups.values()
            if len(group) > 1 or not self.index.is_believed(group[0][0])
        ]
        self.each(due, lambda group: self.visit_group(now, group))
        known = set(groups)
        for status in self.operations.list_prefixes(SETTLED):
            for day in self.operations.list_prefixes(f"{SETTLED}/{status}"):
                prefix = f"{SETTLED}/{status}/{day}"
                known.update(entry.incarnation_hash for entry in self.index.entries(prefix))
        return known

    def visit_group(self, now: float, group: list[tuple[Entry, float]]) -> None:
        """Correct the entries of one incarnation, or delete the journal that they point to."""
        row = None
        for entry, _ in group:
            row = row or self.index.row(entry.key)
        if row is None:
            return
        incarnation = row.incarnation
        keys = [entry.key for entry, _ in group]
        end = self.journals.end(incarnation)
        if end is not None and end.segment.tombstone:
            self.bury(incarnation, row.workflow_id, keys)
            return
        if self.index.mend(incarnation, keys) is not None:
            # Entries for a segment that was never written.
            old = [
                entry.key
                for entry, modified in group
                if end is not None and entry.seq > end.seq and modified <= now - READING_SECONDS
            ]
            self.operations.delete(old)
        elif max(modified for _, modified in group) <= now - READING_SECONDS:
            self.abandon(incarnation, row.workflow_id, keys)

    def visit_journals(self, now: float, known: set[str]) -> None:
        """Visit journals without an entry: creations that broke off, or lost entries."""

        def visit(incarnation: str) -> None:
            end = self.journals.end(incarnation)
            if end is None:
                return
            workflow_id = end.segment.workflow_id
            if end.segment.tombstone:
                self.bury(incarnation, workflow_id, ())
            elif self.index.mend(incarnation, []) is None:
                written = self.operations.get(segment_key(incarnation, end.seq))
                if written is not None and written.modified <= now - READING_SECONDS:
                    self.abandon(incarnation, workflow_id)

        names = filter(is_name, self.operations.list_prefixes("journal"))
        unknown = self.unknown(names, known)
        self.each(unknown, visit)

    def visit_blobs(self, before: float, known: set[str]) -> int:
        """Remove blobs of no workflow that are older than a time. Returns the number of
        incarnations."""
        swept = 0
        for incarnation in filter(is_name, self.blobs.incarnations()):
            if short_hash(incarnation) in known:
                self.blobs.remove_temporaries(incarnation, before)
                continue
            newest = self.blobs.newest(incarnation)
            # After `abandon` the workflow can't be created any more: no workflow loses its blobs.
            if newest is None or newest > before or self.index.live_end(incarnation) is not None:
                continue
            swept += self.abandon(incarnation, "")
        return swept

    def visit_holders(self, now: float) -> None:
        """Remove holders that are long dead, and old clock objects."""
        for prefix, name, age in (
            (HOLDERS, HOLDER_NAME, HOLDER_SECONDS),
            (CLOCKS, CLOCK_NAME, CLOCK_SECONDS),
        ):
            old = [
                f"{prefix}/{listed.name}"
                for listed in self.operations.list(prefix)
                if listed.modified <= now - age and name.fullmatch(listed.name)
            ]
            self.operations.delete(old)

    def unknown(self, incarnations: Iterable[str], known: set[str]) -> list[str]:
        """The incarnations that have no entry and no tombstone."""
        return [name for name in incarnations if short_hash(name) not in known]

    def each(self, found: list[Work], visit: Callable[[Work], None]) -> None:
        """Visit all of them, many at once. Damaged ones are skipped: their readers report them."""
        for outcome in self.crew.groups([partial(visit, one) for one in found]) if found else []:
            if isinstance(outcome, Exception) and not isinstance(outcome, StorageCorruptError):
                raise outcome
