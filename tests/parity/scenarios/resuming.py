"""Resuming workflows whose cluster lives: `resume`, `resume_async`, `resume_all`."""

from __future__ import annotations

import ray

from tests.parity.kit import caught, scenario, seen
from tests.parity.tasks import (
    add,
    continue_with,
    describe,
    fail_unless,
    fail_until,
    hold,
    identity,
    mark,
)


@scenario
def resume_a_finished_one(workflow, scratch):
    workflow.run(mark.bind(scratch.marks, "a"), workflow_id=scratch.id())
    return {
        "resume": caught(workflow.resume, scratch.id()),
        "resume_async": caught(lambda: ray.get(workflow.resume_async(scratch.id()))),
        "status": caught(workflow.get_status, scratch.id()),
        "ran": scratch.marks.counts(),
    }


@scenario
def resume_a_failed_one(workflow, scratch):
    gate = scratch.gate()
    failing = fail_unless.bind(scratch.marks, "failing", gate, mark.bind(scratch.marks, "before"))
    dag = mark.bind(scratch.marks, "after", failing)
    first = caught(workflow.run, dag, workflow_id=scratch.id())
    still = caught(workflow.resume, scratch.id())
    gate.open()
    return {
        "first": first,
        "still": still,
        "resumed": caught(workflow.resume, scratch.id()),
        "status": caught(workflow.get_status, scratch.id()),
        "ran": scratch.marks.counts(),
    }


@scenario
def resume_async_a_failed_one(workflow, scratch):
    gate = scratch.gate()
    dag = fail_unless.bind(scratch.marks, "failing", gate)
    caught(workflow.run, dag, workflow_id=scratch.id())
    gate.open()
    ref = workflow.resume_async(scratch.id())
    return {"type": seen(ref), "value": caught(ray.get, ref)}


@scenario
def resume_a_running_one(workflow, scratch):
    gate = scratch.gate()
    workflow.run_async(hold.bind(scratch.marks, gate, "held"), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    outcome = {
        "resume": caught(workflow.resume, scratch.id()),
        "resume_async": caught(workflow.resume_async, scratch.id()),
    }
    gate.open()
    return {**outcome, "output": caught(workflow.get_output, scratch.id())}


@scenario
def resume_an_unknown_one(workflow, scratch):
    return {
        "resume": caught(workflow.resume, scratch.id()),
        "resume_async": caught(workflow.resume_async, scratch.id()),
        "listed": scratch.listed(),
    }


@scenario
def resume_a_canceled_one(workflow, scratch):
    """The documentation of CANCELED says that it can't be resumed."""
    gate = scratch.gate()
    dag = hold.bind(scratch.marks, gate, "held")
    workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    workflow.cancel(scratch.id())
    gate.open()
    return {
        "resume": caught(workflow.resume, scratch.id()),
        "run": caught(workflow.run, dag, workflow_id=scratch.id()),
        "status": caught(workflow.get_status, scratch.id()),
    }


@scenario
def retries_start_anew_with_resume(workflow, scratch):
    task = fail_until.options(max_retries=1, retry_exceptions=True)
    dag = task.bind(scratch.marks, "runs", 4)
    return {
        "first": caught(workflow.run, dag, workflow_id=scratch.id()),
        "ran_first": scratch.marks.count("runs"),
        "resumed": caught(workflow.resume, scratch.id()),
        "ran": scratch.marks.count("runs"),
    }


@scenario
def resume_runs_the_recorded_dag(workflow, scratch):
    gate = scratch.gate()

    def dag(value):
        return add.bind(value, fail_unless.bind(scratch.marks, "b", gate))

    caught(workflow.run, dag("first "), workflow_id=scratch.id())
    gate.open()
    return {
        "run": caught(workflow.run, dag("second "), workflow_id=scratch.id()),
    }


@scenario
def resume_inside_a_continuation(workflow, scratch):
    gate = scratch.gate()

    def more(_):
        done = mark.bind(scratch.marks, "inner-done")
        return fail_unless.bind(scratch.marks, "inner-failing", gate, done)

    dag = continue_with.bind(more, mark.bind(scratch.marks, "before"))
    first = caught(workflow.run, dag, workflow_id=scratch.id())
    gate.open()
    return {
        "first": first,
        "resumed": caught(workflow.resume, scratch.id()),
        "ran": scratch.marks.counts(),
    }


@scenario
def resume_with_unstored_tasks(workflow, scratch):
    gate = scratch.gate()
    unstored = mark.options(**workflow.options(checkpoint=False))
    first = mark.bind(scratch.marks, "stored")
    second = unstored.bind(scratch.marks, "unstored", first)
    dag = fail_unless.bind(scratch.marks, "failing", gate, second)
    caught(workflow.run, dag, workflow_id=scratch.id())
    gate.open()
    return {
        "resumed": caught(workflow.resume, scratch.id()),
        "stored": scratch.marks.count("stored"),
        "failing": scratch.marks.count("failing"),
    }


@scenario
def how_often_unstored_tasks_run(workflow, scratch):
    """On a cluster that lives, their values are still there when it is resumed at once."""
    gate = scratch.gate()
    unstored = mark.options(**workflow.options(checkpoint=False)).bind(scratch.marks, "unstored")
    dag = fail_unless.bind(scratch.marks, "failing", gate, unstored)
    caught(workflow.run, dag, workflow_id=scratch.id())
    gate.open()
    caught(workflow.resume, scratch.id())
    return {"ran": scratch.marks.count("unstored")}


@scenario
def nested_nodes_after_resume(workflow, scratch):
    gate = scratch.gate()
    nested = [identity.bind(1), {"k": identity.bind(2)}]
    dag = describe.bind(nested, fail_unless.bind(scratch.marks, "failing", gate))
    caught(workflow.run, dag, workflow_id=scratch.id())
    gate.open()
    return {"value": caught(workflow.resume, scratch.id())}


@scenario(group="fresh")
def resume_all_finds_nothing(workflow, scratch):
    workflow.run(identity.bind(1), workflow_id=scratch.id())
    return {"resumed": seen(workflow.resume_all())}


@scenario(group="fresh")
def resume_all_with_failed_ones(workflow, scratch):
    gate = scratch.gate()
    for i in range(2):
        done = mark.bind(scratch.marks, f"done{i}")
        dag = fail_unless.bind(scratch.marks, f"failing{i}", gate, done)
        caught(workflow.run, dag, workflow_id=scratch.id(f"-failed{i}"))
    workflow.run(mark.bind(scratch.marks, "finished"), workflow_id=scratch.id("-finished"))
    held = hold.bind(scratch.marks, scratch.gate("other"), "canceled")
    workflow.run_async(held, workflow_id=scratch.id("-canceled"))
    scratch.marks.wait_for("canceled")
    workflow.cancel(scratch.id("-canceled"))
    gate.open()
    without = seen(workflow.resume_all())
    resumed = workflow.resume_all(include_failed=True)
    return {
        "without": without,
        "shape": [type(resumed).__name__, type(resumed[0]).__name__],
        "ids": sorted(i for i, _ in resumed),
        "refs": sorted(seen(ref) for _, ref in resumed),
        "values": sorted(ray.get([ref for _, ref in resumed])),
        "again": seen(workflow.resume_all(include_failed=True)),
        "ran": scratch.marks.counts(),
    }
