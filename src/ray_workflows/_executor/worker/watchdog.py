"""The watchdog of a worker process: a thread that checks the running attempts every 50 ms.

Short attempts end before the first check, so they cost nothing here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

logger = logging.getLogger(__name__)

#: The time between two checks, in seconds.
CHECK_SECONDS = 0.05


class Watched(Protocol):
    """What a watchdog can check."""

    def check(self, now: float) -> bool:
        """Check once, at time ``now`` of the monotonic clock. Returns whether to check again."""


class Watchdog:
    """Calls `Watched.check` from one thread, which starts with the first `add`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.watched: dict[int, Watched] = {}
        self.thread: threading.Thread | None = None

    def add(self, watched: Watched) -> None:
        with self.changed:
            self.watched[id(watched)] = watched
            if self.thread is None:
                self.thread = threading.Thread(
                    target=self.run, name="ray-workflows-watch", daemon=True
                )
                self.thread.start()
            elif len(self.watched) == 1:
                self.changed.notify()

    def remove(self, watched: Watched) -> None:
        with self.changed:
            self.watched.pop(id(watched), None)

    def run(self) -> None:
        while True:
            with self.changed:
                while not self.watched:
                    self.changed.wait()
            time.sleep(CHECK_SECONDS)
            # A method of its own: a local variable here would keep the last attempt, perhaps with
            # results of gigabytes in the object store, alive while the worker is idle.
            self.look()

    def look(self) -> None:
        with self.changed:
            watched = list(self.watched.values())
        now = time.monotonic()
        for one in watched:
            try:
                again = one.check(now)
            except Exception:
                # The cluster is shutting down, so nobody needs the report.
                logger.debug("What runs here could not be told.", exc_info=True)
                again = False
            if not again:
                self.remove(one)


class AnyWatchdog(Protocol):
    """A `Watchdog`, or its replacement in a simulation."""

    def add(self, watched: Watched) -> None:
        """Check ``watched`` from now on."""

    def remove(self, watched: Watched) -> None:
        """Stop checking ``watched``."""


#: The watchdog of this process.
WATCHDOG = Watchdog()


@contextmanager
def watching(watched: Watched, watch: AnyWatchdog) -> Iterator[None]:
    """Scope in which ``watch`` checks ``watched``."""
    watch.add(watched)
    try:
        yield
    finally:
        watch.remove(watched)
