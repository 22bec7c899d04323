"""Workflows that durable functions start: they begin when the call is durable, once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import ray

import ray_workflows as workflow
from ray_workflows.testing import Environment, crash_everywhere


@ray.remote
def ship(order: str) -> str:
    return f"{order} is shipped"


@ray.remote
def add(one: int, two: int) -> int:
    return one + two


def starts_two(order: str) -> list[str]:
    return [workflow.start(ship.bind(order), workflow_id=f"{order}-{n}") for n in range(2)]


def fails_first(order: str) -> str:
    workflow.start(ship.bind(order), workflow_id="never")
    raise ValueError(order)


@workflow.durable
async def sells(order: str) -> Any:
    first = workflow.start(ship.bind(order), workflow_id=f"ship-{order}", tags={"order": order})
    approver = await workflow.wait_for_signal("approved")
    second = workflow.start(ship.bind(f"{order} again"))
    third = await workflow.step(starts_two, order)
    return first, second, third, approver


def children(env: Environment, parent: str) -> list[str]:
    return sorted(found.workflow_id for found in workflow.list_workflows(f"parent={parent}"))


def test_a_child_begins_while_its_parent_waits() -> None:
    with Environment() as env:
        started = env.run_async(sells.bind("A7"), workflow_id="w")
        env.settle()
        assert env.get_status("w") == "RUNNING"
        assert env.wait("ship-A7") == "A7 is shipped"
        # The place is given back, and the body runs again.
        env.advance(10.0)
        env.signal("w", "approved", "Ada")
        first, second, third, approver = started.result()
        assert (first, third, approver) == ("ship-A7", ["A7-0", "A7-1"], "Ada")
        assert env.wait(second) == "A7 again is shipped"
        assert children(env, "w") == sorted([first, second, *third])
        body = next(task for task in env.get_tasks("w") if "/" not in task.task_id)
        assert [each.status for each in body.starts] == [workflow.StartStatus.STARTED] * 4


def test_over_any_crash_it_is_started_once() -> None:
    def scenario(env: Environment) -> Any:
        started = env.run_async(sells.bind("A7"), workflow_id="w")
        env.signal("w", "approved", "Ada")
        first, _, third, _ = started.result()
        found = children(env, "w")
        return first, third, len(found), sorted(env.wait(child) for child in found)

    report = crash_everywhere(scenario)
    assert report.result[2] == 4


def test_ids_that_can_not_be() -> None:
    @workflow.durable
    async def wrong() -> list[str]:
        found = []
        for child in ("one", "one", "w"):
            try:
                found.append(workflow.start(ship.bind(child), workflow_id=child))
            except ValueError as error:
                found.append(str(error)[:6].strip())
            await asyncio.sleep(1)
            # It runs again.
        return found

    with Environment() as env:
        assert env.run(wrong.bind(), workflow_id="w") == ["one", "'one'", "'w' is"]
        assert children(env, "w") == ["one"]


def test_a_local_step_that_fails_starts_nothing() -> None:
    @workflow.durable
    async def tries() -> bool:
        try:
            await workflow.step(fails_first, "A7")
        except ValueError:
            return True
        return False

    with Environment() as env:
        assert env.run(tries.bind(), workflow_id="w")
        assert children(env, "w") == []


def test_in_asyncio_tasks_and_plain_functions() -> None:
    @workflow.durable
    async def branches() -> list[str]:
        async def branch(number: int) -> str:
            await workflow.step(add, number, 1)
            return workflow.start(ship.bind(str(number)))

        return await asyncio.gather(*(branch(number) for number in range(3)))

    @workflow.durable
    def plain() -> str:
        child = workflow.start(ship.bind("B1"))
        workflow.sleep(100.0)
        return child

    with Environment() as env:
        started = env.run(branches.bind(), workflow_id="w")
        assert len(set(started)) == 3
        assert [env.wait(child) for child in started] == [f"{n} is shipped" for n in range(3)]
        assert env.wait(env.run(plain.bind())) == "B1 is shipped"


def test_code_that_starts_another_workflow_than_before_is_refused(tmp_path: Path) -> None:
    @workflow.durable
    async def body(path: str) -> None:
        if os.path.exists(path):
            workflow.start(ship.bind("C1"))
        await asyncio.sleep(100.0)

    with Environment() as env:
        started = env.run_async(body.bind(str(tmp_path / "changed")), workflow_id="w")
        env.settle()
        (tmp_path / "changed").touch()
        with pytest.raises(workflow.WorkflowExecutionError, match="start of workflow"):
            started.result()
        assert children(env, "w") == []
