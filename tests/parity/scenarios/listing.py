"""Statuses: `get_status` and `list_all`."""

from __future__ import annotations

import ray

from tests.parity.kit import caught, scenario, seen
from tests.parity.tasks import fail, hold, identity


def one_of_each(workflow, scratch):
    """Workflows that are successful, failed, canceled and running."""
    workflow.run(identity.bind(1), workflow_id=scratch.id("-successful"))
    caught(workflow.run, fail.bind(), workflow_id=scratch.id("-failed"))
    for name in ("canceled", "running"):
        dag = hold.bind(scratch.marks, scratch.gate(), name)
        workflow.run_async(dag, workflow_id=scratch.id(f"-{name}"))
        scratch.marks.wait_for(name)
    workflow.cancel(scratch.id("-canceled"))


@scenario
def statuses(workflow, scratch):
    one_of_each(workflow, scratch)
    found = {
        name: caught(workflow.get_status, scratch.id(f"-{name}"))
        for name in ("successful", "failed", "canceled", "running")
    }
    scratch.gate().open()
    caught(workflow.get_output, scratch.id("-running"))
    return {**found, "then": caught(workflow.get_status, scratch.id("-running"))}


@scenario
def status_is_an_enum(workflow, scratch):
    workflow.run(identity.bind(1), workflow_id=scratch.id())
    status = workflow.get_status(scratch.id())
    (listed,) = [s for i, s in workflow.list_all() if i == scratch.id()]
    return {
        "type": type(status).__name__,
        "is_the_attribute": status is workflow.SUCCESSFUL,
        "equals_text": status == "SUCCESSFUL",
        "listed_type": type(listed).__name__,
    }


@scenario
def status_of_an_unknown_id(workflow, scratch):
    return {"status": caught(workflow.get_status, scratch.id())}


@scenario
def statuses_listed(workflow, scratch):
    one_of_each(workflow, scratch)
    status = type(workflow.RUNNING)
    filters = {
        "none": [],
        "explicit_none": [None],
        "enum": [workflow.RUNNING],
        "text": ["RUNNING"],
        "set_of_enums": [{workflow.FAILED, workflow.CANCELED}],
        "set_of_texts": [{"FAILED", "SUCCESSFUL"}],
        "mixed_set": [{"FAILED", workflow.RUNNING}],
        "empty_set": [set()],
        "all": [set(status) - {workflow.NONE}],
        "resumable": [workflow.RESUMABLE],
        "pending": [workflow.PENDING],
        "running_and_pending": [{workflow.PENDING, workflow.RUNNING}],
    }
    found = {name: sorted(scratch.listed(*args)) for name, args in filters.items()}
    scratch.gate().open()
    return found


@scenario
def lists_are_lists_of_tuples(workflow, scratch):
    workflow.run(identity.bind(1), workflow_id=scratch.id())
    listed = workflow.list_all("SUCCESSFUL")
    return {"list": type(listed).__name__, "item": type(listed[0]).__name__}


@scenario
def bad_filters(workflow, scratch):
    return {
        "unknown_text": caught(workflow.list_all, "NEVER"),
        "unknown_in_set": caught(workflow.list_all, {"NEVER"}),
        "number": caught(workflow.list_all, 5),
        "list": caught(workflow.list_all, ["RUNNING"]),
        "set_of_numbers": caught(workflow.list_all, {5}),
    }


@scenario
def the_none_status_as_filter(workflow, scratch):
    return {"none": caught(lambda: scratch.listed(workflow.NONE))}


@scenario(group="fresh")
def the_first_verb_initializes(workflow, scratch):
    return {
        "list_all": caught(workflow.list_all),
        "status": caught(workflow.get_status, "unknown"),
        "run": caught(workflow.run, identity.bind(1), workflow_id=scratch.id()),
    }


@scenario(group="fresh")
def init_again(workflow, scratch):
    return {
        "same": caught(workflow.init),
        "explicit_infinity": caught(
            workflow.init, max_running_workflows=-1, max_pending_workflows=-1
        ),
        "different": caught(workflow.init, max_running_workflows=2),
        "still": caught(workflow.run, identity.bind(1), workflow_id=scratch.id()),
    }


@scenario(group="fresh")
def bad_limits(workflow, scratch):
    return {
        f"{name}={value!r}": caught(workflow.init, **{f"max_{name}_workflows": value})
        for name, value in [
            ("running", 0),
            ("running", -2),
            ("running", "1"),
            ("running", 1.0),
            ("pending", -2),
            ("pending", "1"),
        ]
    }


@scenario(group="fresh")
def status_from_a_ray_task(workflow, scratch):
    @ray.remote
    def look():
        from tests.parity.kit import workflow as library

        return [seen(list(item)) for item in library.list_all() if item[0].startswith("status_")]

    workflow.run(identity.bind(1), workflow_id=scratch.id())
    return {"listed": caught(ray.get, look.remote())}
