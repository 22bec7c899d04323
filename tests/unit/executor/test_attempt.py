"""What a worker makes of an attempt: its result, its error, what it leaves in the storage."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import ray
from ray.exceptions import ObjectLostError

import ray_workflows as workflow
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._codec.envelope import seal
from ray_workflows._codec.placeholders import UPSTREAM_VALUE, placeholder
from ray_workflows._executor.protocol import (
    AnyReport,
    decode_batch,
    decode_report,
    encode_batch,
    fencing_token,
)
from ray_workflows._executor.worker.attempt import (
    PATIENCE_SECONDS,
    AttemptRun,
)
from ray_workflows._executor.worker.batch import BatchRun, Home
from ray_workflows._executor.worker.context import current_task
from ray_workflows._executor.worker.event_loops import OneLoop
from ray_workflows._executor.worker.listeners import run_listener
from ray_workflows._model.messages import (
    AttemptCrashed,
    AttemptLostInput,
    AttemptLostStorage,
    AttemptRaised,
    AttemptReturned,
    AttemptReturnedPlan,
    Crash,
)
from ray_workflows._model.plan import Function
from ray_workflows._model.values import Blob, Outcome, Value
from ray_workflows.exceptions import (
    SerializationError,
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import Storage
from ray_workflows.storage.memory import MemoryBlobs, MemoryHome, MemoryStorage
from ray_workflows.storage.retries import LONGEST_PAUSE_SECONDS
from tests.unit.workers import INCARNATION, Process, attempt, run, stored


def large() -> bytes:
    """Another value each time, which is too large for the journal."""
    return os.urandom(100_000)


def test_the_live_value_is_the_stored_one_though_the_attempt_ran_before() -> None:
    """As when a neighbour in its batch killed the worker after it had written its result."""
    storage = MemoryStorage()
    request = attempt(large)
    keys = []
    for number in (1, 2):
        (report,), live = run(storage, request, number=number)
        assert isinstance(report, AttemptReturned)
        blob = report.value.data
        assert isinstance(blob, Blob)
        stored = ValueReader(storage, INCARNATION).read(report.value, where="result")
        assert live == {blob.key: stored}
        keys.append(blob)
    # What the first execution left goes with the workflow.
    storage.delete_blobs(INCARNATION)
    for blob in keys:
        with pytest.raises(StorageCorruptError):
            storage.read_blob(INCARNATION, blob)


# -- what user code raises ---------------------------------------------------------------------


class Own(Exception):
    pass


class Stop(BaseException):
    pass


class Unreadable(Exception):
    """Does its worst whenever it is looked at."""

    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__

    def __reduce__(self) -> str:
        raise KeyboardInterrupt


class Bomb(Exception):
    """Ends the process that unpickles it a second time."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (3,)


def works() -> str:
    return "fine"


def raising(kind: type[BaseException], *args: Any) -> Callable[[], None]:
    def fails() -> None:
        raise kind(*args)

    return fails


ENDINGS = {
    "custom": Stop,
    "canceled": asyncio.CancelledError,
    "closed": GeneratorExit,
    "interrupted": KeyboardInterrupt,
}


@pytest.mark.parametrize("kind", ENDINGS.values(), ids=ENDINGS.keys())
def test_whatever_is_raised_is_the_attempts_alone(kind: type[BaseException]) -> None:
    first, bad, last = (
        attempt(works),
        attempt(raising(kind, "enough"), retry_exceptions=True),
        attempt(works),
    )
    reports, _ = run(MemoryStorage(), first, bad, last)
    assert isinstance(reports[0], AttemptReturned)
    assert isinstance(reports[2], AttemptReturned)
    raised = reports[1]
    assert isinstance(raised, AttemptRaised)
    assert raised.retryable
    assert (raised.error.type_name, raised.error.message) == (kind.__name__, "enough")
    assert raised.error.exception is not None


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_is_a_crash_of_the_attempt_alone(code: int) -> None:
    reports, _ = run(MemoryStorage(), attempt(raising(SystemExit, code)), attempt(works))
    crashed, returned = reports
    assert isinstance(crashed, AttemptCrashed)
    assert crashed.crash is Crash.EXITED
    assert crashed.error.type_name == "WorkerCrashedError"
    assert f"SystemExit({code})" in crashed.error.message
    assert isinstance(returned, AttemptReturned)


