"""Forks of workflows with durable functions."""

from __future__ import annotations

import asyncio
import random

import pytest

from ray_workflows._engine.fork import fork_history
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.status import WorkflowStatus
from tests.unit.body_driver import DURABLE, BodyDriver, Codes, StepError, local, mark, step
from tests.unit.plans import plan


def fork(origin: BodyDriver, from_task: str, codes: Codes | None = None) -> BodyDriver:
    history = fork_history(origin.journal, from_task)
    assert history is not None
    return BodyDriver(
        origin.journal[0].plan, codes or origin.codes, history=tuple(history), incarnation="i2"
    )


def asked(driver: BodyDriver) -> list[str]:
    """The paths that bodies have asked for, in order."""
    return [
        each.path
        for event in driver.journal
        if isinstance(event, ev.StepsAsked)
        for each in event.opened
    ]


def steps_of(driver: BodyDriver) -> list[ev.Event]:
    return [each for each in driver.journal if isinstance(each, (ev.StepsAsked, ev.StepsEnded))]


async def three() -> bytes:
    one = await step("a")
    two = await step("b")
    return one + two + await step("c")


def three_steps(*done: str) -> BodyDriver:
    return BodyDriver(plan(("f", (), DURABLE)), {"f": three}).finish(*done)


def test_a_body_goes_back_to_the_step_that_runs_again() -> None:
    origin = three_steps("f/a", "f/b", "f/c")
    assert origin.state.output.value.data == b"f/af/bf/c"
    driver = fork(origin, "f/b")
    assert driver.running == ["f/b"]
    assert asked(driver) == ["a", "b"]
    driver.act(driver.succeed, "f/b", b"new")
    driver.finish("f/c")
    assert driver.state.output.value.data == b"f/anewf/c"


@pytest.mark.parametrize(("from_task", "kept"), [("f/a", 0), ("f/b", 1), ("f/c", 2)])
def test_from_each_step(from_task: str, kept: int) -> None:
    driver = fork(three_steps("f/a", "f/b", "f/c"), from_task)
    assert driver.running == [from_task]
    assert len(driver.state.bodies[0].outcomes) == kept
    for task_id in ["f/a", "f/b", "f/c"][kept:]:
        driver.finish(task_id)
    assert driver.state.output.value.data == b"f/af/bf/c"


def test_from_the_body_itself_it_begins_anew() -> None:
    driver = fork(three_steps("f/a", "f/b"), "f")
    assert driver.running == ["f/a"]


def test_of_a_fork() -> None:
    first = fork(three_steps("f/a", "f/b", "f/c"), "f/b")
    first.finish("f/b", "f/c")
    second = fork(first, "f/c")
    assert second.running == ["f/c"]
    assert asked(fork(first, "f/a")) == ["a"]


def test_a_body_that_need_not_run_again_keeps_its_result_alone() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE), ("x", (0,))), {"f": three})
    origin.finish("f/a", "f/b", "f/c", "x")
    driver = fork(origin, "x")
    assert driver.running == ["x"]
    assert steps_of(driver) == []
    assert driver.state.tasks[0].outcome.value.data == b"f/af/bf/c"


def test_a_body_that_has_not_ended_begins_anew() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE), ("y", ()), ("x", (0, 1))), {"f": three})
    origin.finish("f/a", "y")
    driver = fork(origin, "y")
    assert driver.running == ["f/a", "y"]
    assert asked(driver) == ["a"]


def test_a_body_downstream_begins_anew() -> None:
    origin = BodyDriver(plan(("x", ()), ("f", (0,), DURABLE)), {"f": three})
    origin.finish("x", "f/a", "f/b", "f/c")
    driver = fork(origin, "x")
    assert driver.running == ["x"]
    assert steps_of(driver) == []
    driver.finish("x", "f/a", "f/b", "f/c")
    assert driver.state.status is WorkflowStatus.SUCCESSFUL


