"""Processes of durable functions die by SIGKILL: no step that is committed runs again."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import is_running
from tests.ray.test_crashes import kill_coordinator
from tests.ray.test_durable import counted, held, wait_for_suspension


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid), f"process {pid} is gone")


def local(marks: Marks, name: str) -> str:
    marks.add(name)
    return name


def local_held(marks: Marks, gate: Gate) -> str:
    marks.add("held")
    gate.wait()
    return "held"


@workflow.durable
async def branches(marks: Marks, gate: Gate):
    """Steps of both kinds, of which some are committed and some run when the test kills."""
    marks.add("body")
    done = [await workflow.step(local, marks, "a"), await workflow.step(counted, marks, "b", "b")]
    done += await asyncio.gather(
        workflow.step(counted, marks, "c", "c"),
        workflow.step(local, marks, "d"),
    )
    done += [workflow.random().random(), await workflow.step(held, marks, gate, "held")]
    done += [await workflow.step(local, marks, "e"), await workflow.step(counted, marks, "f", "f")]
    return done


def committed_once(marks: Marks) -> bool:
    return {marks.count(name) for name in "abcdef"} == {1}


EXPECTED = (["a", "b", "c", "d"], ["held", "e", "f"])


def test_a_killed_host(wid: str, marks: Marks, gate: Gate) -> None:
    @workflow.durable
    async def body():
        names = [
            await workflow.step(local, marks, "a"),
            await workflow.step(counted, marks, "b", 1),
        ]
        marks.add("body")
        # Beside it runs another step, so that the body never only waits.
        names += await asyncio.gather(
            workflow.step(local_held, marks, gate), workflow.step(counted, marks, "c", 1)
        )
        return [*names, await workflow.step(local, marks, "d")]

    ref = workflow.run_async(body.bind(), workflow_id=wid)
    marks.wait_for("held")
    marks.wait_for("c")
    kill(marks.pids("held")[0])
    marks.wait_for("held", 2)
    gate.open()
    assert ray.get(ref) == ["a", 1, "held", 1, "d"]
    assert marks.counts() == {"a": 1, "b": 1, "body": 2, "c": 1, "d": 1, "held": 2}
    # The process of the body, and of what runs in it, is another one.
    assert len(set(marks.pids("body"))) == 2


def test_a_killed_worker(wid: str, marks: Marks, gate: Gate) -> None:
    ref = workflow.run_async(branches.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    kill(marks.pids("held")[0])
    marks.wait_for("held", 2)
    gate.open()
    result = ray.get(ref)
    assert (result[:4], result[5:]) == EXPECTED
    assert committed_once(marks), marks.counts()


@pytest.mark.parametrize("suspended", [False, True], ids=["running", "suspended"])
def test_a_killed_coordinator(wid: str, marks: Marks, gate: Gate, suspended: bool) -> None:
    ref = workflow.run_async(branches.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    if suspended:
        wait_for_suspension(wid, "held")
    kill_coordinator()
    # The task ran in a worker of the dead coordinator.
    marks.wait_for("held", 2)
    gate.open()
    result = ray.get(ref)
    assert (result[:4], result[5:]) == EXPECTED
    assert committed_once(marks), marks.counts()


def test_everything_killed_again_and_again(wid: str, marks: Marks) -> None:
    @workflow.durable
    async def body(count):
        async def branch(number):
            for turn in range(count):
                await workflow.step(local, marks, f"local-{number}-{turn}")
                await workflow.step(counted, marks, f"task-{number}-{turn}")
                await asyncio.sleep(0.02)

        await asyncio.gather(*(branch(number) for number in range(3)))
        return "done"

    ref = workflow.run_async(body.bind(10), workflow_id=wid)
    for turn, name in ((1, "local-0-1"), (4, "task-1-4"), (7, "local-2-7")):
        marks.wait_for(name)
        if turn == 4:
            kill_coordinator()
        else:
            os.kill(marks.pids(name)[0], signal.SIGKILL)
    assert ray.get(ref) == "done"
    counts = marks.counts()
    assert len(counts) == 60
    # What ran when something was killed may have run again: three branches, three kills.
    assert sum(count - 1 for count in counts.values()) <= 9, counts


def test_what_only_waits_outlives_the_coordinator(wid: str, marks: Marks) -> None:
    @workflow.durable
    async def body():
        await workflow.step(local, marks, "before")
        marks.add("body")
        got = await workflow.wait_for_signal("go")
        await workflow.step(local, marks, "after")
        return got

    ref = workflow.run_async(body.bind(), workflow_id=wid)
    wait_for_suspension(wid, "signal")
    kill_coordinator()
    wait_for_suspension(wid, "signal")
    assert workflow.get_status(wid) == workflow.RUNNING
    workflow.signal(wid, "go", 7)
    assert ray.get(ref) == 7
    assert marks.counts() == {"after": 1, "before": 1, "body": 2}


def test_a_body_that_kills_its_host_fails_alone(wid: str, marks: Marks) -> None:
    @workflow.durable
    async def guilty():
        await workflow.step(local, marks, "guilty")
        os.kill(os.getpid(), signal.SIGKILL)

    @workflow.durable
    async def innocent():
        return await workflow.step(local, marks, "innocent")

    failing = workflow.run_async(guilty.options(max_retries=1).bind(), workflow_id=f"{wid}-guilty")
    assert workflow.run(innocent.bind(), workflow_id=wid) == "innocent"
    with pytest.raises(workflow.WorkflowExecutionError):
        ray.get(failing)
    assert marks.count("guilty") == 1
