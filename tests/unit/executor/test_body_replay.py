"""A body that is cut anywhere and run again does the same: asks, news, results, what it sees."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from ray_workflows._executor.worker.bodies.body import current_body
from ray_workflows._model.steps import History, Step, StepKind, StepOutcome, StepRecord
from tests.unit.executor.bodies import (
    Coordinator,
    StepError,
    failure,
    leave_bodies,  # noqa: F401
    local,
    make,
    step,
    timer,
    value,
)

#: What the code of the body that runs has seen.
seen: list[Any] = []


def see(*what: Any) -> None:
    body = current_body.get()
    seen.append((*what, body.now(), body.turn))


async def in_a_row() -> Any:
    for number in range(5):
        see(await step("a", number))
    await asyncio.sleep(60)
    return await step("b")


async def fan_out() -> Any:
    async def branch(number: int) -> Any:
        found = await asyncio.gather(step("pack", number), step("label", number))
        see(number, found)
        await asyncio.sleep(number + 1)
        return await step("send", number)

    result = await asyncio.gather(*[branch(number) for number in range(4)])
    return [*result, await step("last")]


async def as_they_come() -> Any:
    async def branch(name: str) -> Any:
        return await step(name)

    found = []
    for each in asyncio.as_completed([step(name) for name in "abcd"]):
        found.append(await each)
        see(found)
        await step("note", found[-1])
    for task in asyncio.as_completed([asyncio.create_task(branch(name)) for name in "abc"]):
        see(await task)
    return found


async def first_wins() -> Any:
    async def branch(number: int) -> Any:
        try:
            return await step("try", number)
        except asyncio.CancelledError:
            see("canceled", number)
            await step("undo", number)
            raise

    tasks = [asyncio.create_task(branch(number)) for number in range(4)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in done]


async def with_timeouts() -> Any:
    async def branch(number: int) -> Any:
        try:
            return await asyncio.wait_for(step("slow", number), 10)
        except asyncio.TimeoutError:
            see("late", number)
            return await step("instead", number)

    return await asyncio.gather(*[branch(number) for number in range(3)])


async def with_errors() -> Any:
    found = []
    for name in ("good", "bad", "good", "bad"):
        try:
            found.append(await step(name))
        except StepError as error:
            found.append(str(error))
            await step("mend")
    return found


async def with_locals() -> Any:
    def square(number: int = 3) -> int:
        return number * number

    async def branch(number: int) -> Any:
        return [await local(square, number), await step("a"), await local(square, number)]

    return await asyncio.gather(*[branch(number) for number in range(3)])


async def with_marks() -> Any:
    body = current_body.get()

    async def branch(number: int) -> Any:
        await step("a")
        return body.mark("seed", lambda: len(seen) + number)

    found = [body.mark("seed", lambda: 7)]
    if body.patched("first"):
        found.append(await step("patched"))
    found += await asyncio.gather(branch(1), branch(2))
    if body.patched("second"):
        found.append(await step("patched"))
    return [*found, body.mark("seed", lambda: 8)]


async def with_queue() -> Any:
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def producer(name: str) -> None:
        for _ in range(3):
            await queue.put(await step(name))

    async def consumer() -> Any:
        return [await step("take", await queue.get()) for _ in range(6)]

    tasks = [asyncio.create_task(producer(name)) for name in "ab"]
    return await asyncio.gather(consumer(), *tasks)


async def ends_early() -> Any:
    async def branch() -> None:
        try:
            await step("never")
        finally:
            see(await step("undo"))

    tasks = [asyncio.create_task(branch()) for _ in range(3)]
    see(len(tasks))
    return await step("a")


async def fails() -> Any:
    await asyncio.gather(step("good"), step("bad"), step("good"))


def plain() -> Any:
    found = []
    for name in ("good", "bad"):
        try:
            found.append(step(name))
        except StepError as error:
            found.append(str(error))
        see(found)
    timer(5)
    found.append(current_body.get().mark("seed", lambda: len(seen)))
    return found


def plain_at_once() -> Any:
    body = current_body.get()
    asked = [body.ask(name, "", StepKind.PLAN, lambda name=name: (name, ())) for name in "abcd"]
    found = [body.outcome_of(each) for each in reversed(asked)]
    return [*found, step("last")]


CODES = [
    *(in_a_row, fan_out, as_they_come, first_wins, with_timeouts, with_errors, with_locals),
    *(with_marks, with_queue, ends_early, fails, plain, plain_at_once),
]


class Uncut:
    """A body that ran without a break: what it saw, and its history after each outcome.

    ``cuts`` are the histories that a crash can leave behind: after an outcome was recorded, before
    and after its news were. Each with how much the coordinator had logged by then, and the outcomes
    that were to come.
    """

    def __init__(self, code: Callable[[], Any], seed: int) -> None:
        seen.clear()
        chance = random.Random(seed)
        self.code = code
        self.coordinator = Coordinator(code)
        cuts: list[tuple[History, int, int]] = [(History(), 0, 0)]
        self.coordinator.start()
        given: list[StepOutcome] = []
        while not self.coordinator.running.ended:
            # A canceled step may have ended before its cancellation arrived.
            paths = self.coordinator.open
            ended = {outcome.path for outcome in self.coordinator.outcomes}
            paths += sorted(self.coordinator.canceled - ended) if chance.random() < 0.3 else []
            cuts.append((self.coordinator.history, len(self.coordinator.log), len(given)))
            path = chance.choice(paths)
            fails = path.split("/")[-1].startswith("bad")
            known = {outcome.path for outcome in self.coordinator.outcomes}
            before = self.coordinator.steps.copy()
            self.coordinator.answer(path, failure(path) if fails else None)
            outcome = next(
                each
                for each in self.coordinator.outcomes
                if each.path not in known and each.path == path
            )
            given.append(outcome)
            if path in self.coordinator.steps and path not in before:
                before[path] = self.coordinator.steps[path]
            at = self.coordinator.outcomes.index(outcome)
            history = History(
                tuple(before.values()), tuple(self.coordinator.outcomes[: at + 1]), 1000.0
            )
            # The news of this turn are lost: the log goes on where it was.
            cuts.append((history, cuts[-1][1], len(given)))
        cuts.append((self.coordinator.history, len(self.coordinator.log), len(given)))
        self.cuts = [(history, logged, given[done:]) for history, logged, done in cuts]
        self.seen = list(seen)

    @property
    def log(self) -> list[str]:
        return self.coordinator.log

    def end(self) -> tuple[Any, str]:
        return ended(self.coordinator)


def ended(coordinator: Coordinator) -> tuple[Any, str]:
    running = coordinator.running
    assert running.ended
    return running.result, repr(running.error)


def without_work(log: list[str]) -> list[str]:
    """Local work that has no outcome is done again."""
    return [line for line in log if not line.startswith("work")]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("code", CODES, ids=lambda code: str(code.__name__))
def test_every_cut_goes_on_as_if_there_were_none(code: Callable[[], Any], seed: int) -> None:
    uncut = Uncut(code, seed)
    for history, logged, to_come in uncut.cuts:
        seen.clear()
        coordinator = Coordinator(code, history).start()
        for outcome in to_come:
            assert not coordinator.running.ended
            path = outcome.path
            if path in coordinator.works:
                coordinator.steps[path] = StepRecord(coordinator.works.pop(path)[0])
            coordinator.outcomes.append(outcome)
            coordinator.advance([outcome])
        assert ended(coordinator) == uncut.end()
        assert seen == uncut.seen
        assert without_work(coordinator.log) == without_work(uncut.log[logged:])
        assert coordinator.steps == uncut.coordinator.steps


@pytest.mark.parametrize("code", CODES, ids=lambda code: str(code.__name__))
def test_outcomes_may_come_in_batches(code: Callable[[], Any]) -> None:
    uncut = Uncut(code, 1)
    seen.clear()
    running = make(code, uncut.coordinator.history)
    running.advance(uncut.coordinator.outcomes)
    assert running.ended
    assert (running.result, repr(running.error)) == uncut.end()
    assert seen == uncut.seen
    assert running.body.take_news().is_empty


def test_what_is_replayed_is_not_told_again_and_says_so() -> None:
    async def code() -> list[bool]:
        body = current_body.get()
        found = [body.replaying]
        for name in "ab":
            await step(name)
            found.append(body.replaying)
        return found

    coordinator = Coordinator(code).start()
    coordinator.answer("a")
    assert coordinator.running.body.replaying is False
    again = Coordinator(code, coordinator.history).start()
    assert again.log == []
    assert again.finish() == [True, True, False]
    assert coordinator.finish() == [False, False, False]


def test_a_step_whose_outcome_was_dropped_is_opened_again() -> None:
    async def code() -> list[str]:
        return [await step("a"), await step("b")]

    coordinator = Coordinator(code).start()
    coordinator.answer("a")
    coordinator.answer("b", failure())
    assert isinstance(coordinator.running.error, StepError)
    (first, second), outcomes = coordinator.history.steps, coordinator.history.outcomes
    history = History((first, StepRecord(second.step, again=True)), outcomes[:1], 1000.0)
    again = Coordinator(code, history).start()
    assert again.log == ["open b at 1"]
    assert again.finish() == ["a", "b"]


def test_a_step_whose_outcome_was_dropped_may_be_asked_for_in_another_turn() -> None:
    async def code() -> list[str]:
        return [await step("a"), await step("b")]

    steps = [Step("a", "a", "", 0, StepKind.PLAN), Step("b", "b", "", 0, StepKind.PLAN)]
    history = History((StepRecord(steps[0]), StepRecord(steps[1], again=True)), (), 1000.0)
    assert Coordinator(code, history).start().finish() == ["a", "b"]


def test_a_recorded_cancel_is_not_told_again() -> None:
    async def code() -> None:
        task = asyncio.create_task(step("a"))
        await step("b")
        task.cancel()
        await step("c")

    coordinator = Coordinator(code).start()
    assert coordinator.answer("b").canceled == ["a"]
    assert Coordinator(code, coordinator.history).start().log == []


def test_the_time_is_that_of_the_first_call_and_never_goes_back() -> None:
    async def code() -> list[float]:
        found = [current_body.get().now()]
        for name in "ab":
            await step(name)
            found.append(current_body.get().now())
        return found

    running = make(code, History(began=500.0))
    running.advance([StepOutcome("a", 700.0, value(1)), StepOutcome("b", 600.0, value(2))])
    assert running.result == [500.0, 700.0, 700.0]
