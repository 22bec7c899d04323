"""Code that does not do what its history says; patches, marks, and the step an error came from."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ray_workflows._executor.worker.bodies.body import Body, UnreadableOutcome, current_body
from ray_workflows._model.steps import History, Step, StepKind, StepOutcome, StepRecord
from ray_workflows.exceptions import NondeterminismError
from tests.unit.executor.bodies import (
    Coordinator,
    StepError,
    failure,
    leave_bodies,  # noqa: F401
    local,
    make,
    run,
    step,
    value,
)

Code = Callable[[], Any]


def sequence(*names: str) -> Code:
    async def code() -> list[str]:
        return [await step(name) for name in names]

    return code


def plain_sequence(*names: str) -> Code:
    def code() -> list[str]:
        return [step(name) for name in names]

    return code


def together(*names: str) -> Code:
    async def code() -> list[str]:
        return await asyncio.gather(*[step(name) for name in names])

    return code


def history_of(code: Code, answered: int) -> History:
    coordinator = Coordinator(code).start()
    for _ in range(answered):
        coordinator.answer(coordinator.open[0])
    return coordinator.history


def error_of(code: Code, history: History, **options: Any) -> NondeterminismError:
    running = make(code, history, **options)
    running.advance(history.outcomes)
    assert running.ended
    assert isinstance(running.error, NondeterminismError), running.error
    assert running.body.take_news().is_empty
    return running.error


@pytest.mark.parametrize("codes", [sequence, plain_sequence])
def test_another_step_instead(codes: Callable[..., Code]) -> None:
    history = history_of(codes("charge", "pack"), 1)
    error = error_of(codes("charge", "label"), history)
    text = str(error)
    assert text.startswith("Task 'main' of workflow 'w' does not do what it did before.")
    assert "history has step 'pack' of 'pack', asked for after 1 outcomes" in text
    assert "asks for step 'label' of 'label' at code.py:1, after 1 outcomes" in text
    assert "Keep the order of its steps" in text
    assert 'workflow.patched("name")' in text
    assert "resume it with the recorded code" in text


@pytest.mark.parametrize("codes", [sequence, plain_sequence])
def test_another_order(codes: Callable[..., Code]) -> None:
    history = history_of(codes("a", "b", "c"), 2)
    error_of(codes("b", "a", "c"), history)


@pytest.mark.parametrize("codes", [sequence, plain_sequence])
def test_a_step_more(codes: Callable[..., Code]) -> None:
    history = history_of(codes("a", "b"), 1)
    error_of(codes("a", "more", "b"), history)


@pytest.mark.parametrize("codes", [sequence, plain_sequence])
@pytest.mark.parametrize("answered", [1, 2])
def test_a_step_less(codes: Callable[..., Code], answered: int) -> None:
    history = history_of(codes("a", "b", "c"), answered)
    error_of(codes("a", "c"), history)


@pytest.mark.parametrize("codes", [sequence, plain_sequence])
def test_an_early_end(codes: Callable[..., Code]) -> None:
    history = history_of(codes("a", "b", "c"), 2)
    assert "nothing more: it has ended" in str(error_of(codes("a"), history))


def test_an_early_end_while_earlier_turns_had_other_steps() -> None:
    async def code() -> str:
        tasks = [asyncio.create_task(step(name)) for name in "ab"]
        await tasks[0]
        return str(await step("c"))

    async def changed() -> None:
        tasks = [asyncio.create_task(step(name)) for name in "ab"]
        await tasks[1]

    history = history_of(code, 1)
    assert "step 'c'" in str(error_of(changed, history))
    # It is of turn 1, and the code ended before.
    ended = History(history.steps, (), 1000.0)
    assert "'c'" in str(error_of(sequence(), History(ended.steps[2:], (), 1000.0)))


def test_a_step_more_beside_others() -> None:
    history = history_of(together("a", "b"), 0)
    error_of(together("a", "b", "c"), history)


def test_a_step_less_beside_others() -> None:
    history = history_of(together("a", "b"), 0)
    error = error_of(together("a"), history)
    assert "history has step 'b'" in str(error)
    assert "asks for no such step" in str(error)


def test_a_step_of_a_later_turn_instead() -> None:
    error = error_of(sequence("b"), history_of(sequence("a", "b"), 1))
    assert "history has step 'a'" in str(error)
    assert "asks for step 'b' of 'b' at code.py:1, after 0 outcomes" in str(error)


def test_a_step_less_in_a_plain_body_that_waits() -> None:
    error_of(plain_sequence("a"), history_of(together("a", "b"), 0))


def test_an_outcome_that_nobody_asked_for() -> None:
    history = History((), (StepOutcome("ghost", 1.0, value(1)),), 1000.0)
    assert "has an outcome of step 'ghost'" in str(error_of(sequence("a"), history))


def test_an_outcome_twice_is_an_error_of_the_host() -> None:
    coordinator = Coordinator(sequence("a", "b")).start()
    coordinator.answer("a")
    with pytest.raises(ValueError, match="came twice"):
        coordinator.running.advance([StepOutcome("a", 1.0, value(1))])


def test_another_name_under_the_same_path() -> None:
    history = History((StepRecord(Step("a", "b", "", 0, StepKind.PLAN)),), (), 1000.0)
    assert "step 'a' of 'b'" in str(error_of(sequence("a"), history))


def test_a_local_step_has_no_record_until_it_ends() -> None:
    async def code() -> list[Any]:
        return await asyncio.gather(local(dict), step("a"))

    history = history_of(code, 0)
    assert [record.step.path for record in history.steps] == ["a"]
    again = Coordinator(code, history).start()
    assert list(again.works) == ["dict"]
    assert again.finish() == [{}, "a"]


def test_a_new_step_after_the_history_is_fine() -> None:
    history = history_of(sequence("a", "b"), 1)
    assert Coordinator(sequence("a", "b", "c"), history).start().finish() == ["a", "b", "c"]


@pytest.mark.parametrize("plain", [False, True])
def test_code_that_catches_it_does_not_go_on(plain: bool) -> None:
    reached: list[str] = []

    async def stubborn() -> str:
        for name in ("b", "c", "d"):
            try:
                await step(name)
            except Exception as error:
                reached.append(type(error).__name__)
        return "went on"

    def plain_stubborn() -> str:
        for name in ("b", "c", "d"):
            try:
                step(name)
            except Exception as error:
                reached.append(type(error).__name__)
        return "went on"

    history = history_of(sequence("a"), 0)
    error_of(plain_stubborn if plain else stubborn, history)
    assert reached == ["NondeterminismError"] * 3


def test_gather_that_returns_errors_does_not_hide_it() -> None:
    async def code() -> Any:
        return await asyncio.gather(step("a"), step("new"), return_exceptions=True)

    error_of(code, history_of(sequence("a"), 0))


def test_a_plan_that_can_not_be_made_is_no_step() -> None:
    async def code() -> str:
        body = current_body.get()

        def refuse() -> None:
            raise TypeError("a lock can't be stored")

        try:
            body.ask("bad", "", StepKind.PLAN, refuse)
        except TypeError as error:
            return f"{error}, {await step('instead')}"
        return "asked"

    coordinator = Coordinator(code).start()
    assert coordinator.log == ["open instead at 0"]
    assert Coordinator(code, coordinator.history).start().finish().startswith("a lock")


# Arguments.


def with_argument(argument: int) -> Code:
    async def code() -> list[str]:
        return [await step("a", argument), await step("a", 0)]

    return code


def test_other_arguments_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    history = history_of(with_argument(1), 0)
    with caplog.at_level(logging.WARNING):
        assert Coordinator(with_argument(2), history).start().finish() == ["a", "a#2"]
    (record,) = caplog.records
    assert "step 'a' has other arguments at code.py:1" in record.getMessage()


def test_other_arguments_are_an_error_if_strict() -> None:
    history = history_of(with_argument(1), 0)
    assert "with other arguments" in str(error_of(with_argument(2), history, strict=True))


def test_equal_arguments_are_fine_if_strict(caplog: pytest.LogCaptureFixture) -> None:
    history = history_of(with_argument(1), 1)
    Coordinator(with_argument(1), history, strict=True).start().finish()
    assert not caplog.records


def test_arguments_that_can_not_be_compared_are_equal(caplog: pytest.LogCaptureFixture) -> None:
    step_ = Step("a", "a", "", 0, StepKind.PLAN)
    Coordinator(sequence("a"), History((StepRecord(step_),)), strict=True).start().finish()
    assert not caplog.records


# Patches and marks.


def patched_code(*steps_before: str) -> Code:
    async def code() -> list[str]:
        found = [await step(name) for name in steps_before]
        for _ in range(2):
            new = current_body.get().patched("label")
            found.append(await step("label" if new else "pack"))
        return found

    return code


def test_a_new_body_takes_the_patch() -> None:
    coordinator = Coordinator(patched_code()).start()
    assert coordinator.log == ["open label at 0", "mark patched:label"]
    again = Coordinator(patched_code(), coordinator.history).start()
    assert again.log == []
    assert again.finish() == ["label", "label#2"]


def test_an_old_body_keeps_to_the_old_code() -> None:
    history = history_of(sequence("pack", "pack", "pack"), 1)
    # Also where it goes on after its history.
    assert Coordinator(patched_code(), history).start().finish() == ["pack", "pack#2"]


def test_an_old_body_takes_the_patch_behind_its_history() -> None:
    history = history_of(sequence("a", "b"), 1)
    coordinator = Coordinator(patched_code("a", "b"), history).start()
    coordinator.answer("b")
    assert coordinator.log == ["open label at 2", "mark patched:label"]
    again = Coordinator(patched_code("a", "b"), coordinator.history).start()
    assert again.finish() == ["a", "b", "label", "label#2"]


def test_the_answer_to_a_patch_does_not_change_when_the_history_ends() -> None:
    async def code() -> list[bool]:
        found = []
        for _ in range(4):
            found.append(current_body.get().patched("label"))
            await step("a")
        return found

    history = history_of(sequence("a", "a"), 1)
    assert Coordinator(code, history).start().finish() == [False] * 4


def test_a_mark_is_made_once() -> None:
    made: list[int] = []

    async def child() -> int:
        await step("a")
        return int(current_body.get().mark("seed", lambda: made.append(1) or len(made)))

    async def code() -> list[int]:
        body = current_body.get()
        first = body.mark("seed", lambda: made.append(1) or len(made))
        assert body.mark("seed", lambda: 1 / 0) == first
        return [first, *await asyncio.gather(child(), child())]

    coordinator = Coordinator(code).start()
    assert "mark seed" in coordinator.log
    again = Coordinator(code, coordinator.history).start()
    assert again.finish() == [1, 2, 3]
    assert [line for line in again.log if "mark" in line] == ["mark 1/seed", "mark 2/seed"]
    assert Coordinator(code, again.history).start().result == [1, 2, 3]
    assert len(made) == 3


# Errors of steps.


def failed_step(code: Code, fails: list[str], **options: Any) -> str:
    coordinator = Coordinator(code, **options).start()
    with pytest.raises(BaseException):  # noqa: PT011
        coordinator.finish(fails=fails)
    assert coordinator.running.error is not None
    return coordinator.running.body.failed_step(coordinator.running.error)


def test_the_step_whose_error_ended_the_body() -> None:
    assert failed_step(sequence("a", "b"), ["b"]) == "b"
    assert failed_step(plain_sequence("a", "b"), ["b"]) == "b"
    assert failed_step(together("a", "b", "c"), ["b", "c"]) == "b"


def test_the_step_behind_an_error_of_the_code() -> None:
    async def with_cause() -> None:
        try:
            await step("a")
        except StepError as error:
            raise ValueError("mine") from error

    async def with_context() -> None:
        try:
            await step("a")
        except StepError:
            raise ValueError("mine")

    async def own() -> None:
        await step("a")
        raise ValueError("mine")

    assert failed_step(with_cause, ["a"]) == "a"
    assert failed_step(with_context, ["a"]) == "a"
    assert failed_step(own, []) == ""


def test_the_step_that_was_asked_for_first() -> None:
    async def code() -> None:
        try:
            await step("a")
        except StepError:
            await step("b")

    assert failed_step(code, ["a", "b"]) == "a"


def test_the_error_of_a_step_that_was_canceled_is_not_read() -> None:
    async def code() -> None:
        task = asyncio.create_task(step("a"))
        await step("b")
        task.cancel()
        await step("c")

    coordinator = Coordinator(code).start()
    coordinator.answer("b")
    coordinator.running.body.decode = lambda _: pytest.fail("it was read")
    coordinator.answer("a", failure())
    assert not coordinator.running.body.errors


@pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11")
def test_the_step_inside_an_exception_group() -> None:
    async def code() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(step(name))

    assert failed_step(code, ["b"]) == "b"


def test_chains_of_errors_may_be_cycles() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert make(sequence("a")).body.failed_step(first) == ""


# Outcomes that can't be read.


@pytest.mark.parametrize("codes", [sequence, plain_sequence])
def test_an_outcome_that_can_not_be_read_now_is_not_taken(codes: Callable[..., Code]) -> None:
    coordinator = Coordinator(codes("a", "b")).start()
    body, decode = coordinator.running.body, coordinator.running.body.decode

    def away(_: Any) -> Any:
        raise UnreadableOutcome(OSError("storage is away"))

    body.decode = away
    outcomes = [StepOutcome("a", 1.0, value(1)), StepOutcome("b", 1.0, failure())]
    with pytest.raises(UnreadableOutcome):
        coordinator.running.advance(outcomes)
    assert body.turn == 0
    assert not coordinator.running.ended
    body.decode = decode
    coordinator.running.advance(outcomes)
    assert body.turn == 2
    assert isinstance(coordinator.running.error, StepError)


def test_a_mark_that_can_not_be_read_now() -> None:
    def away(_: Any) -> Any:
        raise UnreadableOutcome(OSError("storage is away"))

    mark = Step("seed", "seed", "", 0, StepKind.MARK)
    history = History((StepRecord(mark, mark=value(1)),))
    with pytest.raises(UnreadableOutcome):
        Body(history, "w", decode=away)


def test_history_begins_where_nothing_is_recorded() -> None:
    assert run(sequence("a")) == ["a"]
