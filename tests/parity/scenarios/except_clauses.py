"""What users write into `except` around waiting for a workflow, and what it catches."""

from __future__ import annotations

import os

import ray

from tests.parity.kit import raised, scenario
from tests.parity.tasks import fail, hold


class UsersError(Exception):
    """An error with an attribute of its own."""

    def __init__(self, text):
        super().__init__(text)
        self.code = 7


@ray.remote(max_retries=0)
def fail_in_a_users_way(*upstream):
    raise UsersError("on purpose")


@ray.remote(max_retries=0)
def die(*upstream):
    os._exit(1)


def clauses(workflow):
    """What users name in an `except` clause."""
    return {
        "WorkflowExecutionError": workflow.WorkflowExecutionError,
        "WorkflowCancellationError": workflow.WorkflowCancellationError,
        "WorkflowError": workflow.WorkflowError,
        "RayTaskError": ray.exceptions.RayTaskError,
        "RayError": ray.exceptions.RayError,
        "WorkerCrashedError": ray.exceptions.WorkerCrashedError,
        "GetTimeoutError": ray.exceptions.GetTimeoutError,
        "TimeoutError": TimeoutError,
        "ValueError": ValueError,
        "UsersError": UsersError,
    }


def catching(workflow, error):
    """The clauses that catch an error; and those that catch what it says is its cause, as Ray's
    errors of tasks do."""
    found = {"error": catch(workflow, error)}
    if isinstance(error, ray.exceptions.RayTaskError):
        found["cause"] = {"error": catch(workflow, error.cause)}
    return found


def catch(workflow, error):
    return [name for name, cls in clauses(workflow).items() if isinstance(error, cls)]


def each_way(workflow, scratch, dag):
    """The errors of a workflow that fails: in every way to wait for it, and when it has failed."""
    held = dag(hold.bind(scratch.marks, scratch.gate(), "held"))
    ref = workflow.run_async(held, workflow_id=scratch.id("-held"))
    scratch.marks.wait_for("held")
    output_ref = workflow.get_output_async(scratch.id("-held"))
    scratch.gate().open()
    errors = {
        "run": raised(workflow.run, dag(None), workflow_id=scratch.id()),
        "run_async": raised(ray.get, ref),
        "get_output_async": raised(ray.get, output_ref),
        "resume": raised(workflow.resume, scratch.id()),
        "get_output": raised(workflow.get_output, scratch.id()),
    }
    return {way: catching(workflow, error) for way, error in errors.items()}


@scenario
def clauses_that_catch_a_failure(workflow, scratch):
    return each_way(workflow, scratch, fail.bind)


@scenario
def clauses_that_catch_a_users_error(workflow, scratch):
    return each_way(workflow, scratch, fail_in_a_users_way.bind)


@scenario
def clauses_that_catch_a_crash(workflow, scratch):
    return each_way(workflow, scratch, die.bind)


@scenario
def clauses_that_catch_a_cancel(workflow, scratch):
    ref = workflow.run_async(
        hold.bind(scratch.marks, scratch.gate(), "held"), workflow_id=scratch.id()
    )
    scratch.marks.wait_for("held")
    output_ref = workflow.get_output_async(scratch.id())
    workflow.get_status(scratch.id())
    workflow.cancel(scratch.id())
    errors = {
        "run_async": raised(ray.get, ref),
        "get_output_async": raised(ray.get, output_ref),
        "get_output": raised(workflow.get_output, scratch.id()),
    }
    return {way: catching(workflow, error) for way, error in errors.items()}


@scenario
def clauses_that_catch_a_wait_that_is_too_long(workflow, scratch):
    """The timeout is that of `ray.get`."""
    ref = workflow.run_async(
        hold.bind(scratch.marks, scratch.gate(), "held"), workflow_id=scratch.id()
    )
    scratch.marks.wait_for("held")
    error = raised(ray.get, ref, timeout=0.1)
    scratch.gate().open()
    ray.get(ref)
    return catching(workflow, error)


@scenario
def clauses_in_a_task(workflow, scratch):
    """A task that runs a workflow that fails, and passes the error on."""

    @ray.remote(max_retries=0)
    def outer(workflow_id):
        workflow.run(fail_in_a_users_way.bind(), workflow_id=workflow_id)

    plain = raised(ray.get, outer.remote(scratch.id("-inner")))
    return catching(workflow, plain)
