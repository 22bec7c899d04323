"""Tells the coordinator which attempts have been running for a while. It is told nothing of short
ones, which are the many."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_workflows._executor.protocol import AttemptRequest

#: How long an attempt runs before it is told, in seconds.
TOLD_AFTER_SECONDS = 0.25


class Watched:
    """An attempt that runs in this process. ``due`` is on the monotonic clock."""

    __slots__ = ("coordinator", "due", "ended", "request", "started_at")

    def __init__(self, request: AttemptRequest, coordinator: Any, started_at: float) -> None:
        self.request = request
        self.coordinator = coordinator
        self.started_at = started_at
        self.due = time.monotonic() + TOLD_AFTER_SECONDS
        self.ended = False

    def tell(self) -> None:
        """Nobody waits for it to arrive: if it gets lost, less is shown."""
        request = self.request
        self.coordinator.attempt_runs.remote(
            request.incarnation, request.task, request.epoch, request.attempt, self.started_at
        )


#: Attempts in the order in which they are due; None before this process has the thread.
due: queue.SimpleQueue[Watched] | None = None
lock = threading.Lock()


def due_queue() -> queue.SimpleQueue[Watched]:
    global due
    with lock:
        if due is None:
            due = queue.SimpleQueue()
            threading.Thread(
                target=tell_when_due, args=(due,), name="ray-workflows-watch", daemon=True
            ).start()
        return due


def tell_when_due(watched: queue.SimpleQueue[Watched]) -> None:
    while True:
        attempt = watched.get()
        time.sleep(max(0.0, attempt.due - time.monotonic()))
        if not attempt.ended:
            attempt.tell()


@contextmanager
def watched(request: AttemptRequest, coordinator: Any, started_at: float) -> Iterator[None]:
    """Scope of one attempt. ``coordinator`` None: nobody wants to know."""
    if coordinator is None:
        yield
        return
    attempt = Watched(request, coordinator, started_at)
    if request.options.timeout is not None:
        # Its time runs from here.
        attempt.tell()
    else:
        due_queue().put(attempt)
    try:
        yield
    finally:
        attempt.ended = True
