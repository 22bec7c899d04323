"""Running: `run`, `run_async`, inputs, ids that were used before, where workflows may start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import Any

import ray
from ray.dag import InputNode

from tests.parity.kit import (
    LIBRARY,
    PATIENCE,
    caught,
    ready,
    scenario,
    seen,
    without_random,
    workflow,
)
from tests.parity.tasks import add, describe, fail, fail_unless, hold, identity, mark


@scenario
def run_returns_the_output(workflow, scratch):
    dag = add.bind(add.bind(1, 2), identity.bind(3))
    return {"value": caught(workflow.run, dag, workflow_id=scratch.id())}


@scenario
def run_async_returns_a_ref(workflow, scratch):
    gate = scratch.gate()
    ref = workflow.run_async(hold.bind(scratch.marks, gate, "held"), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    outcome = {"type": seen(ref), "ready_while_running": ready(ref)}
    gate.open()
    return {**outcome, "ready_then": ready(ref, PATIENCE / 2), "value": ray.get(ref)}


@scenario
def a_shared_node_runs_once(workflow, scratch):
    shared = mark.bind(scratch.marks, "shared")
    left, right = mark.bind(scratch.marks, "l", shared), mark.bind(scratch.marks, "r", shared)
    workflow.run(mark.bind(scratch.marks, "end", left, right, shared), workflow_id=scratch.id())
    return {"ran": scratch.marks.counts()}


@scenario
def equal_nodes_run_each(workflow, scratch):
    dag = describe.bind(mark.bind(scratch.marks, "m"), mark.bind(scratch.marks, "m"))
    workflow.run(dag, workflow_id=scratch.id())
    return {"ran": scratch.marks.counts()}


@scenario
def arguments_arrive_as_bound(workflow, scratch):
    @ray.remote
    def signature(a, b=2, *rest, c, d=4, **more):
        return [a, b, list(rest), c, d, more]

    return {
        "defaults": workflow.run(signature.bind(1, c=3), workflow_id=scratch.id("1")),
        "all": workflow.run(signature.bind(1, 5, 6, c=7, d=8, e=9), workflow_id=scratch.id("2")),
        "nodes": workflow.run(
            signature.bind(identity.bind(1), c=identity.bind(3), e=identity.bind(9)),
            workflow_id=scratch.id("3"),
        ),
    }


@scenario
def inputs_by_position_and_name(workflow, scratch):
    with InputNode() as inputs:
        dag = describe.bind(inputs[0], inputs[1], named=inputs.x, item=inputs["x"])
    return {"value": caught(workflow.run, dag, 1, 2, x=[3], workflow_id=scratch.id())}


@scenario
def inputs_below_the_root(workflow, scratch):
    with InputNode() as inputs:
        dag = add.bind(add.bind(inputs[0], 10), inputs.x)
    return {"value": caught(workflow.run, dag, 1, x=100, workflow_id=scratch.id())}


@scenario
def inputs_of_run_async(workflow, scratch):
    with InputNode() as inputs:
        dag = add.bind(inputs[0], inputs.x)
    ref = workflow.run_async(dag, 1, x=2, workflow_id=scratch.id())
    return {"value": caught(ray.get, ref)}


@scenario
def a_bare_input(workflow, scratch):
    with InputNode() as inputs:
        dag = describe.bind(inputs)
    return {"value": caught(workflow.run, dag, 5, workflow_id=scratch.id())}


@scenario
def an_input_that_is_missing(workflow, scratch):
    with InputNode() as inputs:
        positional, named = identity.bind(inputs[0]), identity.bind(inputs.x)
    return {
        "positional": caught(workflow.run, positional, workflow_id=scratch.id("1")),
        "named": caught(workflow.run, named, workflow_id=scratch.id("2")),
        "listed": scratch.listed(),
    }


@scenario
def inputs_survive_a_failure(workflow, scratch):
    gate = scratch.gate()
    with InputNode() as inputs:
        dag = add.bind(inputs[0], fail_unless.bind(scratch.marks, inputs.x, gate))
    first = caught(workflow.run, dag, "a", x="b", workflow_id=scratch.id())
    gate.open()
    return {"first": first, "resumed": caught(workflow.resume, scratch.id())}


@scenario
def generated_ids(workflow, scratch):
    before = {i for i, _ in workflow.list_all()}
    workflow.run(identity.bind(1))
    (made,) = {i for i, _ in workflow.list_all()} - before
    return {"id": without_random(made)}


@scenario
def ids_may_contain(workflow, scratch):
    ids = [scratch.id(s) for s in (" space", ".dot", "-ä", "@x", "=1,2", "%41", "'quoted'")]
    return {
        i: [caught(workflow.run, identity.bind(1), workflow_id=i), caught(workflow.get_status, i)]
        for i in ids
    } | {"listed": sorted(scratch.listed())}


@scenario
def run_with_a_finished_id(workflow, scratch):
    first = workflow.run(mark.bind(scratch.marks, "a"), workflow_id=scratch.id())
    again = caught(workflow.run, mark.bind(scratch.marks, "a"), workflow_id=scratch.id())
    return {"first": first, "again": again, "ran": scratch.marks.counts()}


@scenario
def run_with_a_finished_id_and_another_dag(workflow, scratch):
    workflow.run(mark.bind(scratch.marks, "a"), workflow_id=scratch.id())
    again = caught(workflow.run, mark.bind(scratch.marks, "b"), workflow_id=scratch.id())
    return {"again": again, "ran": scratch.marks.counts()}


@scenario
def run_with_a_failed_id(workflow, scratch):
    gate = scratch.gate()

    def run():
        done = mark.bind(scratch.marks, "done")
        dag = fail_unless.bind(scratch.marks, "failing", gate, done)
        return workflow.run(dag, workflow_id=scratch.id())

    first = caught(run)
    gate.open()
    return {"first": first, "again": caught(run), "ran": scratch.marks.counts()}


@scenario
def run_with_a_running_id(workflow, scratch):
    gate = scratch.gate()
    dag = hold.bind(scratch.marks, gate, "held")
    ref = workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    again = caught(workflow.run, dag, workflow_id=scratch.id())
    again_async = caught(workflow.run_async, dag, workflow_id=scratch.id())
    gate.open()
    return {
        "again": again,
        "again_async": again_async,
        "value": caught(ray.get, ref),
        "ran": scratch.marks.counts(),
    }


@scenario
def run_twice_the_same_dag(workflow, scratch):
    dag = mark.bind(scratch.marks, "a")
    values = [workflow.run(dag, workflow_id=scratch.id(str(i))) for i in range(2)]
    return {"values": values, "ran": scratch.marks.counts()}


@scenario
def many_at_once(workflow, scratch):
    refs = [
        workflow.run_async(add.bind(identity.bind(i), 1), workflow_id=scratch.id(str(i)))
        for i in range(6)
    ]
    return {"values": ray.get(refs), "listed": sorted(scratch.listed())}


@scenario
def arguments_changed_after_bind(workflow, scratch):
    """What counts is the argument when the workflow is started."""
    gate = scratch.gate()
    argument = [1]
    dag = describe.bind(argument, hold.bind(scratch.marks, gate, "held"))
    argument.append(2)
    ref = workflow.run_async(dag, workflow_id=scratch.id())
    argument.append(3)
    gate.open()
    return {"value": ray.get(ref)}


@scenario
def arguments_changed_by_a_task(workflow, scratch):
    @ray.remote
    def append(items, _):
        items.append(1)
        return len(items)

    argument: list[int] = []
    first = append.bind(argument, None)
    value = workflow.run(append.bind(argument, first), workflow_id=scratch.id())
    return {"value": value, "argument": argument}


@ray.remote
def start_another(workflow_id: str, value: Any) -> Any:
    return workflow.run(identity.bind(value), workflow_id=workflow_id)


@scenario
def a_workflow_started_by_a_task(workflow, scratch):
    inner = scratch.id("-inner")
    value = caught(workflow.run, start_another.bind(inner, 7), workflow_id=scratch.id())
    return {"value": value, "inner": caught(workflow.get_output, inner), "ids": scratch.listed()}


@scenario
def a_workflow_started_by_a_ray_task(workflow, scratch):
    value = caught(ray.get, start_another.remote(scratch.id(), 7))
    return {"value": value, "output": caught(workflow.get_output, scratch.id())}


DRIVER = """
import os, sys, ray
from pathlib import Path
from tests.parity.kit import Scratch, workflow
from tests.parity.tasks import describe, hold
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
scratch = Scratch(Path(sys.argv[1]), sys.argv[2])
held = hold.bind(scratch.marks, scratch.gate(), "held")
refs = [ray.put(bytes(300_000))] if sys.argv[3] == "refs" else []
workflow.run_async(describe.bind(refs, *refs, held), workflow_id=scratch.id())
scratch.marks.wait_for("held")
os._exit(0)
"""


def run_driver(scratch, kind):
    """Start a workflow from a process that is gone when this returns.

    It waits for the first task: the old library lost a workflow whose driver died just after
    `run_async`, in some runs.
    """
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_ADDRESS": address, "PARITY_LIBRARY": LIBRARY}
    arguments = [str(scratch.path.parent), scratch.name, kind]
    subprocess.run([sys.executable, "-c", DRIVER, *arguments], env=environment, check=True)
    time.sleep(1.0)  # Until Ray has noticed.
    scratch.gate().open()


@scenario
def its_driver_ends(workflow, scratch):
    """A workflow outlives the driver that started it."""
    run_driver(scratch, "plain")
    return {
        "output": caught(workflow.get_output, scratch.id()),
        "status": seen(workflow.get_status(scratch.id())),
        "ran": scratch.marks.counts(),
    }


@scenario
def refs_of_a_driver_that_ended(workflow, scratch):
    run_driver(scratch, "refs")
    return {"output": caught(workflow.get_output, scratch.id())}


@scenario
def ids_are_cut_off_at_nothing(workflow, scratch):
    long = scratch.id("-" + "x" * 150)
    workflow.run(identity.bind(1), workflow_id=long)
    return {"listed": [i == long for i, _ in scratch.listed()]}


@scenario
def refs_with_ray_wait(workflow, scratch):
    gate = scratch.gate()
    slow = workflow.run_async(hold.bind(scratch.marks, gate, "held"), workflow_id=scratch.id("1"))
    fast = workflow.run_async(identity.bind(1), workflow_id=scratch.id("2"))
    done, waiting = ray.wait([slow, fast], num_returns=1, timeout=PATIENCE / 2)
    gate.open()
    return {"done": done == [fast], "waiting": waiting == [slow], "values": ray.get([slow, fast])}


@scenario
def refs_in_asyncio(workflow, scratch):
    async def gather():
        refs = [
            workflow.run_async(identity.bind(i), workflow_id=scratch.id(str(i))) for i in range(2)
        ]
        return await asyncio.gather(*refs)

    async def failing():
        return await workflow.run_async(fail.bind(), workflow_id=scratch.id("-failing"))

    return {
        "values": caught(asyncio.run, gather()),
        "error": caught(asyncio.run, failing()),
    }


@scenario
def refs_as_arguments_of_ray_tasks(workflow, scratch):
    good = workflow.run_async(identity.bind(1), workflow_id=scratch.id("-good"))
    bad = workflow.run_async(fail.bind(), workflow_id=scratch.id("-bad"))
    return {
        "good": caught(ray.get, add.remote(good, 1)),
        "in_a_list": caught(ray.get, describe.remote([good])),
        "bad": "raises" in caught(ray.get, add.remote(bad, 1)),
    }


@scenario
def refs_as_arguments_of_workflows(workflow, scratch):
    """The output of one workflow as an argument of the next."""
    first = workflow.run_async(identity.bind("first"), workflow_id=scratch.id("1"))
    dag = describe.bind(first, [first])
    return {"value": caught(workflow.run, dag, workflow_id=scratch.id("2"))}


@scenario
def refs_can_be_had_twice(workflow, scratch):
    ref = workflow.run_async(fail.bind(), workflow_id=scratch.id())
    return {"first": caught(ray.get, ref), "second": caught(ray.get, ref)}


@scenario
def a_workflow_started_by_an_actor(workflow, scratch):
    @ray.remote(num_cpus=0)
    class Starter:
        def start(self, workflow_id):
            from tests.parity.kit import workflow as library

            return library.run(identity.bind("by an actor"), workflow_id=workflow_id)

    starter = Starter.remote()
    return {"value": caught(ray.get, starter.start.remote(scratch.id()))}


@scenario
def ray_tasks_within_tasks(workflow, scratch):
    @ray.remote
    def outer(n):
        return sum(ray.get([identity.remote(i) for i in range(n)]))

    return {"value": caught(workflow.run, outer.bind(4), workflow_id=scratch.id())}


@scenario
def more_tasks_than_cpus(workflow, scratch):
    nodes = [identity.bind(i) for i in range(20)]
    return {"value": workflow.run(describe.bind(*nodes), workflow_id=scratch.id())}
