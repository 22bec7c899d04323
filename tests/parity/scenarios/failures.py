"""Failing workflows: the errors that come out, and the siblings of a failed task."""

from __future__ import annotations

import pickle

import ray
from ray import cloudpickle

from tests.parity.kit import (
    PATIENCE,
    caught,
    cause_types,
    error_types,
    on_each,
    raised,
    scenario,
    within,
)
from tests.parity.tasks import describe, fail, fail_unless, hold, identity, mark
from tests.ray.marks import wait_until


@scenario
def a_failed_run(workflow, scratch):
    ref = workflow.run_async(fail.bind(), workflow_id=scratch.id("2"))
    return {
        "run": caught(workflow.run, fail.bind(), workflow_id=scratch.id("1")),
        "run_async": caught(ray.get, ref),
        "status": caught(workflow.get_status, scratch.id("1")),
    }


@scenario
def an_execution_error_is_caught(workflow, scratch):
    try:
        workflow.run(fail.bind(), workflow_id=scratch.id())
    except workflow.WorkflowExecutionError as error:
        return {"caught": True, "names_it": scratch.id() in str(error)}
    return {"caught": False}


@scenario
def the_cause_of_a_failure(workflow, scratch):
    error = raised(workflow.run, fail.bind(), workflow_id=scratch.id())
    return {"causes": cause_types(error)}


@scenario
def errors_are_rays_task_errors(workflow, scratch):
    """Whether what is raised is also a RayTaskError, the wrapper of errors of Ray tasks."""
    workflow.run(identity.bind(1), workflow_id=scratch.id("-done"))
    unknown = scratch.id("-unknown")
    errors = {
        "run": raised(workflow.run, fail.bind(), workflow_id=scratch.id()),
        "get_output": raised(workflow.get_output, unknown),
        "get_status": raised(workflow.get_status, unknown),
        "delete": raised(workflow.delete, unknown),
        "resume": raised(workflow.resume, unknown),
    }
    return {name: isinstance(error, ray.exceptions.RayTaskError) for name, error in errors.items()}


@scenario
def errors_pickle(workflow, scratch):
    """By pickle, for other processes, and by cloudpickle, for Ray."""
    error = raised(workflow.run, fail.bind(), workflow_id=scratch.id())
    workflow.run(identity.bind(1), workflow_id=scratch.id("-done"))
    missing = raised(workflow.get_output, scratch.id("-done"), task_id="unknown")
    return {
        "pickle": caught(lambda: error_types(pickle.loads(pickle.dumps(error)))[0]),
        "cloudpickle": caught(lambda: error_types(cloudpickle.loads(cloudpickle.dumps(error)))[0]),
        "of_a_verb": caught(lambda: str(pickle.loads(pickle.dumps(missing))) == str(missing)),
    }


@scenario
def deleting_a_running_one_says_so(workflow, scratch):
    gate = scratch.gate()
    ref = workflow.run_async(hold.bind(scratch.marks, gate, "held"), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    error = raised(workflow.delete, scratch.id())
    gate.open()
    ray.get(ref)
    return {"types": {"raises": error_types(error)}, "names_it": scratch.id() in str(error)}


@scenario
def what_follows_a_failure_does_not_run(workflow, scratch):
    failing = fail.bind(mark.bind(scratch.marks, "before"))
    caught(workflow.run, mark.bind(scratch.marks, "after", failing), workflow_id=scratch.id())
    return {"ran": scratch.marks.counts()}


@scenario
def a_sibling_of_a_failed_task(workflow, scratch):
    """It goes on; its result is kept."""
    gate = scratch.gate()
    options = workflow.options(task_id="sibling")
    sibling = hold.options(**options).bind(scratch.marks, scratch.gate("other"), "sibling")
    failing = fail_unless.bind(scratch.marks, "failing", gate)
    dag = describe.bind(sibling, failing)
    ref = workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("sibling")
    failed = caught(ray.get, ref)
    scratch.gate("other").open()
    scratch.marks.wait_for("sibling-ended")
    wait_until(
        lambda: "returns" in caught(workflow.get_output, scratch.id(), task_id="sibling"),
        "the sibling's output",
    )
    status = caught(workflow.get_status, scratch.id())
    gate.open()
    return {
        "failed": failed,
        "status": status,
        "resumed": caught(workflow.resume, scratch.id()),
        "ran": scratch.marks.counts(),
    }


@scenario
def resume_while_a_sibling_runs(workflow, scratch):
    gate = scratch.gate()
    sibling = hold.bind(scratch.marks, scratch.gate("other"), "sibling")
    dag = describe.bind(sibling, fail_unless.bind(scratch.marks, "failing", gate))
    ref = workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("sibling")
    caught(ray.get, ref)
    gate.open()
    again = workflow.resume_async(scratch.id())
    scratch.marks.wait_for("failing", 2)
    scratch.gate("other").open()
    return {"resumed": caught(ray.get, again), "failing": scratch.marks.count("failing")}


@scenario
def how_often_a_running_sibling_runs(workflow, scratch):
    """When the workflow is resumed while it still runs."""
    gate = scratch.gate()
    sibling = hold.bind(scratch.marks, scratch.gate("other"), "sibling")
    dag = describe.bind(sibling, fail_unless.bind(scratch.marks, "failing", gate))
    ref = workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("sibling")
    caught(ray.get, ref)
    gate.open()
    again = workflow.resume_async(scratch.id())
    scratch.marks.wait_for("failing", 2)
    within(lambda: scratch.marks.count("sibling") > 1, on_each(old=PATIENCE / 2, ours=2.0))
    scratch.gate("other").open()
    caught(ray.get, again)
    return {"sibling": scratch.marks.count("sibling")}


@scenario
def two_fail(workflow, scratch):
    dag = describe.bind(fail.bind(), fail.bind(), mark.bind(scratch.marks, "good"))
    return {
        "run": caught(workflow.run, dag, workflow_id=scratch.id()),
        "status": caught(workflow.get_status, scratch.id()),
    }


@scenario
def exiting_tasks(workflow, scratch):
    @ray.remote(max_retries=0)
    def leave():
        raise SystemExit(3)

    return {
        "run": caught(workflow.run, leave.bind(), workflow_id=scratch.id()),
        "status": caught(workflow.get_status, scratch.id()),
    }
