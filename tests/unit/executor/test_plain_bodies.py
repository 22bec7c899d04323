"""Durable functions that are plain functions: a thread that takes turns with the host."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ray_workflows._executor.worker.bodies.body import current_body
from ray_workflows._model.steps import StepKind
from tests.unit.executor.bodies import (
    BEGAN,
    Coordinator,
    StepError,
    failure,
    leave_bodies,  # noqa: F401
    local,
    make,
    run,
    step,
    timer,
)


def test_steps_in_a_row() -> None:
    def code() -> list[str]:
        return [step("charge"), step("charge"), step("pack")]

    coordinator = Coordinator(code).start()
    assert coordinator.open == ["charge"]
    assert coordinator.running.idle
    assert coordinator.finish() == ["charge", "charge#2", "pack"]


def test_steps_that_are_asked_for_before_they_are_waited_for() -> None:
    def code() -> list[str]:
        body = current_body.get()
        asked = [body.ask(name, "", StepKind.PLAN, lambda: None) for name in "abc"]
        return [body.outcome_of(each) for each in asked]

    coordinator = Coordinator(code).start()
    assert coordinator.open == ["a", "b", "c"]
    coordinator.answer("c")
    coordinator.answer("b")
    assert not coordinator.running.ended
    assert coordinator.running.body.turn == 2
    coordinator.answer("a")
    assert coordinator.result == ["a", "b", "c"]


def test_all_runs_in_one_thread_that_is_no_longer_there() -> None:
    threads: set[threading.Thread] = set()

    def code() -> None:
        for _ in range(3):
            threads.add(threading.current_thread())
            step("a")

    run(code)
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert thread.daemon
    thread.join(10)
    assert not thread.is_alive()


def test_the_host_waits_while_the_code_runs() -> None:
    both = threading.Barrier(2, timeout=10)
    returned = threading.Event()

    def code() -> str:
        both.wait()
        assert not returned.is_set()
        both.wait()
        return str(step("a"))

    coordinator = Coordinator(code)

    def host() -> None:
        coordinator.start()
        returned.set()

    thread = threading.Thread(target=host)
    thread.start()
    both.wait()
    assert not returned.is_set()
    both.wait()
    thread.join(10)
    assert returned.is_set()
    assert coordinator.finish() == "a"


def test_a_timer_and_the_time() -> None:
    def code() -> list[float]:
        body = current_body.get()
        times = [body.now()]
        timer(5)
        return [*times, body.now()]

    coordinator = Coordinator(code).start()
    assert coordinator.plans == {"timer": ("timer", 5)}
    assert coordinator.finish() == [BEGAN, BEGAN + 1]


def test_local_work() -> None:
    def code() -> int:
        return int(local(lambda: 3) + 1)

    coordinator = Coordinator(code).start()
    assert not coordinator.running.idle
    assert coordinator.finish() == 4


def test_the_error_of_a_step() -> None:
    def code() -> str:
        try:
            step("a")
        except StepError as error:
            return f"caught {error}"
        return "no error"

    coordinator = Coordinator(code).start()
    coordinator.answer("a", failure("boom"))
    assert coordinator.result == "caught boom"


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration]
)
def test_code_may_raise_anything(error: type[BaseException], after: int) -> None:
    def code() -> None:
        for _ in range(after):
            step("a")
        raise error("mine")

    with pytest.raises(error):
        run(code)


def test_asyncio_of_its_own_may_not_ask_from_another_thread() -> None:
    def code() -> str:
        body = current_body.get()

        def ask() -> None:
            body.timer(1)

        async def main() -> None:
            await asyncio.to_thread(ask)

        try:
            asyncio.run(main())
        except RuntimeError as error:
            return str(error)
        return "asked"

    assert "another thread asked for a step" in run(code)


def test_the_body_is_known_to_its_code_alone() -> None:
    def code() -> Any:
        return current_body.get()

    running = make(code)
    running.advance()
    assert running.result is running.body
    assert current_body.get(None) is None