@pytest.mark.parametrize("kind", [Unreadable, Bomb])
def test_an_error_that_fights_back_harms_nobody(kind: type[Exception]) -> None:
    bad = attempt(raising(kind), retry_exceptions=True)
    reports, _ = run(MemoryStorage(), bad, attempt(works))
    raised, returned = reports
    assert isinstance(raised, AttemptRaised)
    assert raised.error.exception is None
    assert raised.error.type_name == kind.__name__
    assert isinstance(returned, AttemptReturned)


def test_a_text_that_utf8_cannot_hold_is_escaped() -> None:
    text = "no such file: " + os.fsdecode(b"caf\xe9.txt")
    reports, _ = run(MemoryStorage(), attempt(raising(Own, text), retry_exceptions=True))
    (raised,) = reports
    assert isinstance(raised, AttemptRaised)
    assert raised.retryable
    assert raised.error.type_name == "Own"
    assert raised.error.message == r"no such file: caf\udce9.txt"
    assert raised.error.exception is not None


def test_a_long_error_is_kept_with_its_head_and_its_tail() -> None:
    text = "head" + "x" * 2_000_000 + "tail"
    reports, _ = run(MemoryStorage(), attempt(raising(Own, text)))
    (raised,) = reports
    assert isinstance(raised, AttemptRaised)
    info = raised.error
    assert len(info.message) + len(info.traceback) + len(info.type_name) < 65_536
    assert info.message.startswith("head")
    assert info.message.endswith("tail")
    assert "characters left out" in info.message


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, Stop])
def test_a_listener_that_ends_its_process_leaves_the_host_to_others(
    kind: type[BaseException],
) -> None:
    """For some of these, `asyncio` drops its loop, with all coroutines that wait in it."""
    happened: list[str] = []

    async def host() -> list[AnyReport]:
        event = asyncio.Event()

        async def wait() -> None:
            await event.wait()
            happened.append("event")

        async def leave() -> None:
            event.set()
            raise kind("enough")

        listeners, loops = [listening(wait), listening(leave)], OneLoop()
        return list(await asyncio.gather(*[run_listener(each, loops) for each in listeners]))

    def listening(function: Callable[[], Any]) -> AttemptRun:
        execution = AttemptRun(attempt(works), MemoryStorage(), None, Process(), 1, 1, patience=0.0)
        # As if it had been read.
        execution.load = lambda: (function, (), {})  # type: ignore[method-assign]
        return execution

    waited, left = asyncio.run(host())
    assert isinstance(waited, AttemptReturned)
    assert happened == ["event"]
    assert isinstance(left, AttemptCrashed if kind is SystemExit else AttemptRaised)


# -- a storage that is away --------------------------------------------------------------------


class AwayBlobs(MemoryBlobs):
    """Do not answer the first ``times`` reads and writes."""

    def __init__(self, home: MemoryHome, times: float, error: Exception | None) -> None:
        super().__init__(home)
        self.times = times
        self.error = error or StorageUnavailableError("gone")

    def answer(self) -> None:
        if self.times > 0:
            self.times -= 1
            raise self.error

    def write_blob(self, incarnation: str, key: str, chunks: Any) -> Blob:
        self.answer()
        return super().write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        self.answer()
        return super().read_blob(incarnation, blob)


class Away(Storage):
    """A storage whose blobs do not answer at first."""

    def __init__(self, times: float, error: Exception | None = None) -> None:
        inner = MemoryStorage()
        self.away = AwayBlobs(inner.journals.home, times, error)
        super().__init__(journals=inner.journals, blobs=self.away, leases=inner.leases)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [None, FULL], ids=["away", "full"])