def test_what_is_downstream_of_a_body_runs_again() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE), ("x", (0,))), {"f": three})
    origin.finish("f/a", "f/b", "f/c", "x")
    driver = fork(origin, "f/c").finish("f/c")
    assert driver.running == ["x"]


async def at_once() -> bytes:
    found = await asyncio.gather(step("a"), step("b"), step("c"))
    return b"".join(found) + await step("d")


def test_what_was_asked_for_before_is_kept_and_what_has_no_outcome_is_asked_for_again() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE)), {"f": at_once}).finish("f/a", "f/c")
    driver = fork(origin, "f/a")
    # Step c has ended later than a, but did not depend on it.
    assert driver.running == ["f/a", "f/b"]
    driver.finish("f/b", "f/a", "f/d")
    assert driver.state.output.value.data == b"f/af/bf/cf/d"


def test_from_a_step_that_still_runs() -> None:
    origin = three_steps("f/a")
    driver = fork(origin, "f/b")
    assert driver.running == ["f/b"]
    driver.finish("f/b", "f/c")
    assert driver.state.output.value.data == b"f/af/bf/c"


async def race() -> bytes:
    slow = asyncio.create_task(step("slow"))
    await step("fast")
    slow.cancel()
    await step("then")
    return b"end"


def test_a_canceled_step_races_again_if_the_fork_starts_before_or_in_it() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE)), {"f": race}).finish("f/fast", "f/then")
    assert origin.state.status is WorkflowStatus.SUCCESSFUL
    for from_task in ("f/fast", "f/slow"):
        driver = fork(origin, from_task)
        assert driver.running == ["f/fast", "f/slow"]
        driver.finish("f/fast", "f/then")
        assert driver.state.status is WorkflowStatus.SUCCESSFUL
    later = fork(origin, "f/then")
    assert later.running == ["f/then"]
    later.finish("f/then")
    assert later.state.status is WorkflowStatus.SUCCESSFUL


def test_a_step_that_was_canceled_after_its_outcome() -> None:
    """The outcome came before the body had canceled the step: the body ignored it."""
    origin = BodyDriver(plan(("f", (), DURABLE)), {"f": race})
    origin.succeed("f/fast")
    origin.act(origin.succeed, "f/slow")
    origin.finish("f/then")
    assert origin.state.status is WorkflowStatus.SUCCESSFUL
    later = fork(origin, "f/then")
    assert later.running == ["f/then"]
    assert later.state.bodies[0].steps["slow"].canceled == 1
    # From here the body takes it first.
    before = fork(origin, "f/fast")
    assert before.running == ["f/fast"]
    assert [each.path for each in before.state.bodies[0].outcomes] == ["slow"]
    for driver in (later, before):
        driver.finish(*driver.running)
        driver.finish(*driver.running)
        assert driver.state.status is WorkflowStatus.SUCCESSFUL


async def cancels_at_once() -> bytes:
    call = step("never")
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    task.cancel()
    return await step("a") + await step("b")


def test_a_step_that_was_canceled_at_once() -> None:
    """It was asked for and canceled in one turn, so the state never had a task of it."""
    origin = BodyDriver(plan(("f", (), DURABLE)), {"f": cancels_at_once}).finish("f/a", "f/b")
    assert origin.state.status is WorkflowStatus.SUCCESSFUL
    driver = fork(origin, "f/b")
    assert driver.running == ["f/b"]
    driver.finish("f/b")
    assert driver.state.status is WorkflowStatus.SUCCESSFUL


async def with_local() -> bytes:
    one = await local("one", b"1")
    two = await step("two")
    three = await local("three", mark("seed", b"s"))
    return one + two + three + await step("four")


def test_local_steps_and_marks() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE)), {"f": with_local}).finish("f/two", "f/four")
    assert origin.state.output.value.data == b"1f/twosf/four"
    driver = fork(origin, "f/three")
    # It ran again at once.
    assert driver.running == ["f/four"]
    ends = [each for each in driver.journal if isinstance(each, ev.StepsEnded)]
    assert [each.path for event in ends for each in [e.step for e in event.ended]] == [
        "one",
        "three",
    ]
    assert fork(origin, "f/one").running == ["f/two"]
    last = fork(origin, "f/four")
    assert set(last.state.bodies[0].steps) == {
        "one",
        "two",
        "three",
        "seed",
        "four",
    }
    assert fork_history(origin.journal, "f/seed") is None


