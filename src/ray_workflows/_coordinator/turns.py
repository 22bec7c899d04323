"""Whose turn it is to run the loop: one thread at a time, and mostly the one that has brought
something. To wake another takes as long as half a commit, and a workflow of one task would wait for
that four times.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

#: Something to do with the loop, by whoever has its turn.
Action = Callable[[], None]

#: How long another thread than its own runs the loop at once, in seconds.
TURN_SECONDS = 0.005

#: How late its own thread may wake for what is due, in seconds: to tell it of less costs more.
SLACK_SECONDS = 0.001


class Turns:
    """Runs a loop: its steps, and what is brought to it. All methods but `serve` return soon.

    Args:
        step: does all that can be done now. Returns seconds until there is more by the clock alone,
            or None.
        failed: is told what a step or an action raised.
    """

    def __init__(
        self, step: Callable[[], float | None], failed: Callable[[Exception], None]
    ) -> None:
        self.step = step
        self.failed = failed
        self.inbox: deque[Action] = deque()
        self.turn = threading.Lock()
        #: The thread whose turn it is.
        self.runner: int | None = None
        #: Wakes the loop's own thread; ``called`` as long as it has not begun to look.
        self.calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.called = False
        #: When there is more by the clock, and when its own thread wakes for that.
        self.due_at = self.wakes_at = math.inf
        self.gathering = threading.local()

    def put(self, action: Action) -> None:
        """Have something done by the loop's own thread."""
        self.inbox.append(action)
        if self.runner != threading.get_ident() and not self.gathers:
            self.call()

    def bring(self, action: Action) -> None:
        """Have something done by this thread, unless another one runs the loop: then by that."""
        self.inbox.append(action)
        if not self.gathers:
            self.take()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """What this thread puts or brings meanwhile is brought together, at the end."""
        self.gathering.on = True
        try:
            yield
        finally:
            self.gathering.on = False
            self.take()

    def serve(self) -> None:
        """What the loop's own thread does, for ever."""
        while True:
            with self.turn:
                self.called = False
                self.run(math.inf)
                self.wakes_at = self.due_at
            left = self.wakes_at - time.monotonic()
            with contextlib.suppress(queue.Empty):
                self.calls.get(timeout=None if left == math.inf else max(left, 0.0))

    # -- of these alone --------------------------------------------------------------------

    @property
    def gathers(self) -> bool:
        return getattr(self.gathering, "on", False)

    def call(self) -> None:
        """Let the loop's own thread look."""
        if not self.called:
            self.called = True
            self.calls.put(None)

    def take(self) -> None:
        """Run the loop if nobody does. Who does looks again when it is through: what came while it
        was leaving is not forgotten."""
        until = time.monotonic() + TURN_SECONDS
        while self.inbox and self.turn.acquire(blocking=False):
            try:
                self.run(until)
                if self.inbox:
                    self.call()
                    return
                if self.due_at < self.wakes_at - SLACK_SECONDS:
                    self.call()
            finally:
                self.turn.release()

    def run(self, until: float) -> None:
        """Do what there is, until a moment of the monotonic clock. It is our turn."""
        self.runner = threading.get_ident()
        try:
            while True:
                for _ in range(len(self.inbox)):
                    self.attempt(self.inbox.popleft())
                self.attempt(self.look)
                if not self.inbox or time.monotonic() >= until:
                    return
        finally:
            self.runner = None

    def look(self) -> None:
        seconds = self.step()
        self.due_at = math.inf if seconds is None else time.monotonic() + seconds

    def attempt(self, action: Action) -> None:
        try:
            action()
        except Exception as error:
            self.failed(error)
