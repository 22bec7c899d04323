"""Forks on a cluster: real values, blobs and ObjectRefs, and a life of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Gate, Marks
from tests.ray.processes import DriverProcess


@ray.remote
def large(marks: Marks):
    marks.add("large")
    return np.ones(1_000_000), ray.put([np.zeros(100_000)])


@ray.remote
def looks(marks: Marks, value, factor):
    marks.add("looks")
    array, ref = value
    (inner,) = ray.get(ref)
    return float(array.sum() + inner.sum()) * factor


@ray.remote
def ends(marks: Marks, value, shared):
    marks.add("ends")
    return value, float(shared.sum()), workflow.current().workflow_id


def named(function, task_id: str):
    return function.options(**workflow.options(task_id=task_id))


def build(marks: Marks):
    first = named(large, "first").bind(marks)
    second = named(looks, "second").bind(marks, first, ray.put(3))
    return named(ends, "third").bind(marks, second, np.full(100_000, 2.0))


def test_a_fork_keeps_what_is_upstream_and_has_copies_of_its_own(wid: str, marks: Marks) -> None:
    output = workflow.run(build(marks), workflow_id=wid, metadata={"owner": "me"}, timeout=60)
    assert output == (3e6, 2e5, wid)
    fork = workflow.fork(wid, "second", f"{wid} fork")
    assert fork == f"{wid} fork"
    assert workflow.get_output(fork) == (3e6, 2e5, fork)
    assert marks.counts() == {"large": 1, "looks": 2, "ends": 2}
    assert workflow.get_metadata(fork)["user_metadata"] == {"owner": "me"}
    assert [t.status.value for t in workflow.get_tasks(fork)] == ["SUCCESSFUL"] * 3
    # The old one is as it was, and not needed.
    assert workflow.get_output(wid) == output
    workflow.delete(wid)
    array, ref = workflow.get_output(fork, task_id="first")
    assert (array.sum(), ray.get(ref)[0].shape) == (1e6, (100_000,))
    again = workflow.fork(fork, from_task="third")
    assert workflow.get_output(again) == (3e6, 2e5, again)
    assert marks.counts() == {"large": 1, "looks": 2, "ends": 3}


def test_a_durable_function_goes_on_from_one_of_its_steps(wid: str, marks: Marks) -> None:
    @ray.remote
    def numbers(marks: Marks, size: int):
        marks.add("numbers")
        return np.arange(size)

    def total(marks: Marks, values):
        marks.add("total")
        return int(values.sum())

    @ray.remote
    def label(marks: Marks, text: str):
        marks.add(text)
        return f"{text} of {workflow.current().workflow_id}"

    @workflow.durable
    async def report(marks: Marks, fail_in: str):
        values = await workflow.step(numbers, marks, 100_000)
        result = await workflow.step(total, marks, values)
        first, second = await asyncio.gather(
            workflow.step(label, marks, "first"), workflow.step(label, marks, "second")
        )
        await workflow.sleep(0.01)
        if fail_in == workflow.current().workflow_id:
            raise ValueError("not in the first one")
        return result, first, second, await workflow.step(label, marks, "third")

    body = report.options(**workflow.options(task_id="report")).bind(marks, wid)
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(body, workflow_id=wid)
    counts = {"numbers": 1, "total": 1, "first": 1, "second": 1}
    assert marks.counts() == counts
    fork = workflow.fork(wid, "report/label", f"{wid} fork")
    assert workflow.get_output(fork) == (
        sum(range(100_000)),
        f"first of {fork}",
        f"second of {wid}",
        f"third of {fork}",
    )
    assert marks.counts() == {**counts, "first": 2, "third": 1}
    workflow.delete(wid)
    again = workflow.fork(fork, "report/total", f"{wid} again")
    assert workflow.get_output(again)[1] == f"first of {again}"
    assert marks.counts() == {"numbers": 1, "total": 2, "first": 3, "second": 2, "third": 2}
    with pytest.raises(workflow.WorkflowNotFoundError, match="Did you mean 'report/total'"):
        workflow.fork(fork, "report/totl")


def test_a_fork_of_a_failed_one_and_of_one_that_runs(wid: str, marks: Marks, gate: Gate) -> None:
    @ray.remote
    def held(marks: Marks, gate: Gate):
        marks.add("held")
        gate.wait()
        return "held"

    @ray.remote
    def one(marks: Marks):
        marks.add("one")
        return 1

    @ray.remote
    def last(*values):
        if values[2] != workflow.current().workflow_id:
            return values
        raise ValueError("not in the first one")

    dag = named(last, "last").bind(
        named(held, "held").bind(marks, gate), named(one, "one").bind(marks), wid
    )
    ref = workflow.run_async(dag, workflow_id=wid)
    marks.wait_for("held")
    marks.wait_for("one")
    assert workflow.get_output(wid, task_id="one") == 1
    running = workflow.fork(wid, "held")
    marks.wait_for("held", 2)
    gate.open()
    with pytest.raises(workflow.WorkflowExecutionError):
        ray.get(ref)
    assert workflow.get_output(running) == ("held", 1, wid)
    failed = workflow.fork(wid, "last")
    assert workflow.get_output(failed) == ("held", 1, wid)
    assert marks.counts() == {"held": 2, "one": 1}


def test_bad_forks(wid: str, marks: Marks, storage_dir: Path) -> None:
    with pytest.raises(workflow.WorkflowNotFoundError, match="doesn't exist"):
        workflow.fork(wid, "first")
    workflow.run(build(marks), workflow_id=wid)
    before = {path.name for path in (storage_dir / "blobs").iterdir()}
    with pytest.raises(workflow.WorkflowNotFoundError, match="No such task_id 'nobody'"):
        workflow.fork(wid, "nobody")
    with pytest.raises(workflow.WorkflowNotFoundError, match="Did you mean 'third'"):
        workflow.fork(wid, "thirt")
    with pytest.raises(workflow.WorkflowAlreadyExistsError, match="exists already"):
        workflow.fork(wid, "third", wid)
    with pytest.raises(ValueError, match="empty"):
        workflow.fork(wid, "third", "")
    with pytest.raises(TypeError, match="from_task must be a task id, not int"):
        workflow.fork(wid, 1)
    with pytest.raises(TypeError, match="workflow_id"):
        workflow.fork(1, "third")
    # The blobs of what did not come to be are gone.
    assert {path.name for path in (storage_dir / "blobs").iterdir()} == before
    assert marks.counts() == {"large": 1, "looks": 1, "ends": 1}


@pytest.mark.own_cluster
def test_workflows_and_forks_wait_for_room_and_survive_the_cluster(tmp_path: Path) -> None:
    """Forks have no room of their own, and a workflow that waits can be canceled."""
    code = """
        import os, ray
        import ray_workflows as workflow
        from tests.ray.marks import Gate, Marks
        from tests.ray.test_crashes import held, step
        from tests.ray.test_fork import build, named
        from tests.ray.start import start_cluster

        start_cluster(num_cpus=2)
        workflow.init({store!r}, max_running_workflows=1)
        marks = Marks({marks!r})

        def wait_in_a_queue():
            gate, marks = Gate({gate!r} + "-first"), Marks({marks!r} + "-pending")
            first = workflow.run_async(held.bind(marks, gate, 1), workflow_id="first")
            others = [workflow.run_async(step.bind(marks, i, None), workflow_id=str(i))
                      for i in range(3)]
            assert workflow.list_all("PENDING") == [(str(i), "PENDING") for i in range(3)]
            workflow.cancel("1")
            assert workflow.get_status("1") == "CANCELED"
            gate.open()
            assert ray.get([first, others[0], others[2]]) == [1, 0, 2]
            assert marks.count("step-1") == 0

        @ray.remote
        def hold(marks, gate):
            marks.add("hold")
            gate.wait()

        if not os.path.exists({gate!r}):
            wait_in_a_queue()
            workflow.run(build(marks), workflow_id="origin")
            workflow.run_async(hold.bind(marks, Gate({gate!r})), workflow_id="holds")
            marks.wait_for("hold")
            workflow.fork("origin", "third", "fork")
            print("STATUS", workflow.get_status("fork"), flush=True)
            Gate({gate!r} + "-never").wait()
        for workflow_id, ref in workflow.resume_all():
            ray.get(ref)
        print("OUTPUT", workflow.get_output("fork"), marks.counts(), flush=True)
    """.format(
        store=str(tmp_path / "store"), marks=str(tmp_path / "marks"), gate=str(tmp_path / "gate")
    )
    with DriverProcess(tmp_path, code) as driver:
        driver.wait_for_text("STATUS PENDING")
        driver.kill_all()
    Gate(str(tmp_path / "gate")).open()
    with DriverProcess(tmp_path, code) as driver:
        assert (
            "OUTPUT (3000000.0, 200000.0, 'fork') "
            "{'ends': 2, 'hold': 2, 'large': 1, 'looks': 1}" in driver.wait()
        )
