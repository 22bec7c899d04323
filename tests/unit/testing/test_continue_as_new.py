"""continue_as_new: a durable function that begins anew."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

import ray_workflows as workflow
from ray_workflows.testing import Environment, crash_everywhere


@ray.remote
def add(one: int, two: int) -> int:
    return one + two


def double(value: int) -> int:
    return 2 * value


@workflow.durable
async def count(left: int, total: int = 0) -> int:
    total = await workflow.step(add, total, left)
    total += await workflow.step(double, 1)
    if left:
        workflow.continue_as_new(left - 1, total=total)
    return total


@workflow.durable
def plain(left: int, total: int = 0) -> int:
    total = workflow.step(add, total, left)
    if left:
        try:
            workflow.continue_as_new(left - 1, total=total)
        except Exception:
            return -1
    return total


def ids(env: Environment, workflow_id: str) -> list[str]:
    return [task.task_id.removeprefix(f"{__name__}.") for task in env.get_tasks(workflow_id)]


def test_a_loop_begins_anew_each_time() -> None:
    with Environment() as env:
        assert env.run(count.bind(3), workflow_id="w") == 6 + 4 * 2
        expected = []
        for body in ("count", "count_1", "count_2", "count_3"):
            expected += [body, f"{body}/add", f"{body}/double"]
        assert sorted(ids(env, "w")) == sorted(expected)
        assert env.run(plain.bind(3)) == 6


def test_a_loop_of_many_turns() -> None:
    with Environment() as env:
        assert env.run(count.bind(200), workflow_id="w") == 200 * 201 // 2 + 201 * 2


def test_options_and_names_stay() -> None:
    options = workflow.options(task_id="loop", metadata={"team": "blue"}, catch_exceptions=True)
    with Environment() as env:
        body = count.options(max_retries=7, **options).bind(2)
        assert env.run(body, workflow_id="w") == (9, None)
        bodies = [task for task in env.get_tasks("w") if "/" not in task.task_id]
        assert [task.task_id for task in bodies] == ["loop", "loop_1", "loop_2"]
        found = [workflow.get_metadata("w", task.task_id) for task in bodies]
        assert [each["user_metadata"] for each in found] == [{"team": "blue"}] * 3
        assert [each["task_options"]["max_retries"] for each in found] == [7] * 3


def test_as_a_step_its_last_result_is_that_of_the_step() -> None:
    @workflow.durable
    async def outer() -> Any:
        return await workflow.step(count, 2), await workflow.step(add, 1, 1)

    with Environment() as env:
        assert env.run(outer.bind()) == (9, 2)


def test_only_the_main_coroutine_may() -> None:
    @workflow.durable
    async def gathers() -> Any:
        async def branch() -> None:
            workflow.continue_as_new()

        return await asyncio.gather(branch())

    with (
        Environment() as env,
        pytest.raises(workflow.WorkflowExecutionError, match="only the main coroutine"),
    ):
        env.run(gathers.bind())


def test_what_still_runs_is_stopped() -> None:
    @workflow.durable
    async def leaves(turn: int) -> Any:
        if not turn:
            sleeps = asyncio.create_task(asyncio.sleep(1e9))
            await workflow.step(double, 1)
            assert not sleeps.done()
            workflow.continue_as_new(1)
        return "done"

    with Environment() as env:
        began = env.now
        assert env.run(leaves.bind(0)) == "done"
        assert env.now - began < 1e6


@pytest.mark.skipif(not hasattr(asyncio, "TaskGroup"), reason="from Python 3.11")
def test_within_a_task_group() -> None:
    @workflow.durable
    async def grouped(turn: int) -> Any:
        if not turn:
            async with asyncio.TaskGroup() as group:
                group.create_task(workflow.step(double, 1))
                workflow.continue_as_new(1)
        return "done"

    with Environment() as env:
        assert env.run(grouped.bind(0)) == "done"


def test_bad_arguments_are_errors_at_the_call() -> None:
    @workflow.durable
    async def wrong(how: str) -> Any:
        try:
            if how == "number":
                workflow.continue_as_new("a", "b")
            elif how == "node":
                workflow.continue_as_new(add.bind(1, 2))
            else:
                workflow.continue_as_new(each for each in ())
        except TypeError as error:
            return str(error)

    with Environment() as env:
        assert "too many positional arguments" in env.run(wrong.bind("number"))
        assert "DAG nodes" in env.run(wrong.bind("node"))
        assert "generator" in env.run(wrong.bind("generator"))
    with pytest.raises(RuntimeError, match="no"):
        workflow.continue_as_new()


def test_over_any_crash() -> None:
    report = crash_everywhere(count.bind(2))
    assert report.result == 9
    large = crash_everywhere(grows.bind(bytes(100_000)))
    assert large.result == 300_000


@workflow.durable
async def grows(data: bytes) -> int:
    if len(data) < 300_000:
        workflow.continue_as_new(data + bytes(100_000))
    return await workflow.step(len, data)