async def retried() -> bytes:
    one = await step("a")
    return one + await step("b")


def test_a_step_that_was_asked_for_again_after_an_error() -> None:
    options = {**DURABLE, "retry_exceptions": True}
    origin = BodyDriver(plan(("f", (), options)), {"f": retried}).finish("f/a")
    origin.act(origin.fail, "f/b")
    assert origin.running == ["f/b_1"]
    origin.finish("f/b_1")
    for from_task in ("f/b", "f/b_1"):
        driver = fork(origin, from_task)
        assert driver.running == ["f/b"]
        driver.finish("f/b")
        assert driver.state.output.value.data == b"f/af/b"
    anew = fork(origin, "f/a")
    assert anew.running == ["f/a"]


def test_errors_of_a_body_that_keeps_its_result() -> None:
    """They name steps that are not in the fork."""
    for options in ({"retry_exceptions": True, "max_retries": 1}, {"catch_exceptions": True}):
        origin = BodyDriver(plan(("f", (), {**DURABLE, **options}), ("x", (0,))), {"f": retried})
        origin.finish("f/a")
        origin.act(origin.fail, "f/b")
        if origin.running == ["f/b_1"]:
            origin.finish("f/b_1")
        origin.finish("x")
        driver = fork(origin, "x")
        assert driver.running == ["x"]
        assert steps_of(driver) == []


def test_of_a_failed_workflow() -> None:
    origin = three_steps("f/a")
    origin.act(origin.fail, "f/b")
    assert origin.state.status is WorkflowStatus.FAILED
    driver = fork(origin, "f/b")
    assert driver.running == ["f/b"]
    driver.finish("f/b", "f/c")
    assert driver.state.output.value.data == b"f/af/bf/c"


async def catches() -> bytes:
    try:
        await step("a")
    except StepError:
        return b"caught " + await step("b")
    return b"no error " + await step("b")


def test_the_error_of_a_step_is_kept() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE)), {"f": catches})
    origin.act(origin.fail, "f/a")
    origin.finish("f/b")
    assert origin.state.output.value.data == b"caught f/b"
    assert fork(origin, "f/b").finish("f/b").state.output.value.data == b"caught f/b"
    assert fork(origin, "f/a").finish("f/a", "f/b").state.output.value.data == b"no error f/b"


DIAMOND = plan(("x", ()), ("y", (0,)), ("z", (0,)), ("end", (1, 2)))


async def with_plan() -> bytes:
    one = await step("a")
    return one + await step("p", DIAMOND) + await step("b")


def test_from_within_the_plan_of_a_step() -> None:
    """It goes on with what the other tasks of the plan have given; from its output, the step is
    asked for again."""
    origin = BodyDriver(plan(("f", (), DURABLE)), {"f": with_plan})
    origin.finish("f/a", "x", "y", "z", "f/p", "f/b")
    assert origin.state.status is WorkflowStatus.SUCCESSFUL
    inside = fork(origin, "y")
    assert inside.running == ["y"]
    assert asked(inside) == ["a", "p"]
    inside.finish("y", "f/p", "f/b")
    assert inside.state.status is WorkflowStatus.SUCCESSFUL
    whole = fork(origin, "f/p")
    assert whole.running == ["x"]
    after = fork(origin, "f/b")
    assert after.running == ["f/b"]
    assert fork(origin, "f/a").running == ["f/a"]


def test_from_within_a_continuation_of_a_step() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE)), {"f": three}).finish("f/a")
    origin.act(origin.go_on, "f/b", plan(("u", ()), ("v", (0,))))
    origin.finish("u", "v", "f/c")
    driver = fork(origin, "v")
    assert driver.running == ["v"]
    driver.finish("v", "f/c")
    assert driver.state.status is WorkflowStatus.SUCCESSFUL
    assert fork(origin, "f/b").running == ["f/b"]
    assert fork(origin, "f/c").running == ["f/c"]


