"""After `kill -9` of a whole cluster: what is there, what resumes, what runs again.

The first half of each runs on a cluster that is killed; the second on a new one, with the same
storage. Tasks that wait for a gate are running when the cluster dies.
"""

from __future__ import annotations

import time

import ray
from ray.dag import InputNode

from tests.parity.kit import caught, scenario, seen, shape
from tests.parity.scenarios.events import Listener, event_of
from tests.parity.tasks import (
    continue_with,
    describe,
    fail,
    fail_until,
    identity,
    mark,
)
from tests.parity.tasks import hold as hold_a_cpu

# All that are running when the cluster dies run at the same time.
hold = hold_a_cpu.options(num_cpus=0)


def start_held(workflow, scratch, dag_of, suffix=""):
    """Start a workflow, and return when the task that waits for the gate is running."""
    held = hold.bind(scratch.marks, scratch.gate(), f"held{suffix}")
    workflow.run_async(dag_of(held), workflow_id=scratch.id(suffix), metadata={"k": "v"})
    scratch.marks.wait_for(f"held{suffix}")


@scenario(group="crash")
def killed_while_running(workflow, scratch):
    def dag(held):
        return mark.bind(scratch.marks, "after", mark.bind(scratch.marks, "before"), held)

    workflow.run(mark.bind(scratch.marks, "done"), workflow_id=scratch.id("-finished"))
    caught(workflow.run, fail.bind(), workflow_id=scratch.id("-failed"))
    start_held(workflow, scratch, dag)
    scratch.marks.wait_for("before")
    time.sleep(0.5)  # Its result is stored some moments after it ran.


@killed_while_running.after_the_crash
def killed_while_running_then(workflow, scratch):
    scratch.gate().open()
    outcome = {
        "status": caught(workflow.get_status, scratch.id()),
        "listed": sorted(scratch.listed()),
        "resumable": scratch.listed("RESUMABLE"),
        "running": scratch.listed("RUNNING"),
        "finished": caught(workflow.get_output, scratch.id("-finished")),
        "failed": caught(workflow.get_status, scratch.id("-failed")),
        "resumed": caught(workflow.resume, scratch.id()),
        "then": caught(workflow.get_status, scratch.id()),
        "metadata": workflow.get_metadata(scratch.id())["user_metadata"],
    }
    return {**outcome, "ran": scratch.marks.counts()}


@scenario(group="crash")
def outputs_of_an_interrupted_one(workflow, scratch):
    def dag(held):
        done = identity.options(**workflow.options(task_id="done")).bind("done")
        return describe.bind(done, hold_named(held))

    def hold_named(held):
        return identity.bind(held)

    start_held(workflow, scratch, dag)
    workflow.get_output(scratch.id(), task_id="done")


@outputs_of_an_interrupted_one.after_the_crash
def outputs_of_an_interrupted_one_then(workflow, scratch):
    return {
        "workflow": caught(workflow.get_output, scratch.id()),
        "done": caught(workflow.get_output, scratch.id(), task_id="done"),
        "held": caught(workflow.get_output, scratch.id(), task_id="tests.parity.tasks.hold"),
    }


@scenario(group="crash")
def metadata_of_an_interrupted_one(workflow, scratch):
    start_held(workflow, scratch, identity.bind)


@metadata_of_an_interrupted_one.after_the_crash
def metadata_of_an_interrupted_one_then(workflow, scratch):
    metadata = shape(workflow.get_metadata(scratch.id()))
    return {"agree": metadata.pop("status") == workflow.get_status(scratch.id()), "else": metadata}


@scenario(group="crash")
def run_with_an_interrupted_id(workflow, scratch):
    start_held(workflow, scratch, identity.bind)


@run_with_an_interrupted_id.after_the_crash
def run_with_an_interrupted_id_then(workflow, scratch):
    scratch.gate().open()
    dag = identity.bind("another")
    return {
        "run": caught(workflow.run, dag, workflow_id=scratch.id()),
        "ran": scratch.marks.counts(),
    }


@scenario(group="crash")
def cancel_and_delete_interrupted_ones(workflow, scratch):
    for suffix in ("-canceled", "-deleted"):
        start_held(workflow, scratch, identity.bind, suffix)


@cancel_and_delete_interrupted_ones.after_the_crash
def cancel_and_delete_interrupted_ones_then(workflow, scratch):
    return {
        "cancel": caught(workflow.cancel, scratch.id("-canceled")),
        "status": caught(workflow.get_status, scratch.id("-canceled")),
        "delete": caught(workflow.delete, scratch.id("-deleted")),
        "deleted": caught(workflow.get_status, scratch.id("-deleted")),
        "listed": scratch.listed(),
    }


@scenario(group="crash")
def arguments_after_a_crash(workflow, scratch):
    with InputNode() as inputs:
        held = hold.bind(scratch.marks, scratch.gate(), "held")
        dag = describe.bind([1, {"k": 2}], inputs[0], inputs.x, held)
    workflow.run_async(dag, "positional", x="named", workflow_id=scratch.id())
    scratch.marks.wait_for("held")


@arguments_after_a_crash.after_the_crash
def arguments_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id())}


@scenario(group="crash")
def refs_as_arguments_after_a_crash(workflow, scratch):
    ref = ray.put("top")
    inner = [ray.put("inside")]
    start_held(workflow, scratch, lambda held: describe.bind(ref, inner, held))


