"""Running workflows, and finding them again."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray
from ray.dag import InputNode

import ray_workflows as workflow
from ray_workflows._client import workflows
from ray_workflows._client.connection import connect
from tests.ray.marks import Gate, Marks, wait_until


@ray.remote
def one() -> int:
    return 1


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def marked(marks: Marks, name: str, *inputs):
    marks.add(name)
    return name


@ray.remote
def held(gate: Gate, marks: Marks):
    marks.add("held")
    gate.wait()
    return "through"


@ray.remote
def count(array) -> str:
    return f" {len(array)}"


@ray.remote
def fails_until(marks: Marks, path: str, upstream):
    import os

    marks.add("attempt")
    if not os.path.exists(path):
        raise ValueError("not yet")
    return "done"


def test_run_returns_the_output() -> None:
    assert workflow.run(add.bind(100, one.bind())) == 101


def test_run_async_returns_a_ref() -> None:
    assert ray.get(workflow.run_async(add.bind(1, 2))) == 3


def test_dag_inputs_by_position_and_name() -> None:
    with InputNode() as inputs:
        dag = add.bind(inputs[0], inputs.b)
    assert workflow.run(dag, 3, b=4) == 7


def test_a_bare_input_node_is_the_single_input() -> None:
    with InputNode() as inputs:
        dag = add.bind(inputs, 1)
    assert workflow.run(dag, 41) == 42


def test_a_bare_input_node_of_several_inputs() -> None:
    @ray.remote
    def both(inputs):
        return inputs[0], inputs["x"], inputs.x

    with InputNode() as inputs:
        dag = both.bind(inputs)
    assert workflow.run(dag, 1, x=2) == (1, 2, 2)


def test_inputs_inside_containers() -> None:
    @ray.remote
    def total(parts):
        return sum(parts["all"])

    with InputNode() as inputs:
        dag = total.bind({"all": [inputs[0], inputs[1], 10]})
    assert workflow.run(dag, 1, 2) == 13


def test_metadata_of_workflow_and_task(wid: str) -> None:
    task = one.options(**workflow.options(task_id="first", metadata={"k": [1]}))
    workflow.run(add.bind(1, task.bind()), workflow_id=wid, metadata={"owner": "me"})
    metadata = workflow.get_metadata(wid)
    assert metadata["status"] == "SUCCESSFUL"
    assert metadata["user_metadata"] == {"owner": "me"}
    assert metadata["stats"]["start_time"] <= metadata["stats"]["end_time"]
    task_metadata = workflow.get_metadata(wid, "first")
    assert task_metadata["user_metadata"] == {"k": [1]}
    assert task_metadata["stats"]["start_time"] <= task_metadata["stats"]["end_time"]
    add_metadata = workflow.get_metadata(wid, f"{__name__}.add")
    assert add_metadata["workflow_refs"] == ["first"]


def test_a_finished_workflow_returns_its_output_and_runs_nothing(wid: str, marks: Marks) -> None:
    dag = marked.bind(marks, "b", marked.bind(marks, "a"))
    assert workflow.run(dag, workflow_id=wid, metadata={"n": 1}) == "b"
    assert workflow.run(dag, workflow_id=wid, metadata={"n": 2}) == "b"
    assert ray.get(workflow.run_async(dag, workflow_id=wid)) == "b"
    assert workflow.resume(wid) == "b"
    assert marks.counts() == {"a": 1, "b": 1}
    # Running it again changes nothing of what is stored.
    assert workflow.get_metadata(wid)["user_metadata"] == {"n": 1}


def test_a_failed_workflow_resumes_where_it_failed(wid: str, marks: Marks, tmp_path) -> None:
    flag = tmp_path / "flag"
    dag = fails_until.bind(marks, str(flag), marked.bind(marks, "a"))
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(dag, workflow_id=wid)
    assert isinstance(caught.value.__cause__, ValueError)
    assert workflow.get_status(wid) == workflow.FAILED
    flag.touch()
    assert workflow.run(dag, workflow_id=wid) == "done"
    assert marks.counts() == {"a": 1, "attempt": 2}


def test_a_running_workflow_can_be_neither_run_nor_resumed_nor_deleted(
    wid: str, marks: Marks, gate: Gate
) -> None:
    ref = workflow.run_async(held.bind(gate, marks), workflow_id=wid)
    assert workflow.get_status(wid) == workflow.RUNNING
    with pytest.raises(RuntimeError, match="already running or pending"):
        workflow.run(held.bind(gate, marks), workflow_id=wid)
    with pytest.raises(RuntimeError, match="already running or pending"):
        workflow.resume(wid)
    with pytest.raises(workflow.WorkflowStillActiveError):
        workflow.delete(wid)
    assert ray.wait([ref], timeout=0.1)[0] == []
    gate.open()
    assert ray.get(ref) == "through"
    assert marks.count("held") == 1


def test_another_plan_under_a_known_id_warns_and_returns_the_stored(wid: str) -> None:
    assert workflow.run(add.bind(1, 2), workflow_id=wid) == 3
    with pytest.warns(UserWarning, match="another DAG"):
        assert workflow.run(add.bind(5, 5), workflow_id=wid) == 3


def test_outputs_of_tasks(wid: str) -> None:
    first = one.options(**workflow.options(task_id="first"))
    workflow.run(add.bind(1, first.bind()), workflow_id=wid)
    assert workflow.get_output(wid) == 2
    assert workflow.get_output(wid, task_id="first") == 1
    assert ray.get(workflow.get_output_async(wid, task_id="first")) == 1
    with pytest.raises(ValueError, match="no such task"):
        workflow.get_output(wid, task_id="nobody")
    with pytest.raises(ValueError, match=r"Did you mean 'tests.ray.test_run.add'\?"):
        workflow.get_output(wid, task_id="add")
    with pytest.raises(ValueError, match="Did you mean 'first'"):
        workflow.get_metadata(wid, "fist")


def test_an_output_is_waited_for(wid: str, marks: Marks, gate: Gate) -> None:
    first = marked.options(**workflow.options(task_id="first")).bind(marks, "first")
    second = held.options(**workflow.options(task_id="second"))

    @ray.remote
    def join(a, b):
        return a, b

    workflow.run_async(join.bind(first, second.bind(gate, marks)), workflow_id=wid)
    assert workflow.get_output(wid, task_id="first") == "first"
    later = workflow.get_output_async(wid, task_id="second")
    whole = workflow.get_output_async(wid)
    assert ray.wait([later, whole], timeout=0.1)[0] == []
    gate.open()
    assert ray.get(later) == "through"
    assert ray.get(whole) == ("first", "through")


def test_an_output_is_asked_for_at_the_call(wid: str, marks: Marks, gate: Gate) -> None:
    """What waits for it may come to look when the workflow is over: that it ran counts."""

    @ray.remote
    def fail(value):
        raise ValueError(value)

    started = workflow.run_async(fail.bind(held.bind(gate, marks)), workflow_id=wid)
    marks.wait_for("held")
    waiter = workflows.get_waiter(connect()).actor
    pid = ray.get(waiter.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        asked = workflow.get_output_async(wid)
        gate.open()
        with pytest.raises(workflow.WorkflowExecutionError):
            workflow.get_output(wid)
    finally:
        os.kill(pid, signal.SIGCONT)
    for ref in (started, asked):
        with pytest.raises(workflow.WorkflowExecutionError):
            ray.get(ref, timeout=60)
    with pytest.raises(workflow.OutputNotAvailableError):
        ray.get(workflow.get_output_async(wid), timeout=60)


def test_listing_by_status(wid: str, marks: Marks, gate: Gate) -> None:
    ref = workflow.run_async(held.bind(gate, marks), workflow_id=f"{wid}-running")
    workflow.run(one.bind(), workflow_id=f"{wid}-done")

    def listed(*args: object) -> dict[str, str]:
        return {i: s for i, s in workflow.list_all(*args) if i.startswith(wid)}

    assert listed() == {f"{wid}-running": "RUNNING", f"{wid}-done": "SUCCESSFUL"}
    assert listed(workflow.RUNNING) == {f"{wid}-running": "RUNNING"}
    assert listed("SUCCESSFUL") == {f"{wid}-done": "SUCCESSFUL"}
    assert listed({"SUCCESSFUL", "FAILED"}) == {f"{wid}-done": "SUCCESSFUL"}
    gate.open()
    ray.get(ref)


def test_cancel_stops_the_task_and_the_waiters(wid: str, marks: Marks, gate: Gate) -> None:

    ref = workflow.run_async(held.bind(gate, marks), workflow_id=wid)
    marks.wait_for("held")
    (pid,) = marks.pids("held")
    workflow.cancel(wid)
    assert workflow.get_status(wid) == workflow.CANCELED
    with pytest.raises(workflow.WorkflowCancellationError):
        ray.get(ref)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the task's process is gone")
    with pytest.raises(workflow.WorkflowNotResumableError, match="canceled=True"):
        workflow.resume(wid)
    with pytest.raises(workflow.WorkflowNotResumableError):
        workflow.run(held.bind(gate, marks), workflow_id=wid)
    with pytest.raises(ValueError, match="canceled"):
        workflow.get_output(wid)
    gate.open()
    assert workflow.resume(wid, canceled=True) == "through"


def test_refs_outlive_the_process_that_waits_for_them(wid: str, marks: Marks, gate: Gate) -> None:
    """The driver's waiter dies: of what it waits for, some ends before it is there again."""
    ids = [f"{wid}-{number}" for number in range(2)]
    refs = [workflow.run_async(held.bind(gate, marks), workflow_id=ids[0])]
    refs += workflow.run_async_many([held.bind(gate, marks)], workflow_ids=[ids[1]])
    refs += [workflow.get_output_async(ids[0]), workflow.get_output_async(ids[1])]
    marks.wait_for("held", 2)
    waiter = workflows.get_waiter(connect()).actor
    os.kill(ray.get(waiter.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
    gate.open()
    assert ray.get(refs, timeout=60) == ["through"] * 4
    # It goes on being this driver's.
    again = [workflow.run_async(add.bind(1, 2)), *workflow.run_async_many([add.bind(2, 3)])]
    assert ray.get(again, timeout=60) == [3, 5]
    assert marks.count("held") == 2


def test_interrupting_run_leaves_the_workflow_alone(wid: str, marks: Marks, gate: Gate) -> None:
    """Ctrl-C is for this process. The workflow was accepted, and has the values it needs."""

    def interrupt() -> None:
        marks.wait_for("held")
        os.kill(os.getpid(), signal.SIGINT)

    large = np.ones(100_000)
    dag = add.bind(add.bind(held.bind(gate, marks), "!"), count.bind(large))
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            workflow.run(dag, workflow_id=wid)
        done.result()
    gate.open()
    assert workflow.get_output(wid) == "through! 100000"


def test_cancel_of_a_finished_workflow(wid: str) -> None:
    workflow.run(one.bind(), workflow_id=wid)
    workflow.cancel(wid)
    assert workflow.get_status(wid) == workflow.CANCELED


def test_delete_frees_the_id_and_leaves_nothing(wid: str, storage_dir) -> None:
    import numpy as np

    @ray.remote
    def big():
        return np.zeros(100_000)

    workflow.run(big.bind(), workflow_id=wid)
    before = {p.name for p in (storage_dir / "blobs").iterdir()}
    workflow.delete(wid)
    assert len({p.name for p in (storage_dir / "blobs").iterdir()}) == len(before) - 1
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(wid)
    assert workflow.run(one.bind(), workflow_id=wid) == 1


# Failed workflows of other tests are resumed as well, and the code of some has changed since.
@pytest.mark.filterwarnings("ignore:Workflow .* the recorded code is used:UserWarning")
def test_resume_all_with_failed(wid: str, marks: Marks, tmp_path) -> None:
    flag = tmp_path / "flag"
    dag = fails_until.bind(marks, str(flag), None)
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag, workflow_id=wid)
    flag.touch()
    assert wid not in dict(workflow.resume_all())
    resumed = dict(workflow.resume_all(include_failed=True))
    assert ray.get(resumed[wid]) == "done"


def test_a_workflow_started_in_a_task() -> None:
    @ray.remote
    def outer():
        return workflow.run(add.bind(20, 22))

    assert ray.get(outer.remote()) == 42
    assert workflow.run(outer.bind()) == 42


def test_tasks_of_a_workflow(wid: str, marks: Marks, gate: Gate) -> None:
    @ray.remote
    def fail():
        raise KeyError("x")

    @ray.remote
    def outer():
        return workflow.continuation(add.bind(1, 1))

    @ray.remote
    def join(*parts):
        return len(parts)

    def name(node, task_id: str, **options):
        return node.options(**workflow.options(task_id=task_id, **options))

    dag = name(join, "join").bind(
        name(outer, "outer").bind(),
        name(fail, "caught", catch_exceptions=True).bind(),
        name(held, "held").bind(gate, marks),
    )
    ref = workflow.run_async(dag, workflow_id=wid)
    marks.wait_for("held")
    assert workflow.get_output(wid, task_id="outer") == 2
    workflow.get_output(wid, task_id="caught")

    def statuses() -> dict[str, str]:
        return {task.task_id: task.status.value for task in workflow.get_tasks(wid)}

    added = f"{__name__}.add"
    done = {"outer": "SUCCESSFUL", "caught": "SUCCESSFUL", added: "SUCCESSFUL"}
    expected = {**done, "held": "RUNNING", "join": "WAITING"}
    wait_until(lambda: statuses() == expected, "a worker has said that it runs the task")
    gate.open()
    ray.get(ref)
    assert set(statuses().values()) == {"SUCCESSFUL"}
    tasks = {task.task_id: task for task in workflow.get_tasks(wid)}
    assert tasks["join"].upstream == ("outer", "caught", "held")
    assert tasks["caught"].error.startswith("KeyError")
    assert tasks["held"].attempts == 1
    assert tasks["held"].ended_at > tasks["held"].started_at
