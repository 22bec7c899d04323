"""What a Ray task does with its batches, and with an answer that is late, is lost, or says no."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from ray_workflows._capture.pickling import pickle_value
from ray_workflows._codec.envelope import seal
from ray_workflows._executor.protocol import (
    AttemptRequest,
    AttemptTemplate,
    BatchReport,
    decode_report,
    encode_batch,
)
from ray_workflows._executor.scheduling.dispatch import Dispatch
from ray_workflows._executor.worker import loop
from ray_workflows._executor.worker.batch import EncodedBatch, Home, WireReport, pack_loads
from ray_workflows._executor.worker.loop import WorkerLoop
from ray_workflows._model.plan import Environment, Function, TaskOptions
from ray_workflows._model.values import Value
from ray_workflows.storage.memory import MemoryStorage

#: What the tasks here run: each calls it with the number of its batch.
ran: list[int] = []
hooks: dict[int, Callable[[], Any]] = {}


def task(number: int) -> None:
    ran.append(number)
    hooks.get(number, lambda: None)()


def stored(value: Any) -> bytes:
    pickled = pickle_value(value, where="value")
    return b"".join(seal(pickled.data, pickled.buffers))


def batch(number: int, size: int = 1) -> EncodedBatch:
    function = Function("task", "task", stored(task))
    template = AttemptTemplate("w", "i", function, TaskOptions(), Environment(), ())
    arguments = Value(stored(((number,), {})))
    requests = [AttemptRequest(template, n, f"t{n}", 0, 1, arguments, True) for n in range(size)]
    return encode_batch(number, 1, requests)


class Coordinator:
    """Answers reports as a test says: it stands for an actor, whose calls give futures."""

    def __init__(self, *answers: list[EncodedBatch] | Exception | None) -> None:
        self.answers = list(answers)
        self.done: list[int] = []
        self.returned: dict[int, BatchReport] = {}
        self.held: dict[int, Future] = {}
        self.came = threading.Event()

    @property
    def batch_done(self) -> Call:
        return Call(self.take)

    @property
    def batch_overran(self) -> Call:
        return Call(self.take_back)

    def take(self, wire: WireReport) -> Future:
        number = decode_report(wire)[0].number
        self.done.append(number)
        future: Future = Future()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        elif answer == "later":
            self.held[number] = future
        else:
            future.set_result(pack_loads(answer))
        return future

    def take_back(self, wire: WireReport) -> Future:
        report, _ = decode_report(wire)
        self.returned[report.number] = report
        self.came.set()
        return Future()


class Call:
    """A method of an actor."""

    def __init__(self, method: Callable[..., Future]) -> None:
        self.method = method

    def remote(self, *args: Any) -> Call:
        self.result = self.method(*args)
        return self

    def future(self) -> Future:
        return self.result


@pytest.fixture(autouse=True)
def clean() -> None:
    ran.clear()
    hooks.clear()


def slot(coordinator: Coordinator, *loads: EncodedBatch, asks: bool = True) -> WorkerLoop:
    return WorkerLoop(Home(MemoryStorage(), coordinator), asks, loads)


def numbers(reports: list[WireReport]) -> list[int]:
    return [decode_report(wire)[0].number for wire in reports]


def test_who_is_not_to_ask_says_all_in_the_end() -> None:
    coordinator = Coordinator()
    assert numbers(slot(coordinator, batch(1), asks=False).run()) == [1]
    assert coordinator.done == []


def test_the_next_batch_runs_while_nobody_has_answered_yet() -> None:
    coordinator = Coordinator("later", None)

    def answer() -> None:
        # In the batch behind the report that this answers.
        coordinator.held[1].set_result([batch(3)])

    hooks[2] = answer
    assert numbers(slot(coordinator, batch(1), batch(2)).run()) == [3]
    assert ran == [1, 2, 3]
    assert coordinator.done == [1, 2]


def test_after_a_no_the_rest_is_reported_in_the_end() -> None:
    coordinator = Coordinator([batch(3)], None)
    assert numbers(slot(coordinator, batch(1), batch(2)).run()) == [3]
    assert ran == [1, 2, 3]


def test_what_nobody_has_confirmed_is_said_again() -> None:
    coordinator = Coordinator([], OSError("the coordinator is gone"))
    assert numbers(slot(coordinator, batch(1), batch(2), batch(3)).run()) == [2, 3]
    assert ran == [1, 2, 3]


def test_what_waits_behind_a_long_batch_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LATE_SECONDS", 0.0)
    coordinator = Coordinator("later", [])

    def wait() -> None:
        # With what was on its way meanwhile.
        coordinator.held[1].set_result([batch(4)])
        assert coordinator.came.wait(10)
        deadline = time.monotonic() + 10
        while 4 not in coordinator.returned and time.monotonic() < deadline:
            coordinator.came.wait(0.01)

    hooks[2] = wait
    assert slot(coordinator, batch(1), batch(2), batch(3, size=2)).run() == []
    assert ran == [1, 2]
    assert {number: report.unstarted for number, report in coordinator.returned.items()} == {
        3: (0, 1),
        4: (0,),
    }


def test_a_last_member_that_takes_long_holds_no_results_back() -> None:
    """As one does behind which others wait, but nothing is handed back here."""
    coordinator = Coordinator([], None)
    run = slot(coordinator, batch(1, size=3))
    told: list[BatchReport | None] = []

    def take_long() -> None:
        if len(ran) == 3:
            # Once is enough.
            for _ in range(2):
                run.check(time.monotonic() + loop.LATE_SECONDS)
                told.append(coordinator.returned.pop(1, None))

    hooks[1] = take_long
    assert run.run() == []
    first, second = told
    assert first is not None
    assert [index for index, _ in first.reports] == [0, 1]
    assert first.unstarted == ()
    assert second is None


def test_another_life_of_a_coordinator_numbers_its_batches_anew() -> None:
    """A Ray task of an earlier one may report to it still."""
    first, second = (Dispatch(*[None] * 4, time, *[None] * 4) for _ in range(2))  # type: ignore[arg-type]
    used = {next(first.numbers) for _ in range(1_000)}
    assert not used & {next(second.numbers) for _ in range(1_000)}
