"""Metadata of workflows and tasks: keys, values, and when they are there."""

from __future__ import annotations

import ray

from tests.parity.kit import caught, scenario, seen, shape
from tests.parity.tasks import add, continue_with, fail, hold, identity
from tests.ray.marks import wait_until


def wait_until_seen_running(workflow, workflow_id, task_id):
    """Ours tells of a task that runs when it has run for a moment."""

    def started():
        return "start_time" in workflow.get_metadata(workflow_id, task_id)["stats"]

    wait_until(started, f"{task_id} is seen running")


def named(workflow, function, task_id, **options):
    return function.options(**workflow.options(task_id=task_id, **options))


@scenario
def metadata_of_a_workflow(workflow, scratch):
    workflow.run(identity.bind(1), workflow_id=scratch.id(), metadata={"k": [1, {"a": None}]})
    return {"metadata": shape(workflow.get_metadata(scratch.id()))}


@scenario
def metadata_of_a_workflow_without_any(workflow, scratch):
    workflow.run(identity.bind(1), workflow_id=scratch.id())
    return {"metadata": shape(workflow.get_metadata(scratch.id()))}


@scenario
def metadata_of_a_task(workflow, scratch):
    task = named(workflow, add, "task", metadata={"k": "v"})
    inputs = [named(workflow, identity, name).bind(1) for name in ("left", "right")]
    workflow.run(task.bind(*inputs), workflow_id=scratch.id())
    metadata = shape(workflow.get_metadata(scratch.id(), "task"))
    ray_options = metadata["task_options"].pop("ray_options")
    return {"metadata": metadata, "type_of_ray_options": type(ray_options).__name__}


@scenario
def ray_options_in_metadata(workflow, scratch):
    task = identity.options(num_cpus=0.5, max_retries=7, **workflow.options(task_id="task"))
    workflow.run(task.bind(1), workflow_id=scratch.id())
    options = workflow.get_metadata(scratch.id(), "task")["task_options"]
    return {
        "max_retries": options["max_retries"],
        "num_cpus": options["ray_options"].get("num_cpus"),
        "keys": sorted(options["ray_options"]),
    }


@scenario
def task_options_in_metadata(workflow, scratch):
    def options_of(suffix, function):
        workflow.run(function.bind(1), workflow_id=scratch.id(suffix))
        found = workflow.get_metadata(scratch.id(suffix), "task")["task_options"]
        del found["ray_options"]
        return found

    return {
        "default": options_of("1", named(workflow, identity, "task")),
        "catching": options_of("2", named(workflow, identity, "task", catch_exceptions=True)),
        "unstored": options_of("3", named(workflow, identity, "task", checkpoint=False)),
        "retrying": options_of(
            "4",
            identity.options(
                retry_exceptions=True, max_retries=5, **workflow.options(task_id="task")
            ),
        ),
    }


@scenario
def times_in_metadata(workflow, scratch):
    workflow.run(named(workflow, identity, "task").bind(1), workflow_id=scratch.id())
    whole = workflow.get_metadata(scratch.id())["stats"]
    task = workflow.get_metadata(scratch.id(), "task")["stats"]
    return {
        "in_order": whole["start_time"]
        <= task["start_time"]
        <= task["end_time"]
        <= whole["end_time"]
    }


@scenario
def metadata_while_running(workflow, scratch):
    gate = scratch.gate()
    done = named(workflow, identity, "done").bind(1)
    held = named(workflow, hold, "held").bind(scratch.marks, gate, "held", done)
    dag = named(workflow, identity, "waiting", metadata={"k": 1}).bind(held)
    ref = workflow.run_async(dag, workflow_id=scratch.id(), metadata={"k": "v"})
    scratch.marks.wait_for("held")
    wait_until_seen_running(workflow, scratch.id(), "held")

    def tasks():
        return {i: workflow.get_metadata(scratch.id(), i) for i in ("done", "held", "waiting")}

    during = shape(workflow.get_metadata(scratch.id()))
    stats = {i: shape(m["stats"]) for i, m in tasks().items()}
    user = {i: m["user_metadata"] for i, m in tasks().items()}
    gate.open()
    ray.get(ref)
    after = {i: shape(m["stats"]) for i, m in tasks().items()}
    return {"during": during, "tasks": stats, "user": user, "after": after}


@scenario
def metadata_of_a_failed_workflow(workflow, scratch):
    dag = named(workflow, fail, "failing").bind()
    caught(workflow.run, dag, workflow_id=scratch.id(), metadata={"k": "v"})
    return {
        "workflow": shape(workflow.get_metadata(scratch.id())),
        "task": shape(workflow.get_metadata(scratch.id(), "failing")["stats"]),
    }


@scenario
def metadata_of_a_canceled_workflow(workflow, scratch):
    dag = named(workflow, hold, "held").bind(scratch.marks, scratch.gate(), "held")
    workflow.run_async(dag, workflow_id=scratch.id(), metadata={"k": "v"})
    scratch.marks.wait_for("held")
    wait_until_seen_running(workflow, scratch.id(), "held")
    workflow.cancel(scratch.id())
    return {
        "workflow": shape(workflow.get_metadata(scratch.id())),
        "task": shape(workflow.get_metadata(scratch.id(), "held")["stats"]),
    }


@scenario
def metadata_of_tasks_in_continuations(workflow, scratch):
    def more():
        return named(workflow, identity, "inner", metadata={"k": 1}).bind(1)

    dag = named(workflow, continue_with, "outer", metadata={"k": 0}).bind(more)
    workflow.run(dag, workflow_id=scratch.id())
    found = {i: shape(workflow.get_metadata(scratch.id(), i)) for i in ("outer", "inner")}
    for metadata in found.values():
        del metadata["task_options"]
    return found


@scenario
def metadata_of_nothing(workflow, scratch):
    workflow.run(identity.bind(1), workflow_id=scratch.id())
    return {
        "workflow": caught(workflow.get_metadata, scratch.id("-unknown")),
        "task": caught(workflow.get_metadata, scratch.id(), "unknown"),
        "both": caught(workflow.get_metadata, scratch.id("-unknown"), "unknown"),
    }


@scenario
def metadata_as_json_keeps_it(workflow, scratch):
    metadata = {"tuple": (1, 2), "nested": {"t": True, "n": None, "f": 0.5}, "ä": "ö", 1: 2}
    workflow.run(identity.bind(1), workflow_id=scratch.id(), metadata=metadata)
    return {"metadata": seen(workflow.get_metadata(scratch.id())["user_metadata"])}


@scenario
def metadata_of_a_second_run(workflow, scratch):
    """With an id that exists."""
    workflow.run(identity.bind(1), workflow_id=scratch.id(), metadata={"k": "first"})
    workflow.run(identity.bind(1), workflow_id=scratch.id(), metadata={"k": "second"})
    return {"metadata": workflow.get_metadata(scratch.id())["user_metadata"]}


@scenario
def metadata_after_resume(workflow, scratch):
    dag = named(workflow, fail, "failing", metadata={"t": 1}).bind()
    caught(workflow.run, dag, workflow_id=scratch.id(), metadata={"k": "v"})
    first = workflow.get_metadata(scratch.id())["stats"]
    caught(workflow.resume, scratch.id())
    second = workflow.get_metadata(scratch.id())
    task = workflow.get_metadata(scratch.id(), "failing")
    return {
        "status": second["status"],
        "user_metadata": second["user_metadata"],
        "task": task["user_metadata"],
        "started_anew": second["stats"]["start_time"] > first["start_time"],
        "ended_anew": second["stats"]["end_time"] > first["end_time"],
    }
