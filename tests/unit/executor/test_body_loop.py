"""The event loop of durable functions: asyncio as its documentation says, in a fixed order."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ray_workflows._executor.worker.bodies import event_loop
from ray_workflows._executor.worker.bodies.body import current_body
from ray_workflows._executor.worker.bodies.running import AsyncBody
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
)

since_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11")


def paths(code: Any) -> list[str]:
    coordinator = Coordinator(code).start()
    coordinator.finish()
    return list(coordinator.steps)


def test_steps_in_a_row() -> None:
    async def code() -> list[str]:
        return [await step("charge"), await step("charge"), await step("pack")]

    assert run(code) == ["charge", "charge#2", "pack"]


def test_gather_asks_for_all_at_once() -> None:
    async def code() -> list[str]:
        return await asyncio.gather(step("pack"), step("label"), step("pack"))

    coordinator = Coordinator(code).start()
    assert coordinator.open == ["pack", "label", "pack#2"]
    coordinator.answer("pack#2")
    coordinator.answer("pack")
    coordinator.answer("label")
    assert coordinator.result == ["pack", "label", "pack#2"]


def test_wait_gives_what_is_done() -> None:
    async def code() -> tuple[list[str], int]:
        tasks = [asyncio.create_task(step(name)) for name in "abc"]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return [task.result() for task in done], len(pending)

    coordinator = Coordinator(code).start()
    coordinator.answer("b")
    assert coordinator.result == (["b"], 2)


@pytest.mark.parametrize("in_children", [False, True])
def test_sets_of_tasks_are_in_the_order_of_their_making(in_children: bool) -> None:
    async def child(name: str) -> str:
        return str(await step(name))

    async def code() -> list[str]:
        make = child if in_children else step
        tasks = {asyncio.create_task(make(str(number))) for number in range(50)}
        done, _ = await asyncio.wait(tasks)
        return [task.result() for task in done]

    names = [f"{number + 1}/{number}" if in_children else str(number) for number in range(50)]
    coordinator = Coordinator(code).start()
    for name in reversed(names):
        coordinator.answer(name)
    assert coordinator.result == names


def test_as_completed_of_steps_is_in_the_order_of_outcomes() -> None:
    async def code() -> list[str]:
        found = []
        for each in asyncio.as_completed([step(name) for name in "abcdef"]):
            found.append(await each)
            await step("note", found[-1])
        return found

    coordinator = Coordinator(code).start()
    for path in ["c", "note", "a", "note#2", "f", "b", "note#3", "note#4", "d", "e"]:
        coordinator.answer(path)
    assert coordinator.finish() == ["c", "a", "f", "b", "d", "e"]
    assert coordinator.plans["note#3"] == ("note", ("f",))
    assert coordinator.plans["note#4"] == ("note", ("b",))


def test_as_completed_of_tasks() -> None:
    async def child(name: str) -> str:
        return str(await step(name))

    async def code() -> list[str]:
        tasks = [asyncio.create_task(child(name)) for name in "abc"]
        return [await each for each in asyncio.as_completed(tasks)]

    coordinator = Coordinator(code).start()
    for path in ["3/c", "1/a", "2/b"]:
        coordinator.answer(path)
    assert coordinator.result == ["3/c", "1/a", "2/b"]


def test_as_completed_of_coroutines_is_refused() -> None:
    async def child() -> None:
        await step("a")

    async def code() -> None:
        coroutine = child()
        for each in asyncio.as_completed([coroutine]):
            await each

    with pytest.raises(TypeError, match=r"\[asyncio.create_task\(f\(x\)\) for x in xs\]"):
        run(code)


def test_wait_for_cancels_the_step_that_is_late() -> None:
    async def code() -> str:
        try:
            return str(await asyncio.wait_for(step("slow"), 30))
        except asyncio.TimeoutError:
            return "late"

    coordinator = Coordinator(code).start()
    assert coordinator.plans == {"slow": ("slow", ()), "timer": ("timer", 30)}
    news = coordinator.answer("timer")
    assert coordinator.result == "late"
    assert news.canceled == ["slow"]


def test_wait_for_cancels_its_timer() -> None:
    async def code() -> str:
        return str(await asyncio.wait_for(step("fast"), 30))

    coordinator = Coordinator(code).start()
    assert coordinator.answer("fast").canceled == ["timer"]
    assert coordinator.result == "fast"


def test_wait_for_has_the_scope_of_its_caller_in_each_python() -> None:
    async def child() -> str:
        return str(await step("a"))

    async def code() -> str:
        return str(await asyncio.wait_for(child(), 30))

    coordinator = Coordinator(code).start()
    assert sorted(coordinator.open) == ["a", "timer"]


@since_311
def test_timeout() -> None:
    async def code() -> str:
        try:
            async with asyncio.timeout(5):
                await step("slow")
        except TimeoutError:
            return str(await step("after"))
        return "no timeout"

    coordinator = Coordinator(code).start()
    assert coordinator.plans["timer"] == ("timer", 5)
    assert coordinator.answer("timer").canceled == ["slow"]
    assert coordinator.finish() == "after"


@since_311
def test_a_timeout_in_time_is_canceled() -> None:
    async def code() -> str:
        async with asyncio.timeout(5):
            return str(await step("fast"))

    coordinator = Coordinator(code).start()
    assert coordinator.answer("fast").canceled == ["timer"]
    assert coordinator.result == "fast"


@since_311
def test_a_task_group_cancels_the_others_when_one_fails() -> None:
    async def code() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                for name in "abc":
                    group.create_task(step(name))
        except BaseExceptionGroup as error:  # noqa: F821 - new in Python 3.11
            return str(error.exceptions[0])
        return "none failed"

    coordinator = Coordinator(code).start()
    assert coordinator.answer("b", failure("b failed")).canceled == ["a", "c"]
    assert coordinator.result == "b failed"


def test_event_lock_and_queue() -> None:
    async def code() -> list[str]:
        event, lock, queue = asyncio.Event(), asyncio.Lock(), asyncio.Queue[str](1)
        found: list[str] = []

        async def first() -> None:
            async with lock:
                await queue.put(await step("a"))
                await queue.put(await step("b"))
            event.set()

        async def second() -> None:
            async with lock:
                found.append("second has the lock")

        tasks = [asyncio.create_task(first()), asyncio.create_task(second())]
        found.append(await queue.get())
        found.append(await queue.get())
        await event.wait()
        await asyncio.gather(*tasks)
        return found

    assert run(code) == ["1/a", "1/b", "second has the lock"]


def test_shield_keeps_the_step() -> None:
    async def code() -> str:
        inner = asyncio.ensure_future(step("kept"))
        try:
            await asyncio.wait_for(asyncio.shield(inner), 1)
        except asyncio.TimeoutError:
            return str(await inner)
        return "no timeout"

    coordinator = Coordinator(code).start()
    assert coordinator.answer("timer").canceled == []
    coordinator.answer("kept")
    assert coordinator.result == "kept"


def test_cancellation_of_one_branch() -> None:
    async def branch() -> str:
        try:
            await step("a")
        except asyncio.CancelledError:
            await step("undo")
            raise
        return "done"

    async def code() -> Any:
        task = asyncio.create_task(branch())
        await step("b")
        task.cancel()
        return await asyncio.gather(task, step("c"), return_exceptions=True)

    coordinator = Coordinator(code).start()
    news = coordinator.answer("b")
    assert news.canceled == ["1/a"]
    assert [opened.path for opened, _ in news.opened] == ["c", "1/undo"]
    coordinator.answer("1/undo")
    coordinator.answer("c")
    canceled, answered = coordinator.result
    assert isinstance(canceled, asyncio.CancelledError)
    assert answered == "c"


def test_a_task_that_is_canceled_before_it_begins_cancels_its_step() -> None:
    async def code() -> str:
        task = asyncio.create_task(step("a"))
        task.cancel()
        return str(await step("b"))

    assert Coordinator(code).start().canceled == {"a"}


def test_cancellation_does_not_cancel_a_step_that_has_its_outcome() -> None:
    async def code() -> str:
        task = asyncio.create_task(step("a"))
        other = asyncio.create_task(step("b"))
        other.add_done_callback(lambda _: task.cancel())
        task.add_done_callback(lambda _: None)
        await asyncio.wait([task, other])
        return str(task.cancelled())

    coordinator = Coordinator(code).start()
    coordinator.answer("a")
    assert coordinator.answer("b").canceled == []
    assert coordinator.result == "False"


def test_the_outcome_of_a_canceled_step_is_ignored_and_counts() -> None:
    async def code() -> str:
        task = asyncio.create_task(step("a"))
        await step("b")
        task.cancel()
        return str(await step("c"))

    coordinator = Coordinator(code).start()
    coordinator.answer("b")
    coordinator.answer("a")
    assert coordinator.running.body.turn == 2
    coordinator.answer("c")
    assert coordinator.result == "c"


def test_sleep_is_a_durable_timer() -> None:
    async def code() -> str:
        return await asyncio.sleep(60, "slept")

    coordinator = Coordinator(code).start()
    assert coordinator.plans == {"timer": ("timer", 60)}
    assert coordinator.steps["timer"].step.digest == "60"
    assert coordinator.finish() == "slept"


def test_no_delay_needs_no_timer() -> None:
    async def code() -> list[str]:
        found: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_later(-1, found.append, "later")
        loop.call_at(0, found.append, "at")
        loop.call_later(0, found.append, "canceled").cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(-1)
        return found

    assert run(code) == ["later", "at"]


def test_a_timer_that_never_fires_is_not_opened() -> None:
    async def code() -> str:
        return str(await asyncio.wait_for(step("a"), math.inf))

    assert Coordinator(code).start().open == ["a"]


def test_call_at_and_time() -> None:
    async def code() -> float:
        loop = asyncio.get_running_loop()
        assert loop.time() == current_body.get().now() == BEGAN
        await step("a")
        assert loop.time() == BEGAN + 1
        fired = loop.create_future()
        handle = loop.call_at(loop.time() + 0.1, fired.set_result, None)
        assert handle.when() == pytest.approx(loop.time() + 0.1)
        await fired
        return loop.time()

    coordinator = Coordinator(code).start()
    coordinator.answer("a")
    assert coordinator.plans["timer"] == ("timer", 0.1)
    assert coordinator.finish() == BEGAN + 2


def test_a_timer_names_the_line_that_asked_for_it() -> None:
    async def code() -> None:
        await asyncio.sleep(1)

    coordinator = Coordinator(code).start()
    line = coordinator.running.body.open["timer"].line
    assert line.startswith(f"{__file__}:")


def test_nested_scopes() -> None:
    async def grandchild() -> None:
        await step("leaf")

    async def child() -> None:
        await asyncio.gather(grandchild(), step("leaf"), grandchild())
        await step("leaf")

    async def code() -> None:
        await asyncio.gather(child(), step("leaf"), child())
        await child()

    assert sorted(paths(code)) == [
        *("1/1/leaf", "1/2/leaf", "1/leaf", "1/leaf#2"),
        *("2/1/leaf", "2/2/leaf", "2/leaf", "2/leaf#2"),
        *("3/leaf", "4/leaf", "leaf", "leaf#2", "leaf#3"),
    ]


def test_the_path_is_reserved_by_the_call() -> None:
    async def code() -> list[str]:
        first, second = step("a"), step("a")
        return [await second, await first]

    assert run(code) == ["a#2", "a"]


def test_a_call_is_awaited_once() -> None:
    async def code() -> None:
        call = step("a")
        await call
        with pytest.raises(RuntimeError, match="awaited already"):
            await call
        with pytest.raises(RuntimeError, match="awaited already"):
            await asyncio.create_task(call)

    run(code)


@since_311
def test_a_task_may_be_given_a_context() -> None:
    variable = contextvars.ContextVar("variable", default="outer")

    async def child() -> str:
        return f"{variable.get()} {await step('a')}"

    async def code() -> str:
        context = contextvars.copy_context()
        context.run(variable.set, "inner")
        loop = asyncio.get_running_loop()
        return await loop.create_task(child(), context=context, name="given")

    assert run(code) == "inner 1/a"


def test_names_of_tasks_are_the_same_each_time() -> None:
    async def child() -> str:
        task = asyncio.current_task()
        assert task
        return task.get_name()

    async def code() -> list[str]:
        named = asyncio.create_task(child(), name="mine")
        return [await asyncio.create_task(child()), await named]

    assert run(code) == run(code) == ["Task-3", "mine"]


def test_a_task_factory() -> None:
    made: list[Any] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def child() -> str:
        return str(await step("a"))

    async def code() -> str:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        assert loop.get_task_factory() is factory
        return await asyncio.create_task(child())

    assert run(code) == "1/a"
    assert len(made) == 1


if sys.version_info >= (3, 12):

    def test_eager_tasks() -> None:
        async def child() -> str:
            return str(await step("a"))

        async def code() -> list[str]:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            return await asyncio.gather(child(), child())

        assert run(code) == ["1/a", "2/a"]


def test_tasks_that_are_not_done_are_canceled_at_the_end() -> None:
    async def child(name: str) -> None:
        try:
            await step(name)
        finally:
            await step(f"undo_{name}")

    async def code() -> str:
        tasks = [asyncio.create_task(child(name)) for name in "ab"]
        await step("c")
        return f"{len(tasks)} tasks"

    coordinator = Coordinator(code).start()
    news = coordinator.answer("c")
    assert news.canceled == ["1/a", "2/b"]
    assert not coordinator.running.ended
    coordinator.answer("1/undo_a")
    coordinator.answer("2/undo_b")
    assert coordinator.result == "2 tasks"


def test_the_error_of_a_step_is_raised_where_it_is_awaited() -> None:
    async def code() -> str:
        try:
            return str(await step("a"))
        except StepError as error:
            return f"caught {error}"

    assert run(code, fails=["a"]) == "caught a"


@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
@pytest.mark.parametrize("in_child", [False, True])
def test_code_may_raise_anything(error: type[BaseException], in_child: bool) -> None:
    async def child() -> None:
        await step("a")
        raise error("mine")

    async def code() -> None:
        await (asyncio.create_task(child()) if in_child else child())

    with pytest.raises(error):
        run(code)


def test_endless_polling_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def code() -> None:
        task = asyncio.create_task(step("a"))
        while not task.done():
            await asyncio.sleep(0)

    monkeypatch.setattr(event_loop, "MAX_CALLBACKS", 1000)
    with pytest.raises(RuntimeError, match=r"poll with asyncio\.sleep\(0\)"):
        run(code)


def test_a_local_step() -> None:
    def add(left: int, right: int) -> int:
        return left + right

    async def code() -> int:
        return int(await local(add, 1, 2))

    coordinator = Coordinator(code).start()
    assert not coordinator.running.idle
    assert not coordinator.steps
    coordinator.answer("add")
    assert coordinator.result == 3


def test_a_local_step_that_is_canceled_at_once_is_never_done() -> None:
    async def code() -> None:
        task = asyncio.create_task(local(print))
        task.cancel()
        await step("a")

    coordinator = Coordinator(code).start()
    assert not coordinator.works
    assert coordinator.running.idle


def test_idle_and_stuck() -> None:
    async def code() -> None:
        await step("a")
        await asyncio.Event().wait()

    coordinator = Coordinator(code).start()
    assert coordinator.running.idle
    assert not coordinator.running.stuck
    coordinator.answer("a")
    assert coordinator.running.stuck


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: loop.create_connection(None, "h", 1),
        lambda loop: loop.add_reader(0, print),
        lambda loop: loop.add_signal_handler(2, print),
        lambda loop: loop.subprocess_exec(None, "ls"),
        lambda loop: loop.run_until_complete(None),
        lambda loop: loop.run_forever(),
        lambda loop: loop.stop(),
        lambda loop: asyncio.to_thread(print),
        lambda loop: asyncio.open_connection("h", 1),
        lambda loop: asyncio.create_subprocess_exec("ls"),
    ],
)
def test_what_needs_a_real_loop_is_refused(call: Any) -> None:
    async def code() -> None:
        with pytest.raises(RuntimeError, match=r"can't do this itself .* Do it in a step"):
            await call(asyncio.get_running_loop())

    run(code)


def test_callbacks_of_other_threads_are_refused() -> None:
    async def code() -> list[str]:
        found: list[str] = []
        loop, body = asyncio.get_running_loop(), current_body.get()
        loop.call_soon_threadsafe(found.append, "mine")
        await asyncio.sleep(0)

        def call() -> None:
            for each in (lambda: loop.call_soon_threadsafe(print), lambda: body.timer(1)):
                with pytest.raises(RuntimeError) as error:
                    each()
                found.append(str(error.value))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return found

    mine, called, asked = run(code)
    assert mine == "mine"
    assert "by another thread (loop.call_soon_threadsafe)" in called
    assert "another thread asked for a step" in asked


def test_foreign_awaitables_raise() -> None:
    class Bare:
        def __await__(self) -> Iterator[int]:
            yield 1

    async def code() -> list[str]:
        other = asyncio.new_event_loop()
        foreign = other.create_future()
        other.close()
        texts = []
        for each in (foreign, Bare()):
            try:
                await each  # type: ignore[misc]
            except RuntimeError as error:
                texts.append(str(error))
        return texts

    loop, bare = run(code)
    assert "attached to a different loop" in loop
    assert "bad yield" in bare


def test_the_loop_is_the_running_one_and_says_so() -> None:
    async def code() -> None:
        loop = asyncio.get_running_loop()
        assert loop.is_running()
        assert not loop.is_closed()
        assert not loop.get_debug()
        with pytest.raises(RuntimeError, match="can't be closed by its code"):
            loop.close()

    async def outer() -> None:
        before = asyncio.get_running_loop()
        run(code)
        assert asyncio.get_running_loop() is before

    run(code)
    asyncio.run(outer())


def test_turns_may_run_in_different_threads() -> None:
    async def code() -> list[str]:
        return [await step("a"), await step("b")]

    coordinator = Coordinator(code).start()
    for path in "ab":
        thread = threading.Thread(target=coordinator.answer, args=(path,))
        thread.start()
        thread.join()
    assert coordinator.result == ["a", "b"]


def test_the_body_is_known_to_its_tasks_and_callbacks() -> None:
    async def child() -> Any:
        return current_body.get()

    async def code() -> set[Any]:
        found = [current_body.get(), await asyncio.create_task(child())]
        asyncio.get_running_loop().call_soon(lambda: found.append(current_body.get()))
        await asyncio.sleep(0)
        assert len(found) == 3
        return set(found)

    coordinator = Coordinator(code).start()
    assert coordinator.result == {coordinator.running.body}
    assert current_body.get(None) is None


def test_async_generators_are_closed_when_nobody_uses_them() -> None:
    found: list[str] = []

    async def numbers() -> Any:
        try:
            for number in range(10):
                yield await step(str(number))
        finally:
            found.append("closing")
            found.append(await step("undo"))

    async def code() -> None:
        async for number in numbers():
            if number == "1":
                break
        await step("next")
        assert found[0] == "closing"
        await asyncio.create_task(step("last"))

    coordinator = Coordinator(code).start()
    coordinator.finish()
    assert list(coordinator.steps) == ["0", "1", "next", "generators/undo", "last"]
    assert found == ["closing", "generators/undo"]


def test_async_generators_are_closed_at_the_end() -> None:
    found: list[str] = []

    async def numbers() -> Any:
        try:
            yield await step("a")
        finally:
            found.append("closed")

    async def code() -> Any:
        generator = numbers()
        await generator.__anext__()
        asyncio.get_running_loop().kept = generator  # type: ignore[attr-defined]

    run(code)
    assert found == ["closed"]


def test_errors_that_nobody_looks_at_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def code() -> None:
        def fail() -> None:
            raise ValueError("in a callback")

        asyncio.get_running_loop().call_soon(fail)
        await step("a")

    coordinator = Coordinator(code).start()
    assert caplog.text.count("in a callback") == 2  # The message and the traceback.
    caplog.clear()
    Coordinator(code, coordinator.history).start().finish()
    assert not caplog.text


def test_an_exception_handler() -> None:
    found: list[Any] = []

    async def code() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: found.append(context["message"]))
        assert loop.get_exception_handler()
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        loop.call_exception_handler({"message": "mine"})

    run(code)
    assert found[0].startswith("Exception in callback")
    assert found[1] == "mine"


def test_an_async_body_has_to_return_a_coroutine() -> None:
    running = make(lambda: 1, plain=False)
    assert isinstance(running, AsyncBody)
    running.advance()
    assert "has to return a coroutine, not int" in str(running.error)
