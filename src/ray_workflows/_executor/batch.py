"""What a Ray task of ours runs: a batch of attempts, one after the other. Mostly it is one.

If a member takes long, those after it are handed back, to run elsewhere meanwhile. When a batch is
through that was short, the coordinator may have another one.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from ray_workflows._environment.attempts import prefer_packages
from ray_workflows._executor.protocol import (
    ENCODER,
    AnyReport,
    AttemptRequest,
    BatchReport,
    decode_batch,
)
from ray_workflows._executor.watch import RunningAttempt, watching
from ray_workflows._executor.worker import AttemptRun, run_attempt
from ray_workflows._model.inputs import AttemptReturned
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: A member that has run for so long, in seconds, holds nobody back any more.
OVERRUN_SECONDS = 0.05

#: Live objects by incarnation and the key of the blob that holds the same.
Live = dict[str, dict[str, Any]]

#: A `BatchReport` as bytes, and the live objects that the members made.
WireReport = tuple[bytes, Live]

#: A `Batch` as bytes, and live ObjectRefs to be handed out as ObjectRefs.
Load = tuple[bytes, Live]

#: How long a batch may have taken, in seconds, after which another one is asked for, and how long
#: the coordinator may take to answer: it says soon that there is none.
SHORT_SECONDS, ANSWER_SECONDS = 0.05, 60.0


class Home:
    """Where attempts come from: the storage, and the coordinator's handle, if it wants news."""

    __slots__ = ("coordinator", "storage")

    def __init__(self, storage: Storage, coordinator: Any = None) -> None:
        self.storage = storage
        self.coordinator = coordinator


@functools.lru_cache(maxsize=8)
def home_of(pickled: bytes) -> Home:
    """A home that came here before is this process's: its storage has its connections."""
    home: Home = ray.cloudpickle.loads(pickled)
    return home


class BatchRun:
    """A batch in this process. Its watch looks at it from another thread."""

    def __init__(
        self,
        number: int,
        requests: Sequence[AttemptRequest],
        home: Home,
        live: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.number = number
        self.requests = requests
        self.home = home
        self.live = live
        self.lock = threading.Lock()
        self.next = 0
        #: Members from here on were handed back.
        self.end = len(requests)
        self.running: RunningAttempt | None = None
        self.reports: list[tuple[int, AnyReport]] = []
        self.seconds: list[float] = []
        self.made: Live = {}
        #: The result of the last member for the next one, by its key.
        self.handed: dict[str, Any] = {}

    def run(self) -> WireReport:
        """Run all members that are not handed back; what became of each."""
        while True:
            with self.lock:
                if self.next >= self.end:
                    self.running = None
                    return self.wire()
                index = self.next
                self.next += 1
                request = self.requests[index]
                self.running = running = RunningAttempt(request, self.home.coordinator)
            live = self.live.get(request.incarnation, {})
            attempt = AttemptRun(request, self.home.storage, {**live, **self.handed})
            report = run_attempt(attempt)
            with self.lock:
                # From here on it is not in the way of others any more.
                self.running = None
                self.reports.append((index, report))
                self.seconds.append(time.monotonic() - running.began)
                self.handed = self.hand_on(attempt, report)
                if attempt.made:
                    self.made.setdefault(request.incarnation, {}).update(attempt.made)

    def hand_on(self, attempt: AttemptRun, report: AnyReport) -> dict[str, Any]:
        """What the next member gets of this one, if it is to get it from here."""
        if not attempt.request.fused:
            return {}
        if not isinstance(report, AttemptReturned):
            # Those that follow are not to run: on an error, or on a continuation still to come.
            self.end = self.next
            return {}
        if self.next < self.end:
            return attempt.kept
        # Who was to get it was handed back: it gets it as any other.
        attempt.put_kept()
        return {}

    def wire(self) -> WireReport:
        """All that is known so far: who got it before ignores what is in it again."""
        unstarted = tuple(range(self.end, len(self.requests)))
        report = BatchReport(tuple(self.reports), tuple(self.seconds), unstarted)
        return ENCODER.encode(report), self.made

    def check(self, now: float) -> bool:
        """Hand back what waits behind a member that takes long, and tell of that member."""
        with self.lock:
            running = self.running
            if running is None:
                return True
            overran = now - running.began >= OVERRUN_SECONDS and self.next < self.end
            if overran:
                self.end = self.next
                encoded, made = self.wire()
        if overran and self.home.coordinator is not None:
            self.home.coordinator.batch_overran.remote(self.number, encoded, made)
        running.check(now)
        return True


def run_batch(
    encoded: bytes,
    pickled_home: bytes,
    nested: Live,
    keys: Sequence[tuple[str, str]],
    *values: Any,
) -> tuple[int, WireReport]:
    """Run a batch in a Ray task, and others while the coordinator has them at once.

    ``nested`` are live ObjectRefs by incarnation and blob key, to be handed out as ObjectRefs;
    ``values`` are the values behind ``keys``, which Ray has brought here, and something for each
    package that it had to bring into the cluster before.

    Returns:
        The number of the last batch, and its report. Those before it were reported by calls.
    """
    prefer_packages()
    home = home_of(pickled_home)
    live: Live = {incarnation: dict(objects) for incarnation, objects in nested.items()}
    for (incarnation, key), value in zip(keys, values, strict=False):
        live.setdefault(incarnation, {})[key] = value
    while True:
        number, stays, requests = decode_batch(encoded)
        batch = BatchRun(number, requests, home, live)
        began = time.monotonic()
        with watching(batch):
            report = batch.run()
        if not stays or time.monotonic() - began > SHORT_SECONDS:
            return number, report
        load = next_load(home, number, report)
        if load is None:
            return number, report
        encoded, live = load


def next_load(home: Home, number: int, report: WireReport) -> Load | None:
    """Report a batch to the coordinator; another one, if there is one at once."""
    try:
        # Not `ray.get`: it tells Ray that this worker's slot can be used by somebody else.
        future = home.coordinator.batch_done.remote(number, *report).future()
        load: Load | None = future.result(ANSWER_SECONDS)
    except Exception as error:
        logger.warning("The coordinator did not take a report at once: %r", error)
        return None
    return load


@functools.cache
def remote_run_batch(max_calls: int) -> Any:
    """`run_batch` as a Ray function.

    ``max_calls`` can't be given to ``.options()``; every function with a GPU has it.
    """
    return ray.remote(max_calls=max_calls)(run_batch)
