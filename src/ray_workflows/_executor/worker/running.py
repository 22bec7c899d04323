"""An attempt that runs in this process, and what the coordinator is told of it meanwhile."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._executor.worker.process import Process
from ray_workflows._executor.worker.watchdog import CHECK_SECONDS

#: How long an attempt runs before the coordinator is told, in seconds.
TOLD_AFTER_SECONDS = 0.25


#: An attempt whose code ends so shortly before its timeout, in seconds, says so at once: two looks
#: of the watch, which says so of all others.
MARGIN_SECONDS = 2 * CHECK_SECONDS


class RunningAttempt:
    """An attempt that runs: the coordinator hears of it when it has run for a while.

    It hears at once of one that has a timeout, and also when that attempt waits for the storage:
    the timeout is for what user code does, and runs anew when the storage has answered.
    """

    __slots__ = (
        "began",
        "code_ended",
        "coordinator",
        "lock",
        "paused",
        "process",
        "request",
        "resumed",
        "timeout",
        "told",
        "waits",
    )

    def __init__(self, request: AttemptRequest, coordinator: Any, process: Process) -> None:
        self.request = request
        #: None: nobody wants to know.
        self.coordinator = coordinator
        self.process = process
        self.began = process.monotonic()
        self.told = coordinator is None
        self.timeout = None if coordinator is None else request.template.options.timeout
        #: The watch looks from another thread.
        self.lock = threading.Lock()
        #: Whether it waits for the storage, and whether its code is over.
        self.waits = False
        self.code_ended = False
        #: Whether the coordinator was told that its timeout does not run; how often that it does
        #: again.
        self.paused = False
        self.resumed = 0
        if self.timeout is not None:
            # Its time runs from here.
            self.tell()

    def check(self, now: float) -> bool:
        if now - self.began >= TOLD_AFTER_SECONDS:
            self.tell()
        with self.lock:
            if self.waits or self.code_ended:
                self.pause()
        return not self.told or (self.timeout is not None and not self.code_ended)

    def tell(self) -> None:
        """Nobody waits for it to arrive: if it gets lost, less is shown."""
        if not self.told:
            self.told = True
            request, process = self.request, self.process
            started_at = process.time() - (process.monotonic() - self.began)
            self.coordinator.attempt_runs.remote(
                *(request.incarnation, request.task, request.epoch, request.attempt, started_at),
                process.node_id,
            )

    # -- its timeout, which is for what user code does -----------------------------------------

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Scope in which it waits for the storage. That is told if it takes a while."""
        self.waits = True
        try:
            yield
        finally:
            with self.lock:
                self.waits = False
                if self.paused and not self.code_ended:
                    self.resumed += 1
                    self.paused = False
                    self.tell_waits()

    def end_code(self) -> None:
        """User code has ended, and what came of it is to be stored: it waits from now on. Where the
        timeout could be over before the watch looks, that is told at once."""
        with self.lock:
            self.code_ended = True
            timeout = self.timeout or math.inf
            if self.process.monotonic() - self.began + MARGIN_SECONDS >= timeout:
                self.pause()

    def pause(self) -> None:
        """Say that it waits, unless that is known. The lock is held."""
        if self.timeout is not None and not self.paused:
            self.paused = True
            self.tell_waits()

    def tell_waits(self) -> None:
        """Say whether it waits. Numbered: of two calls on their way, the later one counts."""
        request = self.request
        self.coordinator.attempt_waits.remote(
            *(request.incarnation, request.task, request.epoch, request.attempt),
            2 * self.resumed + self.paused,
        )
