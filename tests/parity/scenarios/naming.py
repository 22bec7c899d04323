"""Task ids: the default ones, chosen ones, and how equal ones are numbered."""

from __future__ import annotations

import ray

from tests.parity.kit import caught, scenario
from tests.parity.tasks import add, continue_with, describe, identity


def ids_of(workflow, workflow_id, task_id):
    """Ids of the tasks that a task takes results of, down to the first."""
    refs = workflow.get_metadata(workflow_id, task_id)["workflow_refs"]
    return {
        task_id: refs,
        **{k: v for r in refs for k, v in ids_of(workflow, workflow_id, r).items()},
    }


@scenario
def default_ids(workflow, scratch):
    workflow.run(add.bind(identity.bind(1), identity.bind(2)), workflow_id=scratch.id())
    return {"ids": ids_of(workflow, scratch.id(), "tests.parity.tasks.add")}


@scenario
def equal_ids_are_numbered(workflow, scratch):
    nodes = [identity.bind(i) for i in range(4)]
    workflow.run(describe.bind(*nodes), workflow_id=scratch.id())
    base = "tests.parity.tasks.identity"
    ids = [base, f"{base}_1", f"{base}_2", f"{base}_3", f"{base}_4"]
    return {i: caught(workflow.get_output, scratch.id(), task_id=i) for i in ids}


@scenario
def a_chain_is_numbered_from_its_start(workflow, scratch):
    node = 0
    for _ in range(3):
        node = add.bind(node, 1)
    workflow.run(node, workflow_id=scratch.id())
    base = "tests.parity.tasks.add"
    ids = [base, f"{base}_1", f"{base}_2"]
    return {i: caught(workflow.get_output, scratch.id(), task_id=i) for i in ids}


@scenario
def chosen_ids(workflow, scratch):
    chosen = identity.options(**workflow.options(task_id="chosen"))
    dag = describe.bind(chosen.bind(1), chosen.bind(2), identity.bind(3))
    workflow.run(dag, workflow_id=scratch.id())
    ids = ["chosen", "chosen_1", "tests.parity.tasks.identity"]
    return {i: caught(workflow.get_output, scratch.id(), task_id=i) for i in ids}


@scenario
def a_chosen_id_that_looks_numbered(workflow, scratch):
    """`a_1` chosen by hand, beside two tasks `a`."""
    first = identity.options(**workflow.options(task_id="a_1")).bind("by hand")
    others = [identity.options(**workflow.options(task_id="a")).bind(i) for i in range(2)]
    value = caught(workflow.run, describe.bind(first, *others), workflow_id=scratch.id())
    return {"value": value}


@scenario
def ids_of_local_functions(workflow, scratch):
    @ray.remote
    def local():
        return "local"

    anonymous = ray.remote(lambda value: value)
    workflow.run(anonymous.bind(local.bind()), workflow_id=scratch.id())
    base = "tests.parity.scenarios.naming.ids_of_local_functions.locals"
    return {
        name: caught(workflow.get_output, scratch.id(), task_id=f"{base}.{name}")
        for name in ("local", "lambda")
    }


@scenario
def ids_of_names_beyond_ascii(workflow, scratch):
    def size():
        return 1

    size.__qualname__ = "größe"
    workflow.run(ray.remote(size).bind(), workflow_id=scratch.id())
    ids = [f"tests.parity.scenarios.naming.{name}" for name in ("groe", "große", "größe", "size")]
    return {i: caught(workflow.get_output, scratch.id(), task_id=i) for i in ids}


@scenario
def ids_go_on_in_continuations(workflow, scratch):
    def more(value):
        return add.bind(value, identity.bind(10))

    dag = continue_with.bind(more, identity.bind(1))
    workflow.run(dag, workflow_id=scratch.id())
    base = "tests.parity.tasks"
    ids = [f"{base}.{n}" for n in ("continue_with", "identity", "identity_1", "add", "add_1")]
    return {i: caught(workflow.get_output, scratch.id(), task_id=i) for i in ids}


@scenario
def ids_in_two_workflows(workflow, scratch):
    for i in range(2):
        workflow.run(identity.bind(i), workflow_id=scratch.id(str(i)))
    base = "tests.parity.tasks.identity"
    return {
        "first": caught(workflow.get_output, scratch.id("0"), task_id=base),
        "second": caught(workflow.get_output, scratch.id("1"), task_id=base),
    }


@scenario
def rays_name_option_is_no_id(workflow, scratch):
    workflow.run(identity.options(name="shown").bind(1), workflow_id=scratch.id())
    return {
        "by_name": caught(workflow.get_output, scratch.id(), task_id="shown"),
        "by_id": caught(workflow.get_output, scratch.id(), task_id="tests.parity.tasks.identity"),
    }
