"""Leases and the clock of an object store: leases run on the store's clock.

A holder renews its lease by putting an object again; the store says when it was put.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable
from functools import partial
from threading import Lock

import msgspec

from ray_workflows._model.catalog import Holder
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.objects.client import Crew, Operations
from ray_workflows.storage.objects.index_keys import short_hash
from ray_workflows.storage.objects.records import Lease, decode, encode

logger = logging.getLogger(__name__)

HOLDERS = "holders"
CLOCKS = "clocks"

#: Seconds for which a reading of the store's clock is used before the next one.
CLOCK_SECONDS = 1.0
#: A reading that is earlier than the last one by more seconds than this means that somebody has set
#: the clock back; by fewer, that the servers of a store differ.
SET_BACK_SECONDS = 5.0
#: Seconds for which the list of live holders is used before it is read again.
ALIVE_SECONDS = 3.0

NEVER = float("-inf")

#: The names of holders and clocks. Other names in their directories are skipped.
HOLDER_NAME = re.compile(r"[0-9a-f]{20}")
CLOCK_NAME = re.compile(r"[0-9a-f]{32}")


class Holders:
    """The objects ``holders/<hash of the holder id>`` and ``clocks/<a name of this process>``."""

    def __init__(self, operations: Operations, crew: Crew, clock: Callable[[], float]) -> None:
        self.operations = operations
        self.crew = crew
        #: For durations.
        self.clock = clock
        self.lock = Lock()
        self.clock_key = f"{CLOCKS}/{uuid.uuid4().hex}"
        #: The last known time of the store, and when the store was asked. The times of objects that
        #: others have put don't count: they may be from before the store's clock was set back.
        self.seen_now = 0.0
        self.asked_at = NEVER
        #: Hashes of holders that live, and when that was read.
        self.alive: frozenset[str] = frozenset()
        self.alive_at = NEVER
        #: When the leases that this process renews end, on its own clock.
        self.renewed: dict[str, float] = {}

    def renew(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew a holder's row; the lease runs from when the store wrote it."""
        started_at = self.clock()
        key = holder_key(holder.holder_id)
        self.operations.put(key, encode(Lease(holder, lease_seconds), key))
        found = self.operations.get(key)
        with self.lock:
            if found is not None:
                self.seen_now = max(self.seen_now, found.modified)
            self.renewed[short_hash(holder.holder_id)] = started_at + lease_seconds

    def remove(self, holder_id: str) -> None:
        """Remove a holder's row, if there is one."""
        with self.lock:
            self.renewed.pop(short_hash(holder_id), None)
            self.alive -= {short_hash(holder_id)}
        self.operations.delete([holder_key(holder_id)])

    def read(self) -> list[Holder]:
        """All holders, by id. Unreadable ones are left out: a live holder is put again soon."""
        names = [listed.name for listed in self.operations.list(HOLDERS)]
        keys = [f"{HOLDERS}/{name}" for name in names if HOLDER_NAME.fullmatch(name)]
        found = self.crew.together([partial(self.operations.get, key) for key in keys])
        holders = []
        for key, object in zip(keys, found, strict=True):
            if object is None:
                continue
            try:
                lease = decode(Lease, object.data, key)
            except StorageCorruptError as error:
                logger.warning("A holder is passed over: %s", error)
                continue
            until = object.modified + lease.seconds
            holders.append(msgspec.structs.replace(lease.holder, lease_until=until))
        return sorted(holders, key=lambda holder: holder.holder_id)

    def is_ours(self, holder_id: str) -> bool:
        """Whether this process renews the holder's lease."""
        return short_hash(holder_id) in self.renewed

    def is_alive(self, holder_hash: str) -> bool:
        """Whether the lease of a holder runs, by a reading at most `ALIVE_SECONDS` old."""
        now = self.clock()
        with self.lock:
            if self.renewed.get(holder_hash, NEVER) > now:
                return True
            if 0 <= now - self.alive_at < ALIVE_SECONDS:
                return holder_hash in self.alive
        holders = self.read()
        limit = self.now()
        alive = frozenset(short_hash(h.holder_id) for h in holders if h.lease_until > limit)
        with self.lock:
            self.alive, self.alive_at = alive, now
        return holder_hash in alive

    def now(self) -> float:
        """The store's clock, at most a second late."""
        with self.lock:
            if 0 <= self.clock() - self.asked_at < CLOCK_SECONDS:
                return self.seen_now
        return self.fresh_now()

    def fresh_now(self) -> float:
        """Ask the store for its clock. Small steps backwards, by which the servers of a store
        differ, are hidden. After a larger step somebody has set the clock, and leases count from
        the new time."""
        asked_at = self.clock()
        found = self.operations.now(self.clock_key)
        with self.lock:
            self.asked_at = asked_at
            if found < self.seen_now - SET_BACK_SECONDS:
                self.seen_now = found
            self.seen_now = max(self.seen_now, found)
            return self.seen_now

    def forget_clock(self) -> None:
        """Remove the object that this process writes to read the store's time."""
        if self.asked_at != NEVER:
            self.asked_at = NEVER
            self.operations.delete([self.clock_key])


def holder_key(holder_id: str) -> str:
    """Where a holder is."""
    return f"{HOLDERS}/{short_hash(holder_id)}"
