"""Limits: `max_running_workflows`, `max_pending_workflows`, PENDING, and `queue.Full`."""

from __future__ import annotations

import ray

from tests.parity.kit import caught, ready, scenario, shape
from tests.parity.tasks import hold, identity, mark


def fill(workflow, scratch, pending):
    """Start one workflow that runs, and this many that wait."""
    refs = []
    for i in range(pending + 1):
        dag = hold.bind(scratch.marks, scratch.gate(), f"held{i}")
        refs.append(workflow.run_async(dag, workflow_id=scratch.id(str(i))))
        if i == 0:
            scratch.marks.wait_for("held0")
    return refs


@scenario(group="limits")
def workflows_wait(workflow, scratch):
    refs = fill(workflow, scratch, 2)
    statuses = [caught(workflow.get_status, scratch.id(str(i))) for i in range(3)]
    outcome = {
        "statuses": statuses,
        "listed": sorted(scratch.listed()),
        "pending": sorted(scratch.listed(workflow.PENDING)),
        "running": scratch.listed(workflow.RUNNING),
        "ran": scratch.marks.counts(),
    }
    scratch.gate().open()
    return {**outcome, "values": ray.get(refs), "then": sorted(scratch.listed())}


@scenario(group="limits")
def the_queue_is_full(workflow, scratch):
    refs = fill(workflow, scratch, 2)
    full = caught(workflow.run_async, identity.bind(1), workflow_id=scratch.id("-more"))
    run = caught(workflow.run, identity.bind(1), workflow_id=scratch.id("-more-still"))
    scratch.gate().open()
    ray.get(refs)
    return {
        "run_async": full,
        "run": run,
        "later": caught(workflow.run, identity.bind(1), workflow_id=scratch.id("-later")),
    }


@scenario(group="limits")
def what_the_full_queue_leaves(workflow, scratch):
    """A workflow that was refused is not there; its id is free."""
    refs = fill(workflow, scratch, 2)
    caught(workflow.run_async, mark.bind(scratch.marks, "a"), workflow_id=scratch.id("-more"))
    status = caught(workflow.get_status, scratch.id("-more"))
    metadata = caught(workflow.get_metadata, scratch.id("-more"))
    scratch.gate().open()
    ray.get(refs)
    return {
        "status": status,
        "metadata": metadata,
        "again": caught(
            workflow.run, mark.bind(scratch.marks, "a"), workflow_id=scratch.id("-more")
        ),
    }


@scenario(group="limits")
def first_come_first_served(workflow, scratch):
    refs = fill(workflow, scratch, 0)
    for i in range(2):
        dag = mark.bind(scratch.marks, "order", i)
        refs.append(workflow.run_async(dag, workflow_id=scratch.id(f"-pending{i}")))
    scratch.gate().open()
    ray.get(refs)
    starts = [
        workflow.get_metadata(scratch.id(f"-pending{i}"))["stats"]["start_time"] for i in range(2)
    ]
    return {"in_order": starts[0] < starts[1]}


@scenario(group="limits")
def verbs_on_a_pending_one(workflow, scratch):
    refs = fill(workflow, scratch, 1)
    pending = scratch.id("1")
    dag = mark.bind(scratch.marks, "a")
    outcome = {
        "run": caught(workflow.run, dag, workflow_id=pending),
        "resume": caught(workflow.resume, pending),
        "delete": caught(workflow.delete, pending),
        "metadata": shape(workflow.get_metadata(pending)),
    }
    output = workflow.get_output_async(pending)
    outcome["output_ready"] = ready(output, 0.3)
    scratch.gate().open()
    return {**outcome, "output": caught(ray.get, output), "refs": ray.get(refs)}


@scenario(group="limits")
def limits_asked_for_again(workflow, scratch):
    return {
        "none": caught(workflow.init),
        "same": caught(workflow.init, max_running_workflows=1, max_pending_workflows=2),
        "other_running": caught(workflow.init, max_running_workflows=5),
        "other_pending": caught(workflow.init, max_pending_workflows=5),
        "infinite": caught(workflow.init, max_running_workflows=-1),
    }


@scenario(group="limits")
def a_failed_one_makes_room(workflow, scratch):
    @ray.remote
    def fail_later(gate):
        gate.wait()
        raise ValueError("on purpose")

    first = workflow.run_async(fail_later.bind(scratch.gate()), workflow_id=scratch.id("1"))
    second = workflow.run_async(identity.bind(1), workflow_id=scratch.id("2"))
    scratch.gate().open()
    return {"first": caught(ray.get, first), "second": caught(ray.get, second)}


@scenario(group="limits")
def a_canceled_one_makes_room(workflow, scratch):
    refs = fill(workflow, scratch, 0)
    second = workflow.run_async(identity.bind(1), workflow_id=scratch.id("-second"))
    workflow.cancel(scratch.id("0"))
    return {"first": caught(ray.get, refs[0]), "second": caught(ray.get, second)}


@scenario(group="limits", old_hangs=5.0)
def cancel_a_pending_one(workflow, scratch):
    """The last of its cluster: what hangs here would hold up others."""
    refs = fill(workflow, scratch, 1)
    answer = caught(workflow.cancel, scratch.id("1"))
    status = caught(workflow.get_status, scratch.id("1"))
    run = caught(ray.get, refs[1])
    scratch.gate().open()
    return {
        "answer": answer,
        "status": status,
        "run": run,
        "other": caught(ray.get, refs[0]),
        "ran": scratch.marks.counts(),
    }


@scenario(group="no_queue")
def no_pending_workflows(workflow, scratch):
    """max_pending_workflows=0: none may wait."""
    refs = fill(workflow, scratch, 0)
    second = caught(workflow.run_async, identity.bind(1), workflow_id=scratch.id("-second"))
    scratch.gate().open()
    return {"second": second, "first": ray.get(refs)}
