"""The loop that a Ray task runs in its worker: it runs a batch, reports it, and pulls the next one.

The worker reports a batch by a call of the coordinator; the answer brings the next batch. It does
not wait for the answer while it has a prefetched batch to run.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import ray

from ray_workflows._capture.values import Brought
from ray_workflows._codec.transport import message, opened
from ray_workflows._environment.attempts import prefer_packages
from ray_workflows._executor.protocol import decode_batch
from ray_workflows._executor.worker.batch import (
    BatchRun,
    EncodedBatch,
    Home,
    Live,
    WireReport,
    home_of,
    unpack_loads,
)
from ray_workflows._executor.worker.watchdog import watching

logger = logging.getLogger(__name__)

#: How long the coordinator may take to answer, in seconds. If it has no batch, it says so within
#: milliseconds.
ANSWER_SECONDS = 60.0

#: When a batch has taken this long, in seconds, prefetched ones are handed back: twice the duration
#: that batches aim at.
LATE_SECONDS = 0.1


class WorkerLoop:
    """The batches of a Ray task, in its worker process. The watchdog checks it from another thread.

    Args:
        home: where the attempts come from.
        asks: whether each batch is reported by a call that asks for more.
        loads: the first batches.
    """

    def __init__(self, home: Home, asks: bool, loads: Iterable[EncodedBatch]) -> None:
        self.home = home
        self.asks = asks
        self.lock = threading.Lock()
        self.ahead: deque[EncodedBatch] = deque(loads)
        self.running: BatchRun | None = None
        self.began = 0.0
        #: Reports that the coordinator has not acknowledged.
        self.unheard: list[WireReport] = []
        #: The future of its answer to the last report.
        self.answer: Future[Any] | None = None

    def run(self) -> list[WireReport]:
        """Run batches until there are no more. Returns the reports without an acknowledgement."""
        with watching(self, self.home.process.watch):
            while (batch := self.next()) is not None:
                report = batch.run()
                self.hear()
                self.unheard.append(report)
                if self.asks:
                    coordinator = self.home.coordinator
                    self.answer = coordinator.batch_done.remote(report).future()
        return self.unheard

    def next(self) -> BatchRun | None:
        """The next batch. Without a prefetched one, wait for the answer that may bring it."""
        if not self.ahead:
            self.hear()
        with self.lock:
            self.running = self.open(self.ahead.popleft()) if self.ahead else None
            self.began = self.home.process.monotonic()
            return self.running

    def open(self, load: EncodedBatch) -> BatchRun:
        encoded, live = opened(load)
        return BatchRun(*decode_batch(encoded), self.home, live or {})

    def hear(self) -> None:
        """Wait for the answer to the last report, unless it has come."""
        answer = self.answer
        if answer is None:
            return
        loads: list[EncodedBatch] | None = None
        heard = False
        try:
            # Not `ray.get`: it tells Ray that this worker's slot can be used by somebody else.
            loads = unpack_loads(answer.result(ANSWER_SECONDS))
            heard = True
        except Exception as error:
            logger.warning("The coordinator did not take a report at once: %r", error)
        with self.lock:
            if self.answer is not answer:
                return  # The watchdog's thread was faster.
            self.answer = None
            if heard:
                self.unheard.clear()
            if loads is None:
                self.asks = False
            else:
                self.ahead.extend(loads)

    def check(self, now: float) -> bool:
        """Hand back what waits behind a batch that takes long, or behind a member of it."""
        batch, began = self.running, self.began
        if batch is not None and (batch.check(now) or now - began >= LATE_SECONDS):
            if self.answer is not None and self.answer.done():
                self.hear()
            with self.lock:
                if self.running is not batch:
                    return True
                returned = list(self.ahead)
                self.ahead.clear()
            for load in returned:
                behind = self.open(load)
                behind.end = 0
                self.home.coordinator.batch_overran.remote(behind.wire())
        return True


def run_batches(
    loads: Sequence[EncodedBatch],
    pickled_home: bytes,
    asks: bool,
    keys: Sequence[tuple[str, str]],
    *values: Any,
) -> list[WireReport]:
    """Run batches in a Ray task.

    Args:
        loads: the first batches.
        pickled_home: a `Home`.
        asks: whether to ask for more.
        keys: incarnation and blob key of each live value of the first batch.
        values: those values, which Ray has brought here, and something for each package that it
            had to bring into the cluster before.

    Returns:
        The report of each batch that was not reported by a call.
    """
    prefer_packages()
    return run_loads(home_of(pickled_home), loads, asks, keys, values)


def run_loads(
    home: Home,
    loads: Sequence[EncodedBatch],
    asks: bool,
    keys: Sequence[tuple[str, str]],
    values: Sequence[Any],
) -> list[WireReport]:
    """As `run_batches`, from a home that is here."""
    first, *ahead = loads
    encoded, nested = opened(first)
    live: Live = {incarnation: dict(objects) for incarnation, objects in (nested or {}).items()}
    for (incarnation, key), value in zip(keys, values, strict=False):
        live.setdefault(incarnation, {})[key] = Brought(value)
    return WorkerLoop(home, asks, [message(encoded, live), *ahead]).run()


@functools.cache
def remote_run_batches(max_calls: int) -> Any:
    """`run_batches` as a Ray function.

    ``max_calls`` can't be given to ``.options()``; every function with a GPU has it.
    """
    return ray.remote(max_calls=max_calls)(run_batches)
