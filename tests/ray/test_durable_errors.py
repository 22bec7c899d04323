"""Errors in durable functions: what the code catches, what fails the workflow, what runs again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import is_running
from tests.ray.test_durable import add, counted, held


class OrderError(Exception):
    """Of the user's, with what pickling has to keep."""

    def __init__(self, order: str, code: int):
        super().__init__(f"{order} is refused")
        self.order = order
        self.code = code

    def __reduce__(self):
        return OrderError, (self.order, self.code)


@ray.remote
def refuse(order):
    raise OrderError(order, 7)


def refuse_here(order):
    raise OrderError(order, 8)


async def refuse_later(order):
    await asyncio.sleep(0)
    raise OrderError(order, 9)


@workflow.durable
async def refuse_inside(order):
    await workflow.step(refuse, order)


@ray.remote
def die():
    os._exit(1)


@ray.remote
def fail_until(marks: Marks, path: str):
    marks.add("flaky")
    if not os.path.exists(path):
        raise ValueError("not yet")
    return "done"


TARGETS = [(refuse, 7), (refuse_here, 8), (refuse_later, 9), (refuse_inside, 7)]


def test_errors_have_the_users_class_and_file() -> None:
    def look(error):
        return type(error).__name__, error.order, error.code, str(error)

    @workflow.durable
    async def awaits():
        found = []
        for target, _ in TARGETS:
            try:
                await workflow.step(target, "A7")
            except OrderError as error:
                found.append(look(error))
        return found

    @workflow.durable
    def calls():
        found = []
        for target, _ in TARGETS:
            try:
                workflow.step(target, "A7")
            except OrderError as error:
                found.append(look(error))
        return found

    for body in (awaits, calls):
        for (_, code), (name, order, has, text) in zip(
            TARGETS, workflow.run(body.bind()), strict=True
        ):
            assert ("OrderError" in name, order, has) == (True, "A7", code)
            # The copy of this file that its environment has.
            assert f'tests/ray/{os.path.basename(__file__)}", line' in text, text
            assert "A7 is refused" in text


@pytest.mark.parametrize(
    "target", [refuse, refuse_here, refuse_inside], ids=["remote", "local", "durable"]
)
def test_an_uncaught_error_fails_the_workflow(wid: str, target) -> None:
    @workflow.durable
    async def body():
        await asyncio.gather(workflow.step(add, 1), workflow.step(target, "A7"))

    with pytest.raises(workflow.WorkflowExecutionError, match="A7 is refused") as caught:
        workflow.run(body.bind(), workflow_id=wid)
    assert isinstance(caught.value.__cause__, OrderError)
    assert caught.value.__cause__.order == "A7"
    assert workflow.get_status(wid) == workflow.FAILED
    assert workflow.get_tasks(wid)[0].status.value == "FAILED"


def test_a_crashed_step_can_be_caught(wid: str) -> None:
    @workflow.durable
    async def body():
        try:
            await workflow.step(die.options(max_retries=0))
        except ray.exceptions.WorkerCrashedError:
            return "crashed"

    assert workflow.run(body.bind(), workflow_id=wid) == "crashed"


def test_an_overdue_step_can_be_caught(wid: str, marks: Marks, gate: Gate) -> None:
    @workflow.durable
    async def body():
        limit = workflow.options(timeout=0.5, retry=workflow.RetryPolicy(max_attempts=1))
        try:
            await workflow.step(held, marks, gate, options=limit)
        except workflow.TaskTimeoutError:
            return "overdue"

    assert workflow.run(body.bind(), workflow_id=wid) == "overdue"


def test_a_resumed_body_asks_for_the_failed_step_again(
    wid: str, marks: Marks, tmp_path: Path
) -> None:
    path = tmp_path / "go"

    @workflow.durable
    async def body():
        await workflow.step(counted, marks, "before")
        beside = asyncio.create_task(workflow.step(counted, marks, "beside"))
        try:
            result = await workflow.step(fail_until, marks, str(path))
        finally:
            await beside
        await workflow.step(counted, marks, "after")
        return result

    for _ in range(2):
        with pytest.raises(workflow.WorkflowExecutionError, match="not yet"):
            ray.get(
                workflow.resume_async(wid)
                if marks.count("flaky")
                else workflow.run_async(body.bind(), workflow_id=wid)
            )
    path.touch()
    assert workflow.resume(wid) == "done"
    assert marks.counts() == {"after": 1, "before": 1, "beside": 1, "flaky": 3}


@pytest.mark.parametrize("kind", ["async", "plain"])
def test_a_body_that_compensated_is_not_taken_back(
    wid: str, marks: Marks, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "go"

    @workflow.durable
    async def awaits():
        await workflow.step(counted, marks, "charge")
        try:
            await workflow.step(fail_until, marks, str(path))
        except ValueError:
            await workflow.step(counted, marks, "refund")
            raise

    @workflow.durable
    def calls():
        workflow.step(counted, marks, "charge")
        try:
            workflow.step(fail_until, marks, str(path))
        except ValueError:
            workflow.step(counted, marks, "refund")
            raise

    body = awaits if kind == "async" else calls
    with pytest.raises(workflow.WorkflowExecutionError, match="not yet"):
        workflow.run(body.bind(), workflow_id=wid)
    path.touch()
    with pytest.raises(workflow.WorkflowExecutionError, match="not yet"):
        workflow.resume(wid)
    assert marks.counts() == {"charge": 1, "flaky": 1, "refund": 1}


def test_retries_of_a_body(wid: str, marks: Marks, tmp_path: Path) -> None:
    @workflow.durable
    async def body():
        marks.add("body")
        await workflow.step(counted, marks, "step")
        if marks.count("body") < 3:
            raise ValueError("again")
        return "done"

    retried = body.options(retry_exceptions=True, max_retries=3)
    assert workflow.run(retried.bind(), workflow_id=wid) == "done"
    assert marks.counts() == {"body": 3, "step": 1}


def test_what_runs_when_a_body_fails_is_stopped(wid: str, marks: Marks, gate: Gate) -> None:
    @workflow.durable
    async def body():
        waiting = asyncio.create_task(workflow.step(held, marks, gate))
        await workflow.step(marks.wait_for, "held")
        assert not waiting.done()
        raise ValueError("no")

    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(body.bind(), workflow_id=wid)
    states = {task.task_id: task.status.value for task in workflow.get_tasks(wid)}
    assert [states[each] for each in states if "/held" in each] == ["ABANDONED"]
    (pid,) = marks.pids("held")
    wait_until(lambda: not is_running(pid), "the worker of the step is gone")


def test_errors_in_the_background_are_not_lost_silently(wid: str) -> None:
    @workflow.durable
    async def body():
        failing = asyncio.create_task(workflow.step(refuse, "A7"))
        await workflow.step(add, 1)
        return await asyncio.gather(failing, return_exceptions=True)

    (error,) = workflow.run(body.bind(), workflow_id=wid)
    assert isinstance(error, OrderError)


def test_sys_exit_fails_what_calls_it(wid: str) -> None:
    @workflow.durable
    async def leaves():
        raise SystemExit(3)

    @workflow.durable
    async def body():
        errors = []
        for target in (leaves.options(max_retries=0), raise_exit):
            try:
                await workflow.step(target)
            except ray.exceptions.WorkerCrashedError:
                errors.append("crashed")
        return errors

    assert workflow.run(body.bind(), workflow_id=wid) == ["crashed", "crashed"]


def raise_exit():
    raise SystemExit(3)
