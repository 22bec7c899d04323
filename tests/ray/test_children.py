"""Workflows that tasks start, on a real cluster: they exist if and only if the task succeeds."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from ray_workflows._client.connection import connect
from ray_workflows._model import events as ev
from ray_workflows.storage.histories import History
from tests.ray.marks import Marks
from tests.ray.processes import DriverProcess
from tests.ray.test_crashes import coordinator_pid


@ray.remote
def work(marks: Marks, name: str, data):
    marks.add(name)
    return name, float(np.sum(data)), workflow.current().workflow_id


@ray.remote
def starts(marks: Marks, ids: list[str | None], data, failures: int = 0):
    """Starts a workflow for each id; fails after that, that many times."""
    started = [
        workflow.start(work.bind(marks, f"child-{n}", data), workflow_id=each, tags={"n": n})
        for n, each in enumerate(ids)
    ]
    marks.add("starts")
    if marks.count("starts") <= failures:
        raise ValueError("not yet")
    return started


@ray.remote
def after(marks: Marks, started, pid: int):
    marks.add("after")
    if pid and marks.count("after") == 1:
        os.kill(pid, signal.SIGKILL)
    return started


def children(wid: str) -> list[str]:
    return sorted(row.workflow_id for row in workflow.list_workflows(f'parent="{wid}"'))


@workflow.durable
async def sells(marks: Marks, child: str, data):
    one = workflow.start(work.bind(marks, "one", data), workflow_id=child)
    await workflow.wait_for_signal("go")
    marks.add("sells")
    return one, workflow.start(work.bind(marks, "two", data))


def test_a_child_of_a_durable_function_runs_while_that_waits(wid: str, marks: Marks) -> None:
    data = np.ones(50_000)
    parent = workflow.run_async(sells.bind(marks, f"{wid} one", data), workflow_id=wid)
    marks.wait_for("one")
    assert workflow.get_output(f"{wid} one")[1] == 50_000.0
    assert workflow.get_status(wid) == "RUNNING"
    workflow.signal(wid, "go")
    one, two = ray.get(parent)
    # The last one began with the last thing that the function did.
    assert workflow.get_output(two) == ("two", 50_000.0, two)
    assert children(wid) == sorted([one, two])
    assert marks.counts() == {"one": 1, "sells": 1, "two": 1}


def test_a_child_exists_if_its_task_succeeds(wid: str, marks: Marks) -> None:
    once = starts.options(max_retries=1, retry_exceptions=True)
    first = f"{wid} first"
    data = np.ones(50_000)  # Too large for the submission to ride in the event.
    started = workflow.run(once.bind(marks, [first, None], data, 1), workflow_id=wid)
    assert started[0] == first
    outputs = [workflow.get_output(each) for each in started]
    assert outputs == [(f"child-{n}", 50_000.0, each) for n, each in enumerate(started)]
    assert marks.counts() == {"child-0": 1, "child-1": 1, "starts": 2}
    assert children(wid) == sorted(started)
    assert children(first) == []
    # The task runs again in a fork: one id is in use, the other is made of the new workflow.
    (task,) = workflow.get_tasks(wid)
    fork = workflow.fork(wid, task.task_id)
    (_, other) = workflow.get_output(fork)
    assert children(fork) == [other]
    assert workflow.get_output(other)[2] == other
    assert marks.count("child-0") == 1


def test_a_task_that_fails_starts_nothing(wid: str, marks: Marks) -> None:
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(starts.bind(marks, [f"{wid} child"], 1, 9), workflow_id=wid)
    assert children(wid) == []
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(f"{wid} child")


def test_an_id_that_is_in_use_is_left_alone(wid: str, marks: Marks) -> None:
    workflow.run(work.bind(marks, "before", 1), workflow_id=f"{wid} child")
    workflow.run(starts.bind(marks, [f"{wid} child"], 1), workflow_id=wid)
    assert marks.count("child-0") == 0
    storage = connect().storage
    row = storage.read_catalog(wid)
    assert row is not None
    (told,) = [e for e in History(storage, row).events() if isinstance(e, ev.Delivered)]
    assert told.refusal is not None
    assert told.refusal.type_name == "WorkflowAlreadyExistsError"


def test_a_coordinator_that_is_killed_starts_what_was_committed(wid: str, marks: Marks) -> None:
    """The next task kills it after the commit, while children are on their way or run."""
    ids = [f"{wid} {n}" for n in range(20)]
    dag = after.bind(marks, starts.bind(marks, ids, 1), coordinator_pid())
    assert workflow.run(dag, workflow_id=wid) == ids
    for n, each in enumerate(ids):
        assert workflow.get_output(each)[2] == each
        assert marks.count(f"child-{n}") >= 1
    assert children(wid) == sorted(ids)


@pytest.mark.own_cluster
def test_a_coordinator_killed_before_and_after_it_delivers_starts_each_child_once(
    tmp_path: Path,
) -> None:
    """It dies when the task's result is durable and nothing is sent, and again when a child is
    there and its parent does not know it."""
    code = f"""
        import ray_workflows as workflow
        from tests.ray.killing_storage import BEGINS, SENDS, killing_storage
        from tests.ray.marks import Marks
        from tests.ray.start import start_cluster
        from tests.ray.test_children import children, starts
        start_cluster(num_cpus=2)
        marks, kills = Marks({str(tmp_path / "marks")!r}), Marks({str(tmp_path / "kills")!r})
        workflow.init(killing_storage({str(tmp_path / "store")!r}, kills))
        ids = workflow.run(starts.bind(marks, ["one", "two", None], 1), workflow_id="parent")
        assert [workflow.get_output(each)[2] for each in ids] == ids
        assert children("parent") == sorted(ids)
        assert marks.counts() == {{"starts": 1, **{{f"child-{{n}}": 1 for n in range(3)}}}}
        (task,) = workflow.get_tasks("parent")
        assert {{start.status for start in task.starts}} == {{workflow.StartStatus.STARTED}}
        # Each kill was of a coordinator of its own.
        assert len({{*kills.pids(SENDS), *kills.pids(BEGINS)}}) == 2
        print("all right", flush=True)
    """
    with DriverProcess(tmp_path, code) as driver:
        assert "all right" in driver.wait()


def test_each_turn_of_a_loop_starts_its_own(wid: str, marks: Marks) -> None:
    @ray.remote(num_cpus=0, **workflow.options(checkpoint=False))
    def turn(left: int):
        workflow.start(turned.bind(marks, left), workflow_id=f"{wid}-{left}")
        return workflow.continuation(turn.bind(left - 1)) if left else "end"

    @ray.remote(num_cpus=0)
    def turned(marks: Marks, left: int):
        marks.add(f"{left}")
        return left

    assert workflow.run(turn.bind(2), workflow_id=wid) == "end"
    assert [workflow.get_output(f"{wid}-{left}") for left in range(3)] == [0, 1, 2]
    assert marks.counts() == {"0": 1, "1": 1, "2": 1}


def test_what_cannot_be_started(wid: str, marks: Marks) -> None:
    with pytest.raises(RuntimeError, match="run_async"):
        workflow.start(work.bind(marks, "outside", 1))
    for ids in (["twice", "twice"], [f"{wid} own"]):
        with pytest.raises(workflow.WorkflowExecutionError) as raised:
            workflow.run(starts.bind(marks, ids, 1), workflow_id=ids[0])
        assert "id of its own" in str(raised.value.__cause__)
