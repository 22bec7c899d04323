"""Durable functions in an `Environment`: without Ray, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

import ray_workflows as workflow
from ray_workflows.testing import Environment, crash_everywhere

DAY = 86_400.0


@ray.remote
def charge(order: str, amount: int = 1) -> str:
    return f"{order}:{amount}"


@ray.remote
def refuse(order: str) -> None:
    raise ConnectionError(f"no truck for {order}")


def double(value: int) -> int:
    return 2 * value


async def triple(value: int) -> int:
    await asyncio.sleep(0)
    return 3 * value


@workflow.durable
async def months(order: str) -> Any:
    receipt = await workflow.step(charge, order)
    await workflow.sleep(30 * DAY)
    began = workflow.now()
    await asyncio.sleep(2 * DAY)
    return receipt, (workflow.now() - began).days


@workflow.durable
async def branches(order: str) -> Any:
    async def branch(number: int) -> Any:
        first = await workflow.step(charge, order, number)
        return first, await workflow.step(double, number), await workflow.step(triple, number)

    return await asyncio.gather(*[branch(number) for number in range(3)])


@workflow.durable
def plain(order: str) -> Any:
    late = workflow.step_async(charge, order, 7)
    workflow.sleep(DAY)
    return workflow.step(double, 2), late.result()


@workflow.durable
async def raced(order: str) -> Any:
    try:
        await asyncio.wait_for(workflow.sleep(2 * DAY), DAY)
    except asyncio.TimeoutError:
        return await workflow.step(charge, order, 3)


@workflow.durable
async def seeded(order: str) -> Any:
    drawn = workflow.random().random()
    name = workflow.uuid4()
    receipt = await workflow.step(charge, order)
    # The same in every run, also of a test.
    return drawn != workflow.random().random(), str(name), receipt


@workflow.durable
async def undone(order: str) -> Any:
    try:
        await workflow.step(refuse, order)
    except ConnectionError as error:
        return await workflow.step(double, 4), str(error).splitlines()[-1]


@workflow.durable
async def around(order: str) -> Any:
    return await asyncio.gather(workflow.step(months, order), workflow.step(undone.bind(order)))


@workflow.durable
async def counting(left: int) -> Any:
    found = await workflow.step(double, left)
    if left:
        return counting.bind(left - 1)
    return found


@ray.remote
def last(value: Any) -> Any:
    return "last", value


BODIES = {
    "months": (months.bind("a"), ("a:1", 2)),
    "branches": (branches.bind("a"), [(f"a:{n}", 2 * n, 3 * n) for n in range(3)]),
    "plain": (plain.bind("a"), (4, "a:7")),
    "raced": (raced.bind("a"), "a:3"),
    "seeded": (seeded.bind("a"), (True, "d78d8483-0b0f-425f-afb2-8615aa55cb67", "a:1")),
    "undone": (undone.bind("a"), (8, "ConnectionError: no truck for a")),
    "around": (around.bind("a"), [("a:1", 2), (8, "ConnectionError: no truck for a")]),
    "a tail": (counting.bind(2), 0),
    "in a DAG": (last.bind(undone.bind("a")), ("last", (8, "ConnectionError: no truck for a"))),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_crash_anywhere_changes_nothing(name: str) -> None:
    body, expected = BODIES[name]
    report = crash_everywhere(body)
    assert report.result == expected
    # Each ran with a crash before and after each of its commits.
    assert len(report.points) >= 8


def steps_run(env: Environment) -> list[str]:
    """The steps that ran, by their paths."""
    return [each.task_id.partition("/")[2] for each in env.executions if "/" in each.task_id]


def test_no_step_that_is_committed_runs_again() -> None:
    number = 0
    while True:
        number += 1
        with Environment() as env:
            env.crash_at_commit(number, "after")
            env.run(branches.bind("a"))
            ran = steps_run(env)
            # Those that were not committed may run again: at most the three that run beside.
            assert len(ran) - len(set(ran)) <= 3, (number, ran)
            assert env.crashes or number > len(env.commits)
            if not env.crashes:
                assert len(ran) == len(set(ran)) == 9
                return


def test_a_crash_at_a_local_step() -> None:
    with Environment() as env:
        env.crash_at("tests.unit.testing.test_durable.plain/double", "before")
        assert env.run(plain.bind("a"), workflow_id="w") == (4, "a:7")
        assert steps_run(env).count("double") == 2


def test_what_waits_says_for_what_and_goes_on_after_a_signal() -> None:
    @workflow.durable
    async def asks() -> Any:
        return await workflow.wait_for_signal("go"), await workflow.step(double, 1)

    with Environment() as env:
        started = env.run_async(asks.bind(), workflow_id="w")
        env.advance(DAY)
        (body, wait) = env.get_tasks("w", attempts=True)
        assert body.status == "WAITING"
        assert body.reason == f"it waits for '{wait.task_id}'"
        assert [each.outcome for each in body.history] == ["suspended"]
        assert wait.reason == "it waits for the signal 'go'"
        env.restart()
        env.signal("w", "go", 5)
        assert started.result() == (5, 2)


def test_mocks_of_steps_and_of_bodies() -> None:
    with Environment() as env:
        env.mock(charge, returns="mocked")
        env.mock(double, raises=ValueError("no"))
        with pytest.raises(workflow.WorkflowExecutionError, match="no"):
            env.run(plain.bind("a"))
    with Environment() as env:
        env.mock(months, returns="months")
        env.mock(undone, returns="undone")
        assert env.run(around.bind("a")) == ["months", "undone"]


def test_a_resumed_function_asks_again_for_the_step_that_failed() -> None:
    with Environment() as env:
        env.mock(refuse, returns="shipped")
        env.mock(refuse, raises=ConnectionError("not yet"), times=1)

        @workflow.durable
        async def code() -> Any:
            return await workflow.step(charge, "a"), await workflow.step(refuse, "a")

        with pytest.raises(workflow.WorkflowExecutionError, match="not yet"):
            env.run(code.bind(), workflow_id="w")
        env.resume("w")
        assert env.get_output("w") == ("a:1", "shipped")
        # Both are tasks of the workflow, so the second has another id.
        assert steps_run(env) == ["charge", "refuse", "refuse_1"]


def test_a_function_that_went_on_after_the_error_is_not_taken_back() -> None:
    @workflow.durable
    async def code() -> Any:
        try:
            return await workflow.step(refuse, "a")
        finally:
            await workflow.step(double, 1)  # the refund

    with Environment() as env:
        with pytest.raises(workflow.WorkflowExecutionError, match="no truck"):
            env.run(code.bind(), workflow_id="w")
        env.resume("w")
        assert env.get_status("w") == "FAILED"
        assert steps_run(env) == ["refuse", "double"]


def test_a_loop_of_continuations_keeps_no_history() -> None:
    with Environment() as env:
        assert env.run(counting.bind(50), workflow_id="w") == 0
        assert len(env.executions) >= 100


# -- errors of local steps -----------------------------------------------------------------


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_a_local_step_that_ends_its_process_fails_as_a_task_would(is_coroutine: bool) -> None:
    def leaves() -> None:
        raise SystemExit(3)

    async def leaves_later() -> None:
        raise SystemExit(3)

    @workflow.durable
    async def body() -> Any:
        try:
            await workflow.step(leaves_later if is_coroutine else leaves)
        except ray.exceptions.WorkerCrashedError as error:
            return str(error)

    with Environment() as env:
        assert "worker died" in env.run(body.bind(), workflow_id="w")
        body_task, _ = env.get_tasks("w")
        assert body_task.attempts == 1


def test_an_error_of_a_storage_is_no_outcome_of_a_local_step() -> None:
    tries: list[int] = []

    def look() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise workflow.StorageUnavailableError("it is away")
        return "there"

    @workflow.durable
    async def body() -> Any:
        return await workflow.step(look)

    with Environment() as env:
        assert env.run(body.bind()) == "there"


def test_the_traceback_of_a_local_step_begins_in_its_code() -> None:
    def fails() -> None:
        raise ValueError("no")

    async def fails_later() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    @workflow.durable
    async def body(later: bool) -> Any:
        try:
            await workflow.step(fails_later if later else fails)
        except ValueError as error:
            return str(error)

    with Environment() as env:
        for later in (False, True):
            head, *frames = env.run(body.bind(later)).splitlines()
            assert "step 'fails" in head
            assert __file__ in frames[0]


def test_its_kind_is_in_the_catalog() -> None:
    with Environment() as env:
        env.run(undone.bind("a"), workflow_id="a function")
        env.run(charge.bind("a"), workflow_id="a DAG")
        found = [each.workflow_id for each in workflow.list_workflows("kind=function")]
        assert found == ["a function"]


def test_waits_are_coroutines_for_asyncio() -> None:
    @workflow.durable
    async def code() -> Any:
        later = asyncio.create_task(workflow.wait_for_signal("go"))
        first = await asyncio.wait_for(workflow.sleep(5), timeout=10)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(workflow.sleep(50), timeout=10)
        found = await asyncio.gather(workflow.sleep(1), workflow.step(double, 4), later)
        # They are DAG nodes too.
        return first, found, await workflow.step(charge.bind(workflow.wait_for_signal("name")))

    def scenario(env: Environment) -> Any:
        started = env.run_async(code.bind())
        env.signal(started.workflow_id, "go", 1)
        env.signal(started.workflow_id, "name", "Ada")
        return started.result()

    assert crash_everywhere(scenario).result == (None, [None, 8, 1], "Ada:1")


def test_a_step_gets_copies_of_its_arguments() -> None:
    def append(to: list[int]) -> None:
        to.append(5)

    @workflow.durable
    async def code() -> Any:
        values = [1]
        await workflow.step(append, values)
        seen = await workflow.step(sorted, values)
        await workflow.sleep(DAY)
        return values, seen

    with Environment() as env:
        assert env.run(code.bind()) == ([1], [1])


def test_what_can_not_be_copied_is_given_as_it_is() -> None:
    @workflow.durable
    async def code() -> Any:
        numbers = (number for number in range(3))
        return await workflow.step(lambda given: given is numbers, numbers)

    with Environment() as env:
        assert env.run(code.bind())


def test_a_timeout_of_a_durable_function_is_refused() -> None:
    with Environment() as env, pytest.raises(ValueError, match=r"asyncio.timeout in it"):
        env.run(months.options(**workflow.options(timeout=5)).bind("a"))


def test_a_step_that_is_never_awaited_is_stopped_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @workflow.durable
    async def forgets() -> str:
        workflow.step(charge, "a")
        asyncio.create_task(workflow.step(charge, "b")).cancel()
        return "done"

    with Environment() as env:
        assert env.run(forgets.bind()) == "done"
    (record,) = caplog.records
    assert "step 'charge'" in record.getMessage()
    assert "test_durable.py" in record.getMessage()


def test_a_handle_is_no_argument() -> None:
    @workflow.durable
    def passes() -> Any:
        return workflow.step(charge, workflow.step_async(charge, "a"))

    with (
        Environment() as env,
        pytest.raises(workflow.WorkflowExecutionError, match=r"call result\(\) first"),
    ):
        env.run(passes.bind())


def test_a_long_loop_of_waits_is_not_replayed_at_each() -> None:
    @workflow.durable
    async def year() -> int:
        for _ in range(365):
            await workflow.sleep(DAY)
        return workflow.now().year

    with Environment() as env:
        env.run(year.bind(), workflow_id="w")
        (history, *_) = [each.history for each in env.get_tasks("w", attempts=True)]
        assert 50 < len(history) < 150


def test_what_is_logged_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    @workflow.durable
    async def logs() -> None:
        workflow.logger.info("one")
        await workflow.sleep(DAY)
        workflow.logger.info("two")

    with Environment() as env:
        env.run(logs.bind())
    assert [each.message for each in caplog.records] == ["one", "two"]


def test_a_patch_in_a_loop_that_has_begun_has_a_name_for_each_turn() -> None:
    @workflow.durable
    async def loop() -> list[bool]:
        found = []
        for turn in range(3):
            found.append(workflow.patched(f"turn {turn}"))
            await workflow.sleep(DAY)
        return found

    assert crash_everywhere(loop.bind()).result == [True, True, True]
