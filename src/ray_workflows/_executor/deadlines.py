"""Calls actions after a delay, on one thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray_workflows._executor.timers import TimerQueue, end_process, start_for_ever


class Deadlines:
    """A thread that sleeps until the next action is due. It starts with the first action.

    An action that raises is called again later. When the thread dies, ``end`` is called.
    """

    def __init__(self, end: Callable[[], None] = end_process) -> None:
        self.changed = threading.Condition()
        self.timers = TimerQueue()
        self.thread: threading.Thread | None = None
        self.end = end

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` on the thread after ``seconds``."""
        with self.changed:
            added = self.timers.after(seconds, action)
            if self.thread is None:
                self.thread = start_for_ever(self.run, "ray-workflows-deadlines", self.end)
            if self.timers.heap[0] is added:
                # Wake the thread only if it would sleep too long: waking costs more than the rest.
                self.changed.notify()

    def run(self) -> None:
        while True:
            with self.changed:
                while (timer := self.timers.pop()) is None:
                    self.changed.wait(self.timers.sleep_seconds())
            # Without the lock: an action may add another one, and may be slow.
            pause = self.timers.call(timer)
            if pause is not None:
                with self.changed:
                    self.timers.put_back(timer, pause)
