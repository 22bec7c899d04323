"""Attempts as a worker runs them, in this process and without Ray."""

from __future__ import annotations

import hashlib
import pickle
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ray import cloudpickle

from ray_workflows._capture.pickling import pickle_value
from ray_workflows._codec.envelope import seal
from ray_workflows._executor.protocol import (
    AnyReport,
    AttemptRequest,
    AttemptTemplate,
    decode_report,
)
from ray_workflows._executor.worker.batch import BatchRun, Home
from ray_workflows._executor.worker.watchdog import Watchdog
from ray_workflows._model.plan import Environment, Function, TaskOptions
from ray_workflows._model.values import Outcome, Value
from ray_workflows.storage.base import Storage

INCARNATION = "i"


class Process:
    """A worker whose object store is a dict. ``slept``: the pauses that it was asked to make."""

    time = staticmethod(time.time)
    node_id = "ab12cd34"

    def __init__(self) -> None:
        self.watch = Watchdog()
        self.slept: list[float] = []
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def seed(self, of: str) -> int:
        """The same each time."""
        return zlib.crc32(of.encode())

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def put(self, value: Any) -> Any:
        return pickle.loads(cloudpickle.dumps(value))

    def get(self, ref: Any) -> Any:
        return ref

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(1) as pool:
            yield pool


def stored(value: Any) -> bytes:
    pickled = pickle_value(value, where="value")
    return b"".join(seal(pickled.data, pickled.buffers))


def attempt(
    function: Callable[..., Any],
    *args: Any,
    task: int = 0,
    inputs: tuple[Outcome, ...] = (),
    checkpoint: bool = True,
    **options: Any,
) -> AttemptRequest:
    data = stored(function)
    pickled = Function(hashlib.sha256(data).hexdigest(), function.__name__, data)
    template = AttemptTemplate("w", INCARNATION, pickled, TaskOptions(**options), Environment(), ())
    arguments = Value(stored((args, {})))
    upstream = tuple(range(len(inputs)))
    return AttemptRequest(
        template, task, f"t{task}", 0, 1, arguments, checkpoint, upstream, (), inputs
    )


def run(
    storage: Storage, *requests: AttemptRequest, number: int = 1, process: Process | None = None
) -> tuple[list[AnyReport], dict[str, Any]]:
    """Run a batch: its reports, as they come off the wire, and the live objects that it made."""
    home = Home(storage, None, process or Process())
    report, objects = decode_report(BatchRun(number, 1, requests, home, {}).run())
    assert [index for index, _ in report.reports] == list(range(len(requests)))
    return [each for _, each in report.reports], objects.get(INCARNATION, {})