@refs_as_arguments_after_a_crash.after_the_crash
def refs_as_arguments_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id())}


@scenario(group="crash")
def refs_in_results_after_a_crash(workflow, scratch):
    @ray.remote
    def make():
        return [ray.put("inside")]

    @ray.remote
    def take(made, held):
        return ray.get(made[0])

    start_held(workflow, scratch, lambda held: take.bind(make.bind(), held))
    time.sleep(0.5)


@refs_in_results_after_a_crash.after_the_crash
def refs_in_results_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id())}


@scenario(group="crash")
def nested_nodes_after_a_crash(workflow, scratch):
    start_held(workflow, scratch, lambda held: describe.bind([identity.bind(1)], held))
    time.sleep(0.5)


@nested_nodes_after_a_crash.after_the_crash
def nested_nodes_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id())}


@scenario(group="crash")
def continuations_after_a_crash(workflow, scratch):
    def more(_):
        held = hold.bind(scratch.marks, scratch.gate(), "held")
        return describe.bind(mark.bind(scratch.marks, "inner"), held)

    dag = continue_with.bind(more, mark.bind(scratch.marks, "before"))
    workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    scratch.marks.wait_for("inner")
    time.sleep(0.5)


@continuations_after_a_crash.after_the_crash
def continuations_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id()), "ran": scratch.marks.counts()}


@scenario(group="crash")
def unstored_results_after_a_crash(workflow, scratch):
    unstored = mark.options(**workflow.options(checkpoint=False))

    def dag(held):
        return mark.bind(scratch.marks, "after", unstored.bind(scratch.marks, "unstored"), held)

    start_held(workflow, scratch, dag)
    scratch.marks.wait_for("unstored")


@unstored_results_after_a_crash.after_the_crash
def unstored_results_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id()), "ran": scratch.marks.counts()}


@scenario(group="crash")
def caught_errors_after_a_crash(workflow, scratch):
    catching = fail_until.options(**workflow.options(catch_exceptions=True))

    def dag(held):
        return describe.bind(catching.bind(scratch.marks, "caught", 2), held)

    start_held(workflow, scratch, dag)
    scratch.marks.wait_for("caught")
    time.sleep(0.5)


@caught_errors_after_a_crash.after_the_crash
def caught_errors_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id()), "ran": scratch.marks.counts()}


@scenario(group="crash")
def events_after_a_crash(workflow, scratch):
    scratch.gate("other").open()
    received = workflow.wait_for_event(Listener, scratch.marks, scratch.gate("other"), "received")
    start_held(workflow, scratch, lambda held: describe.bind(event_of.bind(received), held))
    scratch.marks.wait_for("checkpointed received")
    time.sleep(0.5)


@events_after_a_crash.after_the_crash
def events_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id()), "ran": scratch.marks.counts()}


@scenario(group="crash")
def awaited_events_after_a_crash(workflow, scratch):
    event = workflow.wait_for_event(Listener, scratch.marks, scratch.gate(), "late")
    workflow.run_async(event_of.bind(event), workflow_id=scratch.id())
    scratch.marks.wait_for("polled")


@awaited_events_after_a_crash.after_the_crash
def awaited_events_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id()), "ran": scratch.marks.counts()}


@scenario(group="crash")
def sleeps_after_a_crash(workflow, scratch):
    """The deadline is that of the first run."""
    workflow.run_async(
        mark.bind(scratch.marks, "after", workflow.sleep(15.0)), workflow_id=scratch.id()
    )
    time.sleep(1.5)


@sleeps_after_a_crash.after_the_crash
def sleeps_after_a_crash_then(workflow, scratch):
    before = time.time()
    resumed = caught(workflow.resume, scratch.id())
    return {"resumed": resumed, "soon": time.time() - before < 14.0}


@scenario(group="crash")
def large_results_after_a_crash(workflow, scratch):
    @ray.remote
    def make():
        return bytes(1_000_000)

    @ray.remote
    def size(data, held):
        return len(data)

    start_held(workflow, scratch, lambda held: size.bind(make.bind(), held))
    time.sleep(0.5)


@large_results_after_a_crash.after_the_crash
def large_results_after_a_crash_then(workflow, scratch):
    scratch.gate().open()
    return {"resumed": caught(workflow.resume, scratch.id())}


@scenario(group="crash_limits")
def resume_all_after_a_crash(workflow, scratch):
    """One was running, two were waiting; their names sort the other way round."""
    start_held(workflow, scratch, identity.bind, "-z-running")
    for suffix in ("-b-pending", "-a-pending"):
        dag = mark.bind(scratch.marks, suffix)
        workflow.run_async(dag, workflow_id=scratch.id(suffix))


@resume_all_after_a_crash.after_the_crash
def resume_all_after_a_crash_then(workflow, scratch):
    statuses = {
        suffix: caught(workflow.get_status, scratch.id(suffix))
        for suffix in ("-z-running", "-b-pending", "-a-pending")
    }
    listed = scratch.listed("RESUMABLE")
    scratch.gate().open()
    resumed = workflow.resume_all()
    return {
        "statuses": statuses,
        "listed_first": listed[0],
        "listed": sorted(listed),
        "resumed_first": resumed[0][0],
        "resumed": sorted(i for i, _ in resumed),
        "refs": sorted({seen(ref) for _, ref in resumed}),
        "values": sorted(ray.get([ref for _, ref in resumed])),
        "then": sorted(scratch.listed()),
        "ran": scratch.marks.counts(),
    }