def test_a_worker_waits_for_the_storage_with_its_result(error: Exception | None) -> None:
    storage, process = Away(20, error), Process()
    (report,), live = run(storage, attempt(large), process=process)
    assert isinstance(report, AttemptReturned)
    assert isinstance(report.value.data, Blob)
    assert ValueReader(storage, INCARNATION).read(report.value, where="r") in live.values()
    assert len(process.slept) == 20
    assert max(process.slept) == LONGEST_PAUSE_SECONDS


class Input:
    """In the arguments of a task, where the value of an upstream task comes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return placeholder, (UPSTREAM_VALUE, 0)


@pytest.mark.parametrize("what", ["arguments", "input", "function"])
def test_a_worker_waits_for_the_storage_with_what_it_takes(what: str) -> None:
    storage, process = Away(0), Process()
    writer = ValueWriter(storage, INCARNATION)
    content = bytes(100_000)
    request = attempt(len, content)
    if what == "arguments":
        arguments = writer.write(((content,), {}), key=what, where=what)
        request = msgspec.structs.replace(request, arguments=arguments)
    elif what == "input":
        outcome = Outcome(writer.write(content, key=what, where=what))
        request = attempt(len, Input(), inputs=(outcome,))
    else:
        function = writer.write(lambda given: len(given + content) // 2, key=what, where=what)
        stored = Function(f"of {id(storage)}", what, function.data)
        template = msgspec.structs.replace(request.template, function=stored)
        request = msgspec.structs.replace(request, template=template)
    storage.away.times = 5
    (report,), _ = run(storage, request, process=process)
    assert isinstance(report, AttemptReturned)
    assert ValueReader(storage, INCARNATION).read(report.value, where="r") == 100_000
    assert len(process.slept) == 5


def test_a_storage_that_stays_away_is_reported_and_charged_to_nobody() -> None:
    process = Process()
    (report,), live = run(Away(float("inf")), attempt(large), process=process)
    assert isinstance(report, AttemptLostStorage)
    assert "gone" in report.error.message
    assert sum(process.slept) >= PATIENCE_SECONDS


def test_an_error_too_large_for_the_journal_waits_for_the_storage_too() -> None:
    (report,), _ = run(Away(3), attempt(raising(Own, "x" * 100_000)), process=Process())
    assert isinstance(report, AttemptRaised)
    assert report.error.exception is not None


def test_a_full_disk_of_user_code_is_its_own_error() -> None:
    (report,), _ = run(MemoryStorage(), attempt(raising(OSError, *FULL.args)))
    assert isinstance(report, AttemptRaised)
    assert report.error.type_name == "OSError"


# -- what a task knows of itself ---------------------------------------------------------------


def seen() -> tuple[int, int, str | None]:
    task = current_task()
    assert task is not None
    return task.attempt, task.epoch, task.last_end


def test_a_task_knows_its_fencing_token_and_why_the_attempt_before_it_ended() -> None:
    request = attempt(seen)
    # With the sequence of the batch, which counts anew in each life of a coordinator.
    executions = [
        (1, request),
        (2, msgspec.structs.replace(request, last_end="crashed")),
        (900, msgspec.structs.replace(request, attempt=2, last_end="crashed")),
        (1, msgspec.structs.replace(request, epoch=1, attempt=2, last_end="crashed")),
        (2, msgspec.structs.replace(request, epoch=1, attempt=3, last_end="preempted")),
    ]
    told = []
    for sequence, execution in executions:
        # As it arrives in a worker.
        batch = decode_batch(encode_batch(sequence, sequence, [execution]))
        report, _ = decode_report(
            BatchRun(*batch, Home(MemoryStorage(), None, Process()), {}).run()
        )
        ((_, returned),) = report.reports
        assert isinstance(returned, AttemptReturned)
        told.append(ValueReader(MemoryStorage(), INCARNATION).read(returned.value, where="result"))
    attempts, epochs, ends = zip(*told, strict=True)
    assert attempts == (1, 1, 2, 2, 3)
    assert list(epochs) == sorted(set(epochs))
    assert ends == (None, "crashed", "crashed", "crashed", "preempted")


def test_a_fencing_token_fits_into_a_signed_64_bit_integer() -> None:
    takeovers, batches = 8_000_000, 10**12
    assert fencing_token(takeovers, batches) < 2**63
    assert fencing_token(takeovers, batches) < fencing_token(takeovers + 1, 1)


# -- metadata that a task adds -----------------------------------------------------------------


def test_a_task_adds_to_its_metadata_with_its_result() -> None:
    def both() -> int:
        workflow.set_metadata({"loss": 0.5, "rows": 10})
        workflow.set_metadata({"rows": 20})
        return 1

    def neither() -> int:
        return 2

    def fails() -> None:
        workflow.set_metadata({"loss": 0.5})
        raise ValueError

    made = [attempt(function, task=n) for n, function in enumerate((both, neither, fails))]
    added, nothing, failed = run(MemoryStorage(), *made)[0]
    assert isinstance(added, AttemptReturned)
    assert isinstance(nothing, AttemptReturned)
    assert added.metadata == {"loss": 0.5, "rows": 20}
    # Not that of its neighbour in the batch.
    assert nothing.metadata is None
    assert isinstance(failed, AttemptRaised)


def test_metadata_is_refused_where_it_is_given() -> None:
    with pytest.raises(RuntimeError, match="none is running"):
        workflow.set_metadata({})

    def refused() -> str:
        with pytest.raises(ValueError, match="metadata must be"):
            workflow.set_metadata({"a": object()})
        return "refused"

    (report,), _ = run(MemoryStorage(), attempt(refused))
    assert isinstance(report, AttemptReturned)
    assert report.metadata is None


# -- objects that are lost ---------------------------------------------------------------------


def stored_object(storage: MemoryStorage, name: str, *inner: Blob) -> Blob:
    chunks = seal(b"pickle", [], inner)
    return storage.write_blob(INCARNATION, f"object-{name}-{16 * '0'}", chunks)


def test_an_object_inside_of_one_that_it_takes_is_a_lost_input() -> None:
    """It is stored, and the next attempt gets it from there. Any other is the task's own."""
    storage = MemoryStorage()
    middle = stored_object(
        storage, "bb", stored_object(storage, "cc"), stored_object(storage, "dd")
    )
    outer = stored_object(storage, "aa", middle, middle)
    values = [Value(stored(None), (outer,)), Value(stored(None))]
    for request in (
        msgspec.structs.replace(attempt(works), inputs=tuple(map(Outcome, values))),
        msgspec.structs.replace(attempt(works), arguments=values[0]),
    ):
        execution = AttemptRun(request, storage, None, Process(), 1, 1)
        for lost, expected in {
            "aa": AttemptLostInput,
            "cc": AttemptLostInput,
            "dd": AttemptLostInput,
            "c": AttemptRaised,
            "ee": AttemptRaised,
            "": AttemptRaised,
        }.items():
            error = ObjectLostError(lost, "", "")
            refused = SerializationError("it can't be stored")
            refused.__cause__ = error
            for raised in (error, refused):
                assert type(execution.raised(raised)) is expected, lost


@pytest.mark.parametrize("present", [False, True])
def test_what_a_function_of_todays_code_makes_is_of_todays_code(present: bool) -> None:
    """The classes that it brings along stand for recorded ones too."""

    def goes_on():
        return ray.remote(large).bind()

    request = attempt(goes_on)
    function = msgspec.structs.replace(request.function, present=present)
    template = msgspec.structs.replace(request.template, function=function)
    (report,), _ = run(MemoryStorage(), msgspec.structs.replace(request, template=template))
    assert isinstance(report, AttemptReturnedPlan)
    assert [each.present for each in report.plan.functions] == [present]
