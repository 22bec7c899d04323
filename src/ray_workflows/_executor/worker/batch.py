"""Runs a batch of attempts in a worker, one after the other. Most batches have one member.

If a member takes long, the worker returns those after it, so that other workers run them, and
reports those before it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from ray_workflows._codec.transport import Message, message
from ray_workflows._executor.protocol import (
    ENCODER,
    AnyReport,
    AttemptRequest,
    BatchReport,
)
from ray_workflows._executor.worker.attempt import AttemptRun, run_attempt
from ray_workflows._executor.worker.process import HERE, Process
from ray_workflows._executor.worker.running import RunningAttempt
from ray_workflows._model.messages import AttemptReturned
from ray_workflows.storage.base import Storage

#: When a member has run this long, in seconds, those after it are returned.
OVERRUN_SECONDS = 0.05

#: Live objects by incarnation and the key of their blob.
Live = dict[str, dict[str, Any]]

#: A `BatchReport`, with the live objects (`Live`) that the members made.
WireReport = Message

#: A `Batch`, with live ObjectRefs (`Live`) that members take as ObjectRefs.
EncodedBatch = Message


def pack_loads(loads: list[EncodedBatch] | None) -> bytes | list[EncodedBatch] | None:
    """Pack the answer to a report: batches, mostly one, or None for no more."""
    if loads is not None and len(loads) == 1 and isinstance(loads[0], bytes):
        return loads[0]
    return loads


def unpack_loads(answer: bytes | list[EncodedBatch] | None) -> list[EncodedBatch] | None:
    """The reverse of `pack_loads`."""
    return [answer] if isinstance(answer, bytes) else answer


class Home:
    """The home of attempts: the storage, the coordinator's handle or None, and the process in which
    they run, which is the one that unpickles this."""

    __slots__ = ("coordinator", "process", "storage")

    def __init__(self, storage: Storage, coordinator: Any = None, process: Process = HERE) -> None:
        self.storage = storage
        self.coordinator = coordinator
        self.process = process

    def __reduce__(self) -> tuple[Any, ...]:
        return Home, (self.storage, self.coordinator)


@functools.lru_cache(maxsize=8)
def home_of(pickled: bytes) -> Home:
    """Unpickle a home, once per process, so that its storage keeps its connections."""
    home: Home = ray.cloudpickle.loads(pickled)
    return home


class BatchRun:
    """A batch in this process. The watchdog checks it from another thread."""

    def __init__(
        self,
        number: int,
        sequence: int,
        requests: Sequence[AttemptRequest],
        home: Home,
        live: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.number = number
        self.sequence = sequence
        self.requests = requests
        self.home = home
        self.live = live
        self.lock = threading.Lock()
        self.next = 0
        #: Members from this index on were returned.
        self.end = len(requests)
        self.running: RunningAttempt | None = None
        self.reports: list[tuple[int, AnyReport]] = []
        #: How many of them were sent before the end.
        self.told = 0
        self.seconds: list[float] = []
        self.made: Live = {}
        #: The result of the last member for the next one, by its key.
        self.handed: dict[str, Any] = {}

    def run(self) -> WireReport:
        """Run all members that are not returned, and report them."""
        while True:
            with self.lock:
                if self.next >= self.end:
                    self.running = None
                    return self.wire()
                index = self.next
                self.next += 1
                request = self.requests[index]
                self.running = running = RunningAttempt(
                    request, self.home.coordinator, self.home.process
                )
            live = self.live.get(request.template.incarnation) if self.live else None
            if self.handed:
                live = {**(live or {}), **self.handed}
            attempt = AttemptRun(
                *(request, self.home.storage, live, self.home.process),
                *(self.number, self.sequence),
                running=running,
            )
            report = run_attempt(attempt)
            with self.lock:
                # From here on it does not delay others any more.
                self.running = None
                self.reports.append((index, report))
                self.seconds.append(self.home.process.monotonic() - running.began)
                self.handed = self.hand_on(attempt, report) if request.fused else {}
                if attempt.made:
                    self.made.setdefault(request.incarnation, {}).update(attempt.made)

    def hand_on(self, attempt: AttemptRun, report: AnyReport) -> dict[str, Any]:
        """The result of this member for the next one, which is fused with it."""
        if not isinstance(report, AttemptReturned) or report.messages:
            # Followers must not run: after an error, a continuation, or a result that has to be
            # committed first because it has messages.
            self.end = self.next
            return {}
        if self.next < self.end and attempt.kept is not None:
            return {attempt.request.fused_key: attempt.kept}
        # The next member was handed back, so the value goes into the object store.
        attempt.put_kept()
        return {}

    def wire(self) -> WireReport:
        """A report of all members so far. The coordinator ignores repetitions."""
        unstarted = tuple(range(self.end, len(self.requests)))
        report = BatchReport(self.number, tuple(self.reports), tuple(self.seconds), unstarted)
        return message(ENCODER.encode(report), self.made)

    def check(self, now: float) -> bool:
        """If a member takes long, report it and the results before it, and return the members after
        it. Returns whether one takes long."""
        with self.lock:
            running = self.running
            if running is None:
                return False
            overran = now - running.began >= OVERRUN_SECONDS
            holds_back = overran and (self.next < self.end or self.told < len(self.reports))
            if holds_back:
                self.end = self.next
                self.told = len(self.reports)
                report = self.wire()
        if holds_back and self.home.coordinator is not None:
            self.home.coordinator.batch_overran.remote(report)
        running.check(now)
        return overran
