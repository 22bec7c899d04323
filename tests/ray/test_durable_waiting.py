"""Durable functions that wait, and what users do with them meanwhile."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import ray

import ray_workflows as workflow
from ray_workflows._client.connection import connect
from ray_workflows._executor.worker.bodies.host import MAX_STEP_THREADS
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import is_running
from tests.ray.test_durable import add, counted, held, total, wait_for_suspension


@workflow.durable
async def waits(marks: Marks, name: str = "go"):
    marks.add("body")
    await workflow.step(add, 1)
    return await workflow.wait_for_signal(name)


@workflow.durable
def waits_plainly(marks: Marks, name: str = "go"):
    marks.add("body")
    workflow.step(add, 1)
    return workflow.wait_for_signal(name)


def wait_for_eviction(workflow_id: str) -> None:
    """Wait until the coordinator has it in storage alone."""
    coordinator = connect().coordinator

    def evicted() -> bool:
        found = coordinator.__ray_call__.remote(
            lambda self: workflow_id in self.loop.active.evicted
        )
        return ray.get(found)

    wait_until(evicted, "it is evicted")


def task_of(workflow_id: str):
    return workflow.get_tasks(workflow_id)[0]


@pytest.mark.parametrize("body", [waits, waits_plainly], ids=["async", "plain"])
def test_a_body_that_only_waits_has_no_attempt(wid: str, marks: Marks, body) -> None:
    ref = workflow.run_async(body.bind(marks), workflow_id=wid)
    wait_for_suspension(wid)
    task = task_of(wid)
    assert task.status.value == "WAITING"
    assert "signal-go'" in task.reason
    assert workflow.get_status(wid) == workflow.RUNNING
    workflow.signal(wid, "go", "went")
    assert ray.get(ref) == "went"
    # The attempt that gave its place back is none that failed.
    history = workflow.get_tasks(wid, attempts=True)[0].history
    *before, last = [str(each.outcome) for each in history]
    assert (set(before), last) == ({"suspended"}, "returned")
    assert marks.count("body") == len(history)


def test_many_that_wait_need_no_process_each(wid: str, marks: Marks) -> None:
    ids = [f"{wid}-{number}" for number in range(50)]
    refs = workflow.run_async_many([waits.bind(marks) for _ in ids], workflow_ids=ids)
    for workflow_id in ids:
        wait_for_suspension(workflow_id)
    # What has work goes first.
    assert workflow.run(counted.bind(marks, "other", 1)) == 1
    for workflow_id in ids:
        workflow.signal(workflow_id, "go", workflow_id)
    assert ray.get(refs) == ids


def test_what_is_evicted_comes_back(wid: str, marks: Marks) -> None:
    @workflow.durable
    async def body():
        got = []
        for turn in range(3):
            marks.add(f"turn-{turn}")
            got.append(await workflow.wait_for_signal("go"))
        return got

    ref = workflow.run_async(body.bind(), workflow_id=wid)
    for turn in range(3):
        marks.wait_for(f"turn-{turn}")
        wait_for_suspension(wid)
        wait_for_eviction(wid)
        workflow.signal(wid, "go", turn)
    assert ray.get(ref) == [0, 1, 2]


def test_a_signal_and_a_timeout(wid: str) -> None:
    @workflow.durable
    async def body():
        waiting = asyncio.ensure_future(workflow.wait_for_signal("go"))
        done, _ = await asyncio.wait([waiting], timeout=2.0)
        if done:
            return waiting.result()
        waiting.cancel()
        return "nobody came"

    # The timer fires after the body was suspended.
    assert workflow.run(body.bind(), workflow_id=wid) == "nobody came"
    ref = workflow.run_async(body.bind(), workflow_id=f"{wid}-signaled")
    workflow.signal(f"{wid}-signaled", "go", "somebody")
    assert ray.get(ref) == "somebody"


# -- cancel, resume, timeout, delete -------------------------------------------------------


def test_a_canceled_body_goes_on_when_it_is_resumed(wid: str, marks: Marks, gate: Gate) -> None:
    @workflow.durable
    async def body():
        await workflow.step(counted, marks, "before")
        try:
            result = await workflow.step(held, marks, gate, "held")
        finally:
            marks.add("left")
        return result, await workflow.step(counted, marks, "after", 1)

    ref = workflow.run_async(body.bind(), workflow_id=wid)
    marks.wait_for("held")
    workflow.cancel(wid)
    with pytest.raises(workflow.WorkflowCancellationError):
        ray.get(ref)
    assert workflow.get_status(wid) == workflow.CANCELED
    (pid,) = marks.pids("held")
    wait_until(lambda: not is_running(pid), "the worker of the step is gone")
    gate.open()
    assert ray.get(workflow.resume_async(wid, canceled=True)) == ("held", 1)
    assert marks.count("before") == 1
    assert marks.count("held") == 2
    assert marks.count("after") == 1


def test_a_body_that_waits_is_canceled_and_deleted(wid: str, marks: Marks) -> None:
    workflow.run_async(waits.bind(marks), workflow_id=wid)
    wait_for_suspension(wid)
    workflow.cancel(wid)
    assert task_of(wid).status.value == "CANCELED"
    ref = workflow.resume_async(wid, canceled=True)
    workflow.signal(wid, "go", 1)
    assert ray.get(ref) == 1
    workflow.delete(wid)
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(wid)


@pytest.mark.parametrize("suspended", [False, True], ids=["running", "suspended"])
def test_delete_while_it_runs(wid: str, marks: Marks, gate: Gate, suspended: bool) -> None:
    @workflow.durable
    async def body():
        await workflow.step(held, marks, gate)
        marks.add("went on")

    workflow.run_async(body.bind(), workflow_id=wid)
    marks.wait_for("held")
    if suspended:
        wait_for_suspension(wid, "held")
    with pytest.raises(workflow.WorkflowStillActiveError):
        workflow.delete(wid)
    workflow.cancel(wid)
    workflow.delete(wid)
    assert wid not in dict(workflow.list_all())
    gate.open()
    ref = workflow.run_async(waits.bind(marks, "other"), workflow_id=wid)
    workflow.signal(wid, "other", "anew")
    assert ray.get(ref) == "anew"
    assert marks.count("went on") == 0


def test_the_timeout_of_a_workflow(wid: str, marks: Marks) -> None:
    # Their process is there then. Time is left for a busy machine, and until the body is suspended.
    workflow.run(total.bind([1]))
    with pytest.raises(workflow.WorkflowTimeoutError):
        workflow.run(waits.bind(marks), workflow_id=wid, timeout=timedelta(seconds=4))
    assert workflow.get_status(wid) == workflow.FAILED
    assert "suspended" in str(workflow.get_tasks(wid, attempts=True)[0].history)
    ref = workflow.resume_async(wid)
    workflow.signal(wid, "go", "in time")
    assert ray.get(ref) == "in time"
    assert workflow.get_tasks(wid)[1].attempts == 1


def test_a_canceled_branch_is_stopped(wid: str, marks: Marks, gate: Gate) -> None:
    @workflow.durable
    async def body():
        branch = asyncio.create_task(workflow.step(held, marks, gate))
        await workflow.step(marks.wait_for, "held")
        branch.cancel()
        try:
            await branch
        except asyncio.CancelledError:
            marks.add("canceled")
        return await workflow.wait_for_signal("go")

    ref = workflow.run_async(body.bind(), workflow_id=wid)
    marks.wait_for("canceled")
    (pid,) = marks.pids("held")
    wait_until(lambda: not is_running(pid), "the worker of the step is gone")
    wait_for_suspension(wid)
    workflow.signal(wid, "go", 1)
    assert ray.get(ref) == 1
    assert marks.counts() == {"canceled": 2, "held": 1}


def test_steps_that_wait_in_their_process_hold_up_no_other_body(
    wid: str, marks: Marks, gate: Gate
) -> None:
    def wait():
        gate.wait()
        return 1

    @workflow.durable
    async def crowd():
        # More than there are threads for such steps.
        steps = [workflow.step(wait) for _ in range(MAX_STEP_THREADS + 10)]
        await workflow.step(add, 1)
        marks.add("all wait")
        return sum(await asyncio.gather(*steps))

    @workflow.durable
    async def opens():
        await workflow.step(gate.open)

    ref = workflow.run_async(crowd.bind(), workflow_id=wid)
    marks.wait_for("all wait")
    workflow.run(opens.bind())
    assert ray.get(ref) == MAX_STEP_THREADS + 10
