"""An attempt that runs in this process, and its reports to the coordinator meanwhile."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._executor.worker.process import Process
from ray_workflows._executor.worker.watchdog import CHECK_SECONDS

#: How long an attempt runs before it reports to the coordinator, in seconds.
TOLD_AFTER_SECONDS = 0.25


#: An attempt whose code ends less than this before its timeout, in seconds, reports the end at
#: once: the watchdog, which reports it otherwise, might check too late.
MARGIN_SECONDS = 2 * CHECK_SECONDS


class RunningAttempt:
    """An attempt that runs. It reports to the coordinator when it has run for a while.

    An attempt with a timeout reports at once, and also reports when it waits for the storage: the
    timeout limits user code alone, and begins anew when the storage has answered.
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
        #: None: the attempt reports nothing.
        self.coordinator = coordinator
        self.process = process
        self.began = process.monotonic()
        self.told = coordinator is None
        self.timeout = None if coordinator is None else request.template.options.timeout
        #: The watchdog calls `check` in a thread of its own.
        self.lock = threading.Lock()
        #: Whether the attempt waits for the storage, and whether its code has ended.
        self.waits = False
        self.code_ended = False
        #: Whether the last report said that the timeout is paused; how many reports said that it
        #: runs again.
        self.paused = False
        self.resumed = 0
        if self.timeout is not None:
            # The coordinator measures the timeout from this report.
            self.tell()

    def check(self, now: float) -> bool:
        if now - self.began >= TOLD_AFTER_SECONDS:
            self.tell()
        with self.lock:
            if self.waits or self.code_ended:
                self.pause()
        return not self.told or (self.timeout is not None and not self.code_ended)

    def tell(self) -> None:
        """Report that the attempt runs, without waiting for the answer: a lost report only makes
        the coordinator show less."""
        if not self.told:
            self.told = True
            request, process = self.request, self.process
            started_at = process.time() - (process.monotonic() - self.began)
            self.coordinator.attempt_runs.remote(
                *(request.incarnation, request.task, request.epoch, request.attempt, started_at),
                process.node_id,
            )

    # -- the timeout, which limits user code alone ---------------------------------------------

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Scope in which the attempt waits for the storage. A long wait is reported."""
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
        """Note that user code has ended, and that the attempt waits for the storage from now on. If
        the timeout could pass before the watchdog checks, this is reported at once."""
        with self.lock:
            self.code_ended = True
            timeout = self.timeout or math.inf
            if self.process.monotonic() - self.began + MARGIN_SECONDS >= timeout:
                self.pause()

    def pause(self) -> None:
        """Report that the attempt waits, unless the last report said so. Call with the lock
        held."""
        if self.timeout is not None and not self.paused:
            self.paused = True
            self.tell_waits()

    def tell_waits(self) -> None:
        """Report whether the attempt waits. Reports are numbered, because Ray may deliver two in
        the wrong order."""
        request = self.request
        self.coordinator.attempt_waits.remote(
            *(request.incarnation, request.task, request.epoch, request.attempt),
            2 * self.resumed + self.paused,
        )
