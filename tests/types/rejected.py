"""Mistakes of users: a type checker must find every line that is marked, and no other.

Checked, not run: see `test_types`.
"""

from __future__ import annotations

import ray
from ray.dag import DAGNode
from typing_extensions import assert_type

import ray_workflows as workflow


@ray.remote
def add(a: int, b: int) -> int:
    return a + b


@workflow.options(task_id="half")
@ray.remote
def half(a: int) -> float:
    return a / 2


def plain() -> int:
    return 1


@ray.remote
class Actor:
    pass


# -- options -------------------------------------------------------------------------------

workflow.options(retries=3)  # rejected
workflow.options("by position")  # rejected
workflow.options(task_id=1)  # rejected
workflow.options(metadata=["not a dict"])  # rejected
workflow.options(catch_exceptions="yes")  # rejected
workflow.options(checkpoint=0)  # rejected
workflow.options(task_id="not a task")(plain)  # rejected
workflow.options(task_id="an actor")(Actor)  # rejected

# -- signatures of decorated functions ------------------------------------------------------

half.remote("three")  # rejected
half.remote(1, 2)  # rejected
half.bind()  # rejected
half.options(**workflow.options(task_id="x")).remote("three")  # rejected
assert_type(half.remote(3), ray.ObjectRef[int])  # rejected
half(3)  # rejected

# -- verbs ----------------------------------------------------------------------------------

workflow.run(3)  # rejected
workflow.run(add)  # rejected
workflow.run(add.remote(1, 2))  # rejected
workflow.run(add.bind(1, 2), workflow_id=1)  # rejected
workflow.run(add.bind(1, 2), metadata="text")  # rejected
workflow.run_async(plain)  # rejected
workflow.get_status(1)  # rejected
workflow.get_output("w", "task")  # rejected
workflow.get_output("w", task=1)  # rejected
workflow.get_metadata("w", 1)  # rejected
workflow.get_tasks(b"w")  # rejected
workflow.resume("w", True)  # rejected
workflow.resume_all(include_failed=2.0)  # rejected
workflow.cancel()  # rejected
workflow.delete(None)  # rejected
workflow.list_all(["RUNNING"])  # rejected
workflow.list_all(1)  # rejected
workflow.init(3)  # rejected
workflow.init("/data", max_running_workflows="4")  # rejected
workflow.continuation(3)  # rejected
workflow.sleep("5")  # rejected
workflow.no_such_name  # rejected
status: str = workflow.get_status("w").value
number: int = workflow.get_status("w")  # rejected
listed: list[str] = workflow.list_all()  # rejected

# -- current --------------------------------------------------------------------------------

workflow.current().workflow_id  # rejected
if (task := workflow.current()) is not None:
    task.attempt = 2  # rejected
    attempt: str = task.attempt  # rejected

# -- events ---------------------------------------------------------------------------------


class NoListener:
    async def poll_for_event(self, path: str) -> str:
        return path


def make_listener() -> workflow.EventListener:
    return workflow.TimerListener()


class Blocking(workflow.EventListener):
    def poll_for_event(self, path: str) -> str:  # rejected
        return path


workflow.wait_for_event(NoListener)  # rejected
workflow.wait_for_event(workflow.TimerListener())  # rejected
workflow.wait_for_event(make_listener)  # rejected
node: DAGNode = workflow.sleep(1)
wrong: int = workflow.now()  # rejected
