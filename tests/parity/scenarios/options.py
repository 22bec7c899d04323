"""Options: ours as decorator and in `.options()`, and Ray's own on workflow tasks."""

from __future__ import annotations

import os

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tests.parity.kit import caught, scenario, seen
from tests.parity.tasks import continue_with, identity


@scenario
def options_as_decorator(workflow, scratch):
    @workflow.options(task_id="decorated", metadata={"k": 1}, catch_exceptions=True)
    @ray.remote
    def decorated():
        return 1

    value = workflow.run(decorated.bind(), workflow_id=scratch.id())
    metadata = workflow.get_metadata(scratch.id(), "decorated")
    return {"value": seen(value), "metadata": metadata["user_metadata"]}


@scenario
def options_in_options(workflow, scratch):
    given = workflow.options(task_id="given", metadata={"k": 1}, catch_exceptions=True)
    value = workflow.run(identity.options(**given).bind(1), workflow_id=scratch.id())
    metadata = workflow.get_metadata(scratch.id(), "given")
    return {"value": seen(value), "metadata": metadata["user_metadata"]}


@scenario
def options_override_the_decorator(workflow, scratch):
    @workflow.options(task_id="a", metadata={"k": 1}, catch_exceptions=True)
    @ray.remote
    def decorated():
        return 1

    again = decorated.options(**workflow.options(task_id="b", catch_exceptions=False))
    value = workflow.run(again.bind(), workflow_id=scratch.id())
    metadata = caught(workflow.get_metadata, scratch.id(), "b")
    return {"value": seen(value), "metadata": metadata.get("returns", {}).get("user_metadata")}


@scenario
def rays_options_keep_the_decorators(workflow, scratch):
    @workflow.options(task_id="a", catch_exceptions=True)
    @ray.remote
    def decorated():
        return 1

    value = workflow.run(decorated.options(num_cpus=0).bind(), workflow_id=scratch.id())
    return {
        "value": seen(value),
        "cpus": workflow.get_metadata(scratch.id(), "a")["task_options"]["ray_options"]["num_cpus"],
    }


@scenario
def both_kinds_of_options_together(workflow, scratch):
    both = identity.options(num_cpus=0, **workflow.options(task_id="a"), max_retries=1)
    value = workflow.run(both.bind(1), workflow_id=scratch.id())
    options = workflow.get_metadata(scratch.id(), "a")["task_options"]
    return {
        "value": value,
        "cpus": options["ray_options"]["num_cpus"],
        "max_retries": options["max_retries"],
    }


@scenario
def options_of_a_decorated_function_elsewhere(workflow, scratch):
    """A decorated function is still an ordinary remote function."""

    @workflow.options(task_id="a")
    @ray.remote
    def decorated(value):
        return value

    return {
        "remote": caught(ray.get, decorated.remote(1)),
        "options": caught(ray.get, decorated.options(num_cpus=0).remote(2)),
        "dag": caught(lambda: ray.get(decorated.bind(3).execute())),
    }


@scenario
def the_mapping_of_options(workflow, scratch):
    return {"keys": sorted(dict(**workflow.options(task_id="a")))}


@scenario
def options_of_one_call_only(workflow, scratch):
    identity.options(**workflow.options(task_id="once"))
    workflow.run(identity.bind(1), workflow_id=scratch.id())
    return {"id": caught(workflow.get_output, scratch.id(), task_id="once")}


@scenario
def unknown_options(workflow, scratch):
    return {
        "unknown": caught(workflow.options, name="a"),
        "metadata_type": caught(workflow.options, metadata=[1]),
        "metadata_json": caught(workflow.options, metadata={"k": object()}),
        "on_a_function": caught(workflow.options(task_id="a"), lambda: None),
        "on_a_class": caught(workflow.options(task_id="a"), ray.remote(type("A", (), {}))),
    }


@scenario
def options_of_a_wrong_type(workflow, scratch):
    return {
        "task_id": "raises" in caught(workflow.options, task_id=5),
        "catch_exceptions": "raises" in caught(workflow.options, catch_exceptions="no"),
        "checkpoint": "raises" in caught(workflow.options, checkpoint="no"),
    }


@ray.remote
def environment(name):
    return os.environ.get(name)


@scenario
def runtime_env_of_a_task(workflow, scratch):
    variables = environment.options(runtime_env={"env_vars": {"PARITY_VALUE": "from the task"}})
    return {"value": workflow.run(variables.bind("PARITY_VALUE"), workflow_id=scratch.id())}


@ray.remote
def assigned():
    resources = ray.get_runtime_context().get_assigned_resources()
    return {name: amount for name, amount in resources.items() if not name.startswith("node:")}


@scenario
def resources_of_a_task(workflow, scratch):
    special = assigned.options(num_cpus=0, resources={"special": 1})
    return {
        "special": workflow.run(special.bind(), workflow_id=scratch.id("1")),
        "cpus": workflow.run(assigned.options(num_cpus=2).bind(), workflow_id=scratch.id("2")),
        "default": workflow.run(assigned.bind(), workflow_id=scratch.id("3")),
    }


@scenario
def resources_in_a_continuation(workflow, scratch):
    def special():
        return assigned.options(num_cpus=0, resources={"special": 1}).bind()

    return {"special": workflow.run(continue_with.bind(special), workflow_id=scratch.id())}


@scenario
def scheduling_strategies_by_name(workflow, scratch):
    spread = identity.options(scheduling_strategy="SPREAD")
    return {"value": caught(workflow.run, spread.bind(1), workflow_id=scratch.id())}


@scenario
def scheduling_strategy_objects(workflow, scratch):
    node_id = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    pinned = identity.options(scheduling_strategy=here)
    return {"value": caught(workflow.run, pinned.bind(1), workflow_id=scratch.id())}


@scenario
def numbers_of_returns(workflow, scratch):
    def run(count, suffix):
        dag = identity.options(num_returns=count).bind(1)
        return caught(workflow.run, dag, workflow_id=scratch.id(suffix))

    return {"one": run(1, "1"), "two": run(2, "2")}
