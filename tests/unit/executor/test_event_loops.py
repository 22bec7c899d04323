"""Poison for listeners that share an event loop: one blocks it, or raises what ends loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ray_workflows._executor.worker.event_loops import Loops, UserError

#: A hang is a failure.
SECONDS = 60.0

Poison = Callable[[threading.Event], Coroutine[Any, Any, Any]]


async def blocks(end: threading.Event) -> str:
    end.wait(SECONDS)
    return "poison"


async def blocks_in_a_task_of_its_own(end: threading.Event) -> str:
    return await asyncio.create_task(blocks(end))


async def blocks_in_a_callback(end: threading.Event) -> str:
    asyncio.get_running_loop().call_soon(end.wait, SECONDS)
    await asyncio.sleep(0.01)
    return "poison"


async def exits(end: threading.Event) -> None:
    raise SystemExit(1)


async def exits_in_a_task_of_its_own(end: threading.Event) -> None:
    await asyncio.gather(asyncio.create_task(exits(end)))


async def interrupts(end: threading.Event) -> None:
    raise KeyboardInterrupt


async def says_that_it_was_canceled(end: threading.Event) -> None:
    raise asyncio.CancelledError


class Unheard(BaseException):
    pass


async def raises_a_base_exception(end: threading.Event) -> None:
    raise Unheard


POISONS = [
    blocks,
    blocks_in_a_task_of_its_own,
    blocks_in_a_callback,
    exits,
    exits_in_a_task_of_its_own,
    interrupts,
    says_that_it_was_canceled,
    raises_a_base_exception,
]


@pytest.mark.parametrize("poison", POISONS)
def test_others_go_on_and_so_do_those_that_come_later(poison: Poison) -> None:
    end = threading.Event()

    async def template() -> None:
        loops = Loops()
        event = threading.Event()

        async def healthy() -> str:
            while not event.is_set():
                await asyncio.sleep(0.01)
            return "healthy"

        before = [asyncio.create_task(loops.run(healthy)) for _ in range(3)]
        poisoned = asyncio.create_task(loops.run(lambda: poison(end)))
        after = [asyncio.create_task(loops.run(healthy)) for _ in range(3)]
        await asyncio.sleep(0)
        event.set()
        assert await asyncio.gather(*before, *after) == ["healthy"] * 6
        assert await loops.run(healthy) == "healthy"
        end.set()
        (result,) = await asyncio.gather(poisoned, return_exceptions=True)
        if isinstance(result, UserError):
            result = result.error
        assert result == "poison" or not isinstance(result, Exception)

    asyncio.run(asyncio.wait_for(template(), SECONDS))


def test_what_blocks_goes_on_when_it_blocks_no_more_and_its_thread_ends() -> None:
    end, started = threading.Event(), []

    async def poison() -> str:
        started.append(threading.current_thread())
        end.wait(SECONDS)
        await asyncio.sleep(0.01)
        return "poison"

    async def template() -> None:
        loops = Loops()

        async def healthy() -> threading.Thread:
            await asyncio.sleep(0.01)
            return threading.current_thread()

        poisoned = asyncio.create_task(loops.run(poison))
        while not started:
            await asyncio.sleep(0.01)
        assert await loops.run(healthy) is not started[0]
        end.set()
        assert await poisoned == "poison"
        assert len(started) == 1
        await asyncio.to_thread(started[0].join, SECONDS)
        assert not started[0].is_alive()

    asyncio.run(asyncio.wait_for(template(), SECONDS))


def test_a_call_that_exits() -> None:
    async def template() -> None:
        loops = Loops()
        for error in (SystemExit(1), KeyboardInterrupt(), Unheard()):

            def fail(error: BaseException = error) -> None:
                raise error

            with pytest.raises(UserError) as caught:
                await loops.call(fail)
            assert caught.value.error is error
        assert await loops.call(lambda: 5) == 5

    asyncio.run(template())


def test_a_canceled_one_is_stopped() -> None:
    stopped = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(SECONDS)
        finally:
            stopped.set()

    async def template() -> None:
        loops = Loops()
        waiting = asyncio.create_task(loops.run(endless))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(stopped.wait, SECONDS)

    asyncio.run(template())
