"""What users write, and the types that they see. Checked, not run: see `test_types`."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import ray
from ray.dag import DAGNode, InputNode
from typing_extensions import assert_type

import ray_workflows as workflow


@ray.remote
def one() -> int:
    return 1


@ray.remote(num_cpus=2, max_retries=5)
def add(a: int, b: int) -> int:
    return a + b


# -- options -------------------------------------------------------------------------------


@workflow.options(task_id="half", metadata={"team": "a"}, catch_exceptions=True, checkpoint=False)
@ray.remote
def half(a: int, places: int) -> float:
    return round(a / 2, places)


@workflow.options()
@ray.remote
def nothing() -> None:
    return None


def a_decorated_function_keeps_its_signature() -> None:
    assert_type(half.remote(3, 2), ray.ObjectRef[float])
    assert_type(half.remote(one.remote(), 2), ray.ObjectRef[float])
    assert_type(ray.get(half.remote(3, 2)), float)
    assert_type(nothing.remote(), ray.ObjectRef[None])
    node: DAGNode = half.bind(one.bind(), 2)
    workflow.run(node)


def options_of_one_call() -> None:
    named = add.options(num_cpus=1, **workflow.options(task_id="sum", checkpoint=None))
    assert_type(named.remote(1, 2), ray.ObjectRef[int])
    assert_type(half.options(**workflow.options(task_id="b")).remote(1, 2), ray.ObjectRef[float])
    given: dict[str, Any] = {"task_id": "from elsewhere"}
    workflow.options(**given)
    metadata: dict[str, str] = {"team": "a"}
    workflow.options(metadata=metadata)


# -- running -------------------------------------------------------------------------------


def running() -> int:
    workflow.init("/data/workflows", max_running_workflows=4, max_pending_workflows=None)
    workflow.init(Path("/data/workflows"))
    with InputNode() as inputs:
        dag: DAGNode = add.bind(inputs[0], inputs.b)
    ref = workflow.run_async(dag, 1, workflow_id="w", metadata={"team": "a"}, b=2)
    assert_type(ref, ray.ObjectRef[Any])
    assert_type(ray.get(ref), Any)
    total: int = workflow.run(add.bind(one.bind(), 2))
    again: int = workflow.resume("w", canceled=True)
    assert_type(workflow.resume_async("w"), ray.ObjectRef[Any])
    for workflow_id, output in workflow.resume_all(include_failed=True):
        assert_type(workflow_id, str)
        assert_type(output, ray.ObjectRef[Any])
    return total + again


async def awaiting() -> str:
    text: str = await workflow.run_async(one.bind())
    await asyncio.gather(workflow.get_output_async("w"), workflow.resume_async("w"))
    return text


# -- looking -------------------------------------------------------------------------------


def looking() -> None:
    status = workflow.get_status("w")
    assert_type(status, workflow.WorkflowStatus)
    if status == workflow.RUNNING or status is workflow.WorkflowStatus.FAILED:
        print(status.value.lower())
    output: list[int] = workflow.get_output("w", task_id="sum")
    assert_type(output, list[int])
    assert_type(workflow.get_output_async("w"), ray.ObjectRef[Any])
    assert_type(workflow.get_metadata("w", "sum"), dict[str, Any])
    for task in workflow.get_tasks("w"):
        assert_type(task, workflow.TaskInfo)
        assert_type(task.status, workflow.TaskStatus)
        assert_type(task.task_id, str)
    listed = workflow.list_all()
    assert_type(listed, list[tuple[str, workflow.WorkflowStatus]])
    workflow.list_all(workflow.RUNNING)
    workflow.list_all("RUNNING")
    workflow.list_all({"RUNNING", "FAILED"})
    workflow.list_all({workflow.RUNNING, workflow.FAILED})
    workflow.list_all({workflow.RUNNING, "FAILED"})
    workflow.list_all(frozenset({workflow.RUNNING}))
    workflow.cancel("w")
    workflow.delete("w")


def signaling() -> None:
    waits: DAGNode = workflow.wait_for_signal("approved", timeout=timedelta(days=3))
    node: DAGNode = add.bind(
        1, workflow.wait_for_signal("number", timeout=5, catch_exceptions=True)
    )
    workflow.run(add.bind(waits, node))
    workflow.signal("w", "approved")
    assert_type(workflow.signal("w", "approved", {"by": "Ada"}, signal_id="1"), None)


def catching() -> None:
    try:
        workflow.run(one.bind(), workflow_id="w")
    except workflow.WorkflowExecutionError as error:
        assert_type(error.workflow_id, str)
        raise
    except (workflow.WorkflowCancellationError, workflow.WorkflowError):
        workflow.resume("w")


# -- inside tasks --------------------------------------------------------------------------


@ray.remote
def factorial(n: int, product: int) -> int:
    if n == 1:
        return product
    return workflow.continuation(factorial.bind(n - 1, n * product))


@ray.remote
def pay(amount: float) -> str:
    task = workflow.current()
    if task is None:
        return "not in a workflow"
    assert_type(task, workflow.CurrentTask)
    assert_type(task.attempt, int)
    return f"{amount} {task.workflow_id} {task.task_id} {task.idempotency_key}"


# -- events --------------------------------------------------------------------------------


class FileListener(workflow.EventListener):
    async def poll_for_event(self, path: str, every: float = 0.1) -> str:
        while not Path(path).exists():
            await asyncio.sleep(every)
        return path

    async def event_checkpointed(self, event: str) -> None:
        Path(event).unlink()


def waiting() -> None:
    event = workflow.wait_for_event(FileListener, "/tmp/event", every=0.5)
    # DAG nodes, or in a durable function something else.
    assert_type(event, Any)
    assert_type(workflow.sleep(5), Any)
    workflow.sleep(0.5)
    workflow.run(pay.bind(workflow.wait_for_event(workflow.TimerListener, 1e9)))
    workflow.run(event)


@workflow.durable
async def durable(order: str) -> int:
    paid = await workflow.step(pay, order)
    await workflow.sleep(5)
    approved = await workflow.wait_for_signal("approved")
    assert_type(workflow.now(), datetime)
    assert_type(workflow.random().random(), float)
    assert_type(workflow.uuid4(), UUID)
    assert_type(workflow.patched("more"), bool)
    workflow.logger.info("paid")
    return len(paid) + len(approved)


@workflow.durable(strict=True)
def durable_plain(order: str) -> int:
    later = workflow.step_async(pay, order, options=workflow.options(task_id="paid"))
    later.cancel()
    assert_type(later.result(), Any)
    return len(workflow.step(pay, order))


def run_durable() -> None:
    workflow.run(durable.bind("a"))
    workflow.run(durable_plain.options(**workflow.options(task_id="x")).bind("a"))
