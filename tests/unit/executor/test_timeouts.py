"""A task's timeout is for what its code does: real workers and a real executor, on a virtual clock.

Waiting for a storage is nobody's fault, and is not charged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._executor.worker.batch import BatchRun, Home
from ray_workflows._executor.worker.watchdog import CHECK_SECONDS, Watched
from ray_workflows._model.values import Blob, Value
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.memory import MemoryBlobs, MemoryHome, MemoryStorage
from tests.unit.scheduling import Scheduling
from tests.unit.workers import INCARNATION, Process, attempt

TIMEOUT = 5.0


class World(Scheduling, Process):
    """An executor, and the process of its only worker, on one clock."""

    def __init__(self) -> None:
        Process.__init__(self)
        Scheduling.__init__(self)
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.watched: list[Watched] = []
        self.watch: Any = self

    def add(self, watched: Watched) -> None:
        self.watched.append(watched)

    def remove(self, watched: Watched) -> None:
        self.watched.remove(watched)

    def monotonic(self) -> float:
        return self.now

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.due.append((self.now + seconds, action))

    def sleep(self, seconds: float) -> None:
        """Time passes: the watch looks, and timers are due."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + CHECK_SECONDS)
            for watched in list(self.watched):
                watched.check(self.now)
            due = [action for at, action in self.due if at <= self.now]
            self.due = [(at, action) for at, action in self.due if at > self.now]
            for action in due:
                action()

    def run(self, storage: Storage, request: AttemptRequest) -> str:
        """What becomes of an attempt: what is reported of it, or that it was stopped."""
        self.start(request)
        self.flush()
        (task,) = self.tasks
        ((number, requests),) = task.batches()
        batch = BatchRun(number, 1, requests, Home(storage, Coordinator(self), self), {})
        self.add(batch)
        wire = batch.run()
        self.remove(batch)
        if getattr(task, "canceled", False):
            return "stopped"
        self.end(task, [wire])
        ((_, outcome),) = self.outcomes
        return outcome


class Coordinator:
    """What a worker has of it: calls of its executor."""

    def __init__(self, world: World) -> None:
        self.attempt_runs = Method(lambda *told: world.executor.attempt_runs(*told[:4]))
        self.attempt_waits = Method(world.executor.attempt_waits)


class Method:
    def __init__(self, call: Callable[..., None]) -> None:
        self.remote = call


class SlowBlobs(MemoryBlobs):
    """Blobs that are away, or say nothing, for some seconds."""

    def __init__(self, home: MemoryHome, reads: float, writes: float, silent: bool) -> None:
        super().__init__(home)
        self.away = {"read": reads, "write": writes}
        self.silent = silent

    def answer(self, verb: str) -> None:
        assert world is not None
        while self.away[verb] > 0:
            self.away[verb] -= 10.0
            world.sleep(10.0)
            if not self.silent:
                raise StorageUnavailableError("away")

    def write_blob(self, incarnation: str, key: str, chunks: Any) -> Blob:
        self.answer("write")
        return super().write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        self.answer("read")
        return super().read_blob(incarnation, blob)


class Slow(Storage):
    """A storage whose blobs are away, or say nothing, for some seconds."""

    def __init__(self, *, reads: float = 0.0, writes: float = 0.0, silent: bool = False) -> None:
        inner = MemoryStorage()
        blobs = SlowBlobs(inner.journals.home, reads, writes, silent)
        super().__init__(journals=inner.journals, blobs=blobs, leases=inner.leases)


#: The world of the test that runs.
world: World | None = None


@pytest.fixture(autouse=True)
def on_a_clock() -> Iterator[None]:
    global world
    world = World()
    yield
    world = None


def works(seconds: float) -> bytes:
    """Its result is too large for the journal."""
    assert world is not None
    world.sleep(seconds)
    return os.urandom(100_000)


def fails(seconds: float) -> None:
    works(seconds)
    raise ValueError(os.urandom(100_000))


def run(storage: Slow, function: Callable[..., Any], seconds: float) -> str:
    """Run an attempt whose arguments are stored."""
    assert world is not None
    request = attempt(function, seconds, timeout=TIMEOUT)
    data = request.arguments.data
    assert isinstance(data, bytes)
    blob = MemoryBlobs.write_blob(storage.blobs, INCARNATION, "arguments", [data])
    return world.run(storage, msgspec.structs.replace(request, arguments=Value(blob)))


@pytest.mark.parametrize("silent", [False, True], ids=["away", "silent"])
@pytest.mark.parametrize("seconds", [0.0, 1.0, TIMEOUT - CHECK_SECONDS])
@pytest.mark.parametrize(
    ("function", "outcome"), [(works, "AttemptReturned"), (fails, "AttemptRaised")]
)
def test_storing_what_came_of_a_task_is_not_charged_to_its_timeout(
    function: Callable[..., Any], outcome: str, seconds: float, silent: bool
) -> None:
    assert run(Slow(writes=60.0, silent=silent), function, seconds) == outcome


@pytest.mark.parametrize("silent", [False, True], ids=["away", "silent"])
@pytest.mark.parametrize(("seconds", "outcome"), [(4.0, "AttemptReturned"), (6.0, "stopped")])
def test_a_timeout_runs_anew_when_the_storage_has_answered(
    seconds: float, outcome: str, silent: bool
) -> None:
    assert run(Slow(reads=60.0, silent=silent), works, seconds) == outcome


@pytest.mark.parametrize("storage", [{}, {"writes": 60.0}])
def test_code_that_overruns_its_timeout_is_stopped(storage: dict[str, float]) -> None:
    assert run(Slow(**storage), works, TIMEOUT + 1.0) == "stopped"
