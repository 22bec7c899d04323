"""Calls actions at moments of the monotonic clock, on one thread of its own."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable


class Deadlines:
    """A thread that sleeps until the next action is due. It starts with the first one."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.actions: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.thread: threading.Thread | None = None

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` on the thread; it must not raise."""
        with self.changed:
            self.count += 1
            added = (time.monotonic() + seconds, self.count, action)
            heapq.heappush(self.actions, added)
            if self.thread is None:
                self.thread = threading.Thread(
                    target=self.run, name="ray-workflows-deadlines", daemon=True
                )
                self.thread.start()
            if self.actions[0] is added:
                # Only then it would sleep too long. To wake it each time costs more than the rest.
                self.changed.notify()

    def run(self) -> None:
        while True:
            with self.changed:
                while not self.actions or self.actions[0][0] > time.monotonic():
                    left = self.actions[0][0] - time.monotonic() if self.actions else None
                    self.changed.wait(left)
                _, _, action = heapq.heappop(self.actions)
            action()