async def outer() -> bytes:
    one = await step("a")
    return one + await step("inner", **DURABLE) + await step("b")


async def inner() -> bytes:
    return await step("c") + await step("d")


NESTED: Codes = {"f": outer, "inner": inner}


def test_the_bodies_around_a_step_go_back_too() -> None:
    origin = BodyDriver(plan(("f", (), DURABLE)), NESTED)
    origin.finish("f/a", "f/inner/c", "f/inner/d", "f/b")
    driver = fork(origin, "f/inner/d")
    assert driver.running == ["f/inner/d"]
    assert asked(driver) == ["a", "inner", "c", "d"]
    driver.finish("f/inner/d", "f/b")
    assert driver.state.output.value.data == b"f/af/inner/cf/inner/df/b"
    # From a step of the outer one, the inner one keeps its result alone.
    after = fork(origin, "f/b")
    assert after.running == ["f/b"]
    assert asked(after) == ["a", "inner", "b"]
    assert fork(origin, "f/inner").running == ["f/inner/c"]
    assert fork(origin, "f/a").running == ["f/a"]


@pytest.mark.parametrize("seed", range(150))
def test_of_any_history_from_any_task(seed: int) -> None:
    """Whatever happened, bodies of a fork find what they did, and it runs to its end."""
    rng = random.Random(seed)
    codes: Codes = {name: random_code(rng.random(), depth) for depth, name in enumerate("fgh")}

    def act(driver: BodyDriver, trouble: bool) -> None:
        if driver.state.status in ("FAILED", "CANCELED"):
            driver.act(driver.resume)
        elif driver.state.timers and (not driver.running or rng.random() < 0.5):
            driver.now += 5
            driver.act(driver.send, msg.Wake())
        else:
            task_id = rng.choice(driver.running)
            action = rng.random() if trouble else 1
            if action < 0.15:
                driver.act(driver.fail, task_id)
            elif action < 0.25 and "/" in task_id:
                driver.act(driver.go_on, task_id, plan(("u", ()), ("v", (0,))))
            elif action < 0.3:
                driver.act(driver.claim, f"h{rng.random()}")
            else:
                driver.finish(task_id)

    body = {**DURABLE, "retry_exceptions": rng.random() < 0.5}
    origin = BodyDriver(plan(("x", ()), ("f", (0,), body), ("y", (1,))), codes)
    for _ in range(rng.randint(0, 60)):
        if origin.state.status == "SUCCESSFUL":
            break
        act(origin, trouble=True)
    ids = [i for event in origin.journal for i in getattr(event, "task_ids", ())]
    driver = fork(origin, rng.choice(ids))
    for _ in range(400):
        if driver.state.status == "SUCCESSFUL":
            break
        act(driver, trouble=False)
    assert driver.state.status == "SUCCESSFUL"


def random_code(seed: float, depth: int):  # type: ignore[no-untyped-def]
    """A durable function that does the same each time, given the same outcomes."""

    async def code() -> bytes:
        rng, found = random.Random(seed), b""
        for _ in range(rng.randint(1, 4)):
            kind = rng.randint(0, 6)
            try:
                if kind == 0:
                    found += await local("l")
                elif kind == 1:
                    found += b"".join(await asyncio.gather(*(step(name) for name in "abc")))
                elif kind == 2:
                    await step("t", kind="timer", duration=5.0)
                elif kind == 3:
                    slow = asyncio.create_task(step("slow"))
                    await step("fast")
                    slow.cancel()
                elif kind == 4 and depth < 2:
                    found += await step("fgh"[depth + 1], **DURABLE)
                elif kind == 5:
                    found += await step("p", DIAMOND)
                else:
                    found += mark(f"m{rng.random()}", b"m")
                    found += await step("a")
            except StepError:
                if rng.random() < 0.5:
                    raise
        return found

    return code
