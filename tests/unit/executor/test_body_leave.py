"""The host leaves a body: its code does not go on, asks for nothing more, and makes no noise."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from ray_workflows._executor.worker.bodies.body import BodyLeft, current_body
from tests.unit.executor.bodies import (
    Coordinator,
    leave_bodies,  # noqa: F401
    make,
    run,
    step,
)


@pytest.fixture(autouse=True)
def no_noise(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged, and no warning is shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()
    assert not caplog.records


def leave(code: Any) -> Coordinator:
    """Leave a body where it waits for its first outcome."""
    coordinator = Coordinator(code).start()
    log = list(coordinator.log)
    coordinator.running.leave()
    assert not coordinator.running.ended
    assert coordinator.running.body.take_news().is_empty
    assert not coordinator.running.body.take_work()
    coordinator.advance()
    assert coordinator.log == log
    return coordinator


def test_finally_blocks_run_and_their_asks_do_nothing() -> None:
    reached: list[str] = []

    async def code() -> None:
        try:
            await step("a")
            reached.append("went on")
        finally:
            reached.append("finally")
            try:
                await step("undo")
            except BaseException as error:
                reached.append(type(error).__name__)
                raise

    leave(code)
    assert reached == ["finally", "BodyLeft"]


def test_a_body_that_was_left_is_run_again() -> None:
    async def code() -> list[str]:
        return [await step("a"), await step("b")]

    coordinator = Coordinator(code).start()
    coordinator.answer("a")
    coordinator.running.leave()
    assert Coordinator(code, coordinator.history).start().finish() == ["a", "b"]


def test_all_tasks_are_closed() -> None:
    reached: list[str] = []

    async def branch(name: str) -> None:
        try:
            await step(name)
        finally:
            reached.append(name)
            current_body.get()

    async def code() -> None:
        tasks = [asyncio.create_task(branch(name)) for name in "ab"]
        tasks.append(asyncio.create_task(step("c")))
        try:
            await asyncio.gather(*tasks, branch("d"))
        finally:
            reached.append("main")

    leave(code)
    assert sorted(reached) == ["a", "b", "d", "main"]


def test_coroutines_that_nobody_has_awaited() -> None:
    async def branch() -> None:
        await step("never")

    async def code() -> None:
        one, some, named = branch(), [branch(), branch()], {"x": branch()}
        for each in [branch(), branch()]:
            await step("a")
            await each
        await one
        await asyncio.gather(*some, *named.values())

    leave(code)


def test_tasks_that_have_not_begun() -> None:
    async def branch() -> None:
        await step("never")

    async def code() -> None:
        await step("a")
        asyncio.create_task(branch())
        asyncio.create_task(step("b"))
        body = current_body.get()
        body.halt()

    coordinator = Coordinator(code).start()
    coordinator.running.advance([])
    coordinator.running.leave()


def test_code_that_waits_on_is_abandoned() -> None:
    reached: list[str] = []

    async def code() -> None:
        loop = asyncio.get_running_loop()
        for number in range(5):
            try:
                await (step("a") if number == 0 else loop.create_future())
            except BaseException as error:
                reached.append(type(error).__name__)

    leave(code)
    assert reached == ["GeneratorExit"] * 5


@pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11")
def test_task_groups_and_timeouts() -> None:
    reached: list[str] = []

    async def branch(name: str) -> None:
        async with asyncio.timeout(5):
            try:
                await step(name)
            finally:
                reached.append(name)

    async def code() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "ab":
                group.create_task(branch(name))

    leave(code)
    assert sorted(reached) == ["a", "b"]


def test_async_generators() -> None:
    reached: list[str] = []

    async def numbers() -> Any:
        try:
            yield await step("a")
            yield await step("b")
        finally:
            reached.append("generator")

    async def code() -> None:
        async for _ in numbers():
            await step("c")

    coordinator = Coordinator(code).start()
    coordinator.answer("a")
    coordinator.running.leave()
    gc.collect()
    assert reached == ["generator"]


def test_new_tasks_are_refused() -> None:
    reached: list[str] = []

    async def branch() -> None:
        reached.append("ran")

    async def code() -> None:
        try:
            await step("a")
        finally:
            try:
                asyncio.create_task(branch())
            except BodyLeft:
                reached.append("refused")

    leave(code)
    assert reached == ["refused"]


def test_errors_of_finally_blocks_do_not_get_out() -> None:
    async def code() -> None:
        try:
            await step("a")
        finally:
            raise SystemExit

    leave(code)


def test_a_plain_body() -> None:
    reached: list[str] = []
    threads: list[threading.Thread] = []

    def code() -> None:
        threads.append(threading.current_thread())
        try:
            step("a")
            reached.append("went on")
        except Exception:
            reached.append("caught")
        finally:
            for _ in range(2):
                try:
                    step("undo")
                except BaseException as error:
                    reached.append(type(error).__name__)

    leave(code)
    assert reached == ["BodyLeft"] * 2
    assert not threads[0].is_alive()


def test_a_plain_body_that_swallows_it_is_not_ended() -> None:
    def code() -> str:
        try:
            return str(step("a"))
        except BaseException:
            return "swallowed"

    coordinator = leave(code)
    assert coordinator.running.result is None


@pytest.mark.parametrize("plain", [False, True])
def test_another_thread_leaves_a_body_that_runs(plain: bool) -> None:
    runs, left = threading.Event(), threading.Event()
    reached: list[str] = []

    def code() -> None:
        runs.set()
        assert left.wait(10)
        try:
            step("a")
        except BaseException as error:
            reached.append(type(error).__name__)
            raise

    async def async_code() -> None:
        code()

    running = make(code if plain else async_code)
    thread = threading.Thread(target=running.advance)
    thread.start()
    assert runs.wait(10)
    running.leave()
    left.set()
    thread.join(10)
    assert not thread.is_alive()
    assert reached == ["BodyLeft"]
    assert not running.ended
    assert running.body.take_news().is_empty


def test_all_is_closed_when_the_code_that_runs_has_been_left() -> None:
    runs, left = threading.Event(), threading.Event()
    reached: list[str] = []

    async def branch() -> None:
        try:
            await step("a")
        finally:
            reached.append("closed")

    async def code() -> None:
        task = asyncio.create_task(branch())
        await asyncio.sleep(0)
        runs.set()
        assert left.wait(10)
        await task

    running = make(code)
    thread = threading.Thread(target=running.advance)
    thread.start()
    assert runs.wait(10)
    running.leave()
    left.set()
    thread.join(10)
    assert reached == ["closed"]


@pytest.mark.parametrize("plain", [False, True])
def test_a_body_that_has_not_begun(plain: bool) -> None:
    running = make(lambda: None, plain=plain)
    running.leave()
    running.advance()
    assert not running.ended


def test_leaving_a_body_that_has_ended_changes_nothing() -> None:
    async def code() -> str:
        return str(await step("a"))

    coordinator = Coordinator(code).start()
    coordinator.finish()
    coordinator.running.leave()
    coordinator.running.leave()
    assert coordinator.result == "a"


def test_a_call_that_nobody_awaits_makes_no_noise() -> None:
    async def code() -> str:
        step("forgotten")
        return str(await step("a"))

    coordinator = Coordinator(code).start()
    coordinator.answer("a")
    assert coordinator.result == "a"
    assert run(code) == "a"
