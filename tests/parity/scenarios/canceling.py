"""Stopping and removing: `cancel` and `delete`."""

from __future__ import annotations

import time

import ray

from tests.parity.kit import PATIENCE, caught, scenario, within
from tests.parity.tasks import fail, hold, identity, mark, nap
from tests.ray.processes import is_running


def start_held(workflow, scratch, suffix=""):
    dag = hold.bind(scratch.marks, scratch.gate(), "held")
    ref = workflow.run_async(dag, workflow_id=scratch.id(suffix))
    scratch.marks.wait_for("held")
    return ref


def stopped(scratch) -> bool:
    """Whether the worker of the held task is gone, some seconds after the cancel."""
    (pid,) = scratch.marks.pids("held")
    return within(lambda: not is_running(pid), PATIENCE / 4)


@scenario
def cancel_a_running_one(workflow, scratch):
    ref = start_held(workflow, scratch)
    answer = caught(workflow.cancel, scratch.id())
    status = caught(workflow.get_status, scratch.id())
    run = caught(ray.get, ref)
    return {
        "stopped": stopped(scratch),
        "answer": answer,
        "status": status,
        "run": run,
        "ran": scratch.marks.counts(),
        "listed": scratch.listed("CANCELED"),
    }


@scenario
def cancel_stops_what_follows(workflow, scratch):
    held = hold.bind(scratch.marks, scratch.gate(), "held")
    workflow.run_async(mark.bind(scratch.marks, "after", held), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    workflow.cancel(scratch.id())
    stopped(scratch)
    scratch.gate().open()
    time.sleep(0.5)
    return {"ran": scratch.marks.counts(), "status": caught(workflow.get_status, scratch.id())}


@scenario
def cancel_frees_its_cpu(workflow, scratch):
    held = hold.options(num_cpus=4).bind(scratch.marks, scratch.gate(), "held")
    workflow.run_async(held, workflow_id=scratch.id("-1"))
    scratch.marks.wait_for("held")
    workflow.cancel(scratch.id("-1"))
    other = identity.options(num_cpus=4).bind(1)
    return {"other": caught(workflow.run, other, workflow_id=scratch.id("-2"))}


@scenario
def cancel_while_get_output_waits(workflow, scratch):
    start_held(workflow, scratch)
    ref = workflow.get_output_async(scratch.id())
    time.sleep(0.2)
    workflow.cancel(scratch.id())
    return {"output": caught(ray.get, ref)}


@scenario
def cancel_a_finished_one(workflow, scratch):
    """The example of its documentation does that."""
    workflow.run(identity.bind(1), workflow_id=scratch.id())
    return {
        "answer": caught(workflow.cancel, scratch.id()),
        "status": caught(workflow.get_status, scratch.id()),
        "output": caught(workflow.get_output, scratch.id()),
    }


@scenario
def cancel_a_failed_one(workflow, scratch):
    caught(workflow.run, fail.bind(), workflow_id=scratch.id())
    return {
        "answer": caught(workflow.cancel, scratch.id()),
        "status": caught(workflow.get_status, scratch.id()),
        "listed": scratch.listed("FAILED"),
    }


@scenario
def cancel_twice(workflow, scratch):
    start_held(workflow, scratch)
    return {
        "first": caught(workflow.cancel, scratch.id()),
        "second": caught(workflow.cancel, scratch.id()),
        "status": caught(workflow.get_status, scratch.id()),
    }


@scenario
def cancel_an_unknown_one(workflow, scratch):
    return {
        "answer": caught(workflow.cancel, scratch.id()),
        "listed": scratch.listed(),
        "status": caught(workflow.get_status, scratch.id()),
    }


@scenario
def cancel_before_its_task_starts(workflow, scratch):
    """The task waits for a resource that is taken."""
    blocking = hold.options(num_cpus=4).remote(scratch.marks, scratch.gate(), "blocking")
    scratch.marks.wait_for("blocking")
    ref = workflow.run_async(mark.bind(scratch.marks, "a"), workflow_id=scratch.id())
    time.sleep(0.5)
    answer = caught(workflow.cancel, scratch.id())
    run = caught(ray.get, ref, timeout=PATIENCE / 2)
    scratch.gate().open()
    ray.get(blocking)
    time.sleep(0.5)
    return {"answer": answer, "run": run, "ran": scratch.marks.count("a")}


@scenario
def cancel_during_a_sleep(workflow, scratch):
    ref = workflow.run_async(workflow.sleep(60), workflow_id=scratch.id())
    time.sleep(1.0)
    return {
        "answer": caught(workflow.cancel, scratch.id()),
        "run": caught(ray.get, ref, timeout=PATIENCE / 2),
        "status": caught(workflow.get_status, scratch.id()),
    }


@scenario
def delete_a_finished_one(workflow, scratch):
    workflow.run(mark.bind(scratch.marks, "a"), workflow_id=scratch.id(), metadata={"k": 1})
    return {
        "answer": caught(workflow.delete, scratch.id()),
        "status": caught(workflow.get_status, scratch.id()),
        "output": caught(workflow.get_output, scratch.id()),
        "metadata": caught(workflow.get_metadata, scratch.id()),
        "listed": scratch.listed(),
        "again": caught(workflow.delete, scratch.id()),
    }


@scenario
def an_id_used_again_after_delete(workflow, scratch):
    dag = mark.options(**workflow.options(task_id="task")).bind(scratch.marks, "a")
    workflow.run(dag, workflow_id=scratch.id(), metadata={"k": 1})
    workflow.delete(scratch.id())
    again = caught(workflow.run, dag, workflow_id=scratch.id())
    return {
        "again": again,
        "task": caught(workflow.get_output, scratch.id(), task_id="task"),
        "metadata": workflow.get_metadata(scratch.id())["user_metadata"],
        "ran": scratch.marks.counts(),
    }


@scenario
def delete_a_running_one(workflow, scratch):
    ref = start_held(workflow, scratch)
    answer = caught(workflow.delete, scratch.id())
    scratch.gate().open()
    return {"answer": answer, "run": caught(ray.get, ref)}


@scenario
def delete_failed_and_canceled_ones(workflow, scratch):
    caught(workflow.run, fail.bind(), workflow_id=scratch.id("-failed"))
    workflow.run_async(nap.bind(60), workflow_id=scratch.id("-canceled"))
    time.sleep(0.3)
    workflow.cancel(scratch.id("-canceled"))
    return {
        "failed": caught(workflow.delete, scratch.id("-failed")),
        "canceled": caught(workflow.delete, scratch.id("-canceled")),
        "listed": scratch.listed(),
    }


@scenario
def delete_an_unknown_one(workflow, scratch):
    return {"answer": caught(workflow.delete, scratch.id())}
