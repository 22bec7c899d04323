"""What is seen of tasks on a real cluster, while they wait, run and end."""

from __future__ import annotations

import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Gate, Marks, wait_until


@ray.remote
def one():
    return 1


@ray.remote
def add(a, b):
    return a + b


def reasons(workflow_id: str) -> dict[str, tuple[str, str | None]]:
    return {t.task_id: (t.status.value, t.reason) for t in workflow.get_tasks(workflow_id)}


def test_a_task_for_which_no_node_has_a_gpu_says_so(wid: str) -> None:
    """Beside one that waits for it, and one that runs all the same."""
    starved = one.options(num_gpus=4, **workflow.options(task_id="starved"))
    fed = one.options(**workflow.options(task_id="fed"))
    total = add.options(**workflow.options(task_id="total"))
    ref = workflow.run_async(total.bind(starved.bind(), fed.bind()), workflow_id=wid)
    # The promise; on this cluster, 2 CPUs and no GPU.
    wait_until(lambda: "no node" in (reasons(wid)["starved"][1] or ""), "it says so", seconds=10)
    status, reason = reasons(wid)["starved"]
    assert status == "QUEUED"
    assert reason is not None
    assert reason.startswith("no node of the cluster has what it asks for: CPU 1, GPU 4.")
    assert workflow.get_output(wid, task_id="fed") == 1
    assert reasons(wid)["total"] == ("WAITING", "it waits for 'starved'")
    workflow.cancel(wid)
    with pytest.raises(workflow.WorkflowCancellationError):
        ray.get(ref)
    assert reasons(wid)["starved"] == ("CANCELED", "its workflow was canceled")


def test_attempts_are_listed_with_their_errors(wid: str, marks: Marks, gate: Gate) -> None:
    @ray.remote(max_retries=2, retry_exceptions=True)
    def third_time(marks: Marks, gate: Gate):
        marks.add("began")
        if marks.count("began") < 3:
            raise ValueError("not yet")
        gate.wait()
        return "done"

    ref = workflow.run_async(third_time.bind(marks, gate), workflow_id=wid)

    def runs() -> bool:
        (task,) = workflow.get_tasks(wid, attempts=True)
        return [a.outcome.value for a in task.history] == ["raised", "raised", "running"]

    wait_until(runs, "the third attempt runs")
    (task,) = workflow.get_tasks(wid, attempts=True)
    assert task.status is workflow.TaskStatus.RUNNING
    assert [a.error for a in task.history] == ["ValueError: not yet"] * 2 + [None]
    assert "third_time" in task.history[0].traceback
    gate.open()
    assert ray.get(ref) == "done"
    (task,) = workflow.get_tasks(wid, attempts=True)
    assert [a.outcome.value for a in task.history] == ["raised", "raised", "returned"]
    assert all(a.started_at <= a.ended_at for a in task.history)
    (node,) = ray.nodes()
    assert {a.node for a in task.history} == {node["NodeID"][:8]}
