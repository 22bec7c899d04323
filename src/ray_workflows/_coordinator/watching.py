"""Who waits for workflows: calls, each of which keeps a thread, and clients that poll."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ray_workflows._coordinator.requests import Watched

#: How long a call waits at most, in seconds. Its client asks again, if it is still there.
SIT_SECONDS = 60.0


#: Clients that were forgotten and are still known by name.
MAX_FORGOTTEN = 10_000


class Seats:
    """Room for calls that wait. Who finds none is told so at once, and looks again a little later:
    if calls waited for a seat, a `run` inside a task could wait for one that waits for it.

    Args:
        count: how many may wait at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0
        self.lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Scope in which a seat is taken, if there is one; whether there is."""
        with self.lock:
            seated = self.taken < self.count
            self.taken += seated
        try:
            yield seated
        finally:
            with self.lock:
                self.taken -= seated


class WatchList:
    """What one client waits for. ``polled_at`` tells whether it is still there, ``life`` which life
    of it is the latest."""

    def __init__(self) -> None:
        self.life = ""
        self.answered: list[tuple[str, Watched]] = []
        self.polled_at = time.monotonic()
        self.changed = threading.Condition()

    def begin(self, life: str) -> None:
        """This life of the client is the latest: polls of others are over."""
        with self.changed:
            self.life = life
            self.changed.notify_all()

    def tell(self, workflow_id: str, watched: Watched) -> None:
        """A watch is answered. Nothing stays live until a client comes that may be gone."""
        with self.changed:
            self.answered.append((workflow_id, msgspec.structs.replace(watched, live=None)))
            self.changed.notify_all()

    def take(self, life: str, seconds: float) -> list[tuple[str, Watched]]:
        """The answers, as soon as there are any; none after so long, or when this life is over."""
        with self.changed:
            self.begin(life)
            self.changed.wait_for(lambda: self.answered or self.life != life, seconds)
            if self.life != life:
                return []
            self.polled_at = time.monotonic()
            answered, self.answered = self.answered, []
            return answered


class WatchLists:
    """What all clients wait for. Who has not polled for long is gone, and forgotten."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lists: dict[str, WatchList] = {}
        #: Clients that are to be told that their watches are gone, should they still come.
        self.forgotten: dict[str, bool] = {}

    def known(self, client: str) -> WatchList | None:
        """What a client waits for; None if some of it was forgotten, which is said once."""
        with self.lock:
            if self.forgotten.pop(client, False):
                return None
            return self.lists.get(client)

    def of(self, client: str) -> WatchList:
        """What a client waits for, which is about to wait for more."""
        with self.lock:
            found = self.lists.setdefault(client, WatchList())
            found.polled_at = time.monotonic()
            oldest = found.polled_at - 3 * SIT_SECONDS
            for gone in [c for c, watches in self.lists.items() if watches.polled_at < oldest]:
                del self.lists[gone]
                self.forgotten[gone] = True
            while len(self.forgotten) > MAX_FORGOTTEN:
                del self.forgotten[next(iter(self.forgotten))]
            return found
