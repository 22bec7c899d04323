"""What is not accepted: no DAGs, actor nodes, bad ids, bad metadata."""

from __future__ import annotations

import ray
from ray.dag import InputNode, MultiOutputNode

from tests.parity.kit import caught, scenario
from tests.parity.tasks import add, describe, identity


@ray.remote
class Actor:
    def method(self, *args):
        return 1


@scenario
def no_dag(workflow, scratch):
    def run(dag):
        return caught(workflow.run, dag, workflow_id=scratch.id())

    with InputNode() as inputs:
        pass
    return {
        "number": run(5),
        "none": run(None),
        "function": run(lambda: 1),
        "remote_function": run(identity),
        "object_ref": run(ray.put(1)),
        "list": run([identity.bind(1)]),
        "input_node": run(inputs),
        "multiple": run(MultiOutputNode([identity.bind(1), identity.bind(2)])),
        "actor_class": run(Actor.bind()),
        "actor_method": run(Actor.bind().method.bind()),
        "run_async": caught(workflow.run_async, 5),
        "listed": scratch.listed(),
    }


@scenario
def actor_nodes_within(workflow, scratch):
    def run(dag, suffix):
        return caught(workflow.run, dag, workflow_id=scratch.id(suffix))

    handle = Actor.options(num_cpus=0).remote()
    return {
        "class": run(identity.bind(Actor.bind()), "1"),
        "method": run(identity.bind(Actor.bind().method.bind()), "2"),
        "of_a_handle": run(identity.bind(handle.method.bind()), "3"),
        "multiple": run(describe.bind(MultiOutputNode([identity.bind(1)])), "4"),
    }


@scenario
def bad_metadata(workflow, scratch):
    def run(metadata):
        return caught(workflow.run, identity.bind(1), workflow_id=scratch.id(), metadata=metadata)

    return {
        "list": run([1]),
        "text": run("text"),
        "object": run({"k": object()}),
        "bytes": run({"k": b"bytes"}),
        "set": run({"k": {1}}),
        "key": run({(1, 2): 3}),
        "listed": scratch.listed(),
    }


@scenario
def metadata_that_json_lacks(workflow, scratch):
    """NaN is no JSON."""
    nan = {"k": float("nan")}
    found = caught(workflow.run, identity.bind(1), workflow_id=scratch.id(), metadata=nan)
    return {"nan": "raises" in found}


@scenario
def ids_that_are_no_text(workflow, scratch):
    return {
        "get_status": caught(workflow.get_status, 5),
        "cancel": caught(workflow.cancel, 5),
        "get_status_none": caught(workflow.get_status, None),
    }


@scenario
def other_ids_that_are_no_text(workflow, scratch):
    return {
        "run": caught(workflow.run, identity.bind(1), workflow_id=5),
        "resume": caught(workflow.resume, 5),
        "delete": caught(workflow.delete, 5),
        "get_output": caught(workflow.get_output, 5),
        "get_metadata": caught(workflow.get_metadata, 5),
    }


@scenario
def wrong_arguments_of_tasks(workflow, scratch):
    return {
        "too_few": caught(lambda: workflow.run(add.bind(1), workflow_id=scratch.id("1"))),
        "unknown": caught(lambda: workflow.run(add.bind(1, 2, x=3), workflow_id=scratch.id("2"))),
        "listed": scratch.listed(),
    }


@scenario
def wrong_arguments_of_verbs(workflow, scratch):
    return {
        "positional_id": caught(workflow.get_output, "a", "b"),
        "no_id": caught(workflow.resume),
        "no_dag": caught(workflow.run),
    }


@scenario
def inputs_that_nobody_takes(workflow, scratch):
    """Arguments of `run` that the DAG has no use for."""
    return {"value": caught(workflow.run, identity.bind(1), 5, x=6, workflow_id=scratch.id())}
