"""Outputs: `get_output` and `get_output_async` of workflows and tasks in every state."""

from __future__ import annotations

import threading

import ray

from tests.parity.kit import PATIENCE, caught, ready, scenario, seen
from tests.parity.tasks import add, continue_with, fail, hold, identity, mark
from tests.ray.marks import wait_until


def named(workflow, function, task_id, **options):
    return function.options(**workflow.options(task_id=task_id, **options))


def has_asked(workflow, scratch):
    """Return when what was asked for before is being looked at. The old library's actor takes
    calls in order, and where it is slow, the workflow could be over when it comes to one."""
    workflow.get_status(scratch.id())


@scenario
def output_of_a_finished_workflow(workflow, scratch):
    workflow.run(mark.bind(scratch.marks, "a"), workflow_id=scratch.id())
    outputs = [caught(workflow.get_output, scratch.id()) for _ in range(2)]
    ref = workflow.get_output_async(scratch.id())
    return {
        "outputs": outputs,
        "type": seen(ref),
        "value": caught(ray.get, ref),
        "ran": scratch.marks.counts(),
    }


@scenario
def outputs_of_tasks(workflow, scratch):
    dag = named(workflow, add, "end").bind(named(workflow, identity, "start").bind(1), 2)
    workflow.run(dag, workflow_id=scratch.id())
    return {
        "start": caught(workflow.get_output, scratch.id(), task_id="start"),
        "end": caught(workflow.get_output, scratch.id(), task_id="end"),
        "async": caught(ray.get, workflow.get_output_async(scratch.id(), task_id="start")),
    }


@scenario
def outputs_that_never_were(workflow, scratch):
    workflow.run(identity.bind(1), workflow_id=scratch.id())

    def async_output(*args, **kwargs):
        return ray.get(workflow.get_output_async(*args, **kwargs))

    return {
        "workflow": caught(workflow.get_output, scratch.id("-unknown")),
        "task": caught(workflow.get_output, scratch.id(), task_id="unknown"),
        "both": caught(workflow.get_output, scratch.id("-unknown"), task_id="unknown"),
        "async_workflow": caught(async_output, scratch.id("-unknown")),
        "async_task": caught(async_output, scratch.id(), task_id="unknown"),
    }


@scenario
def outputs_of_a_failed_workflow(workflow, scratch):
    dag = named(workflow, fail, "failing").bind(named(workflow, identity, "done").bind(1))
    caught(workflow.run, dag, workflow_id=scratch.id())
    return {
        "workflow": caught(workflow.get_output, scratch.id()),
        "failing": caught(workflow.get_output, scratch.id(), task_id="failing"),
        "done": caught(workflow.get_output, scratch.id(), task_id="done"),
    }


@scenario
def outputs_of_a_canceled_workflow(workflow, scratch):
    done = named(workflow, identity, "done").bind(1)
    dag = named(workflow, hold, "held").bind(scratch.marks, scratch.gate(), "held", done)
    workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    workflow.cancel(scratch.id())
    return {
        "workflow": caught(workflow.get_output, scratch.id()),
        "held": caught(workflow.get_output, scratch.id(), task_id="held"),
    }


@scenario
def done_tasks_of_a_canceled_workflow(workflow, scratch):
    done = named(workflow, identity, "done").bind(1)
    dag = hold.bind(scratch.marks, scratch.gate(), "held", done)
    workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    workflow.cancel(scratch.id())
    return {"done": caught(workflow.get_output, scratch.id(), task_id="done")}


@scenario
def outputs_while_running(workflow, scratch):
    gate = scratch.gate()
    done = named(workflow, identity, "done").bind(1)
    held = named(workflow, hold, "held").bind(scratch.marks, gate, "held", done)
    workflow.run_async(named(workflow, identity, "last").bind(held), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    names = {"workflow": None, "done": "done", "held": "held", "last": "last"}
    refs = {n: workflow.get_output_async(scratch.id(), task_id=t) for n, t in names.items()}
    early = {"done": ready(refs["done"], PATIENCE / 2)}
    early |= {name: ready(ref, 0.2) for name, ref in refs.items() if name != "done"}
    gate.open()
    return {"early": early, "values": {n: caught(ray.get, r) for n, r in refs.items()}}


@scenario
def outputs_of_a_last_task_while_running(workflow, scratch):
    """A task whose only consumer has started: its value may be gone from memory."""
    gate = scratch.gate()
    done = named(workflow, identity, "done").bind("value")
    workflow.run_async(hold.bind(scratch.marks, gate, "held", done), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    first = caught(workflow.get_output, scratch.id(), task_id="done")
    gate.open()
    return {"first": first, "workflow": caught(workflow.get_output, scratch.id())}


@scenario
def blocking_get_output_while_running(workflow, scratch):
    gate = scratch.gate()
    workflow.run_async(hold.bind(scratch.marks, gate, "held"), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    found: list[object] = []
    waiting = threading.Thread(
        target=lambda: found.append(caught(workflow.get_output, scratch.id())), daemon=True
    )
    waiting.start()
    waiting.join(0.3)
    early = list(found)
    gate.open()
    waiting.join(20)
    return {"early": early, "found": found}


@scenario
def outputs_with_ray_wait(workflow, scratch):
    gates = [scratch.gate(), scratch.gate("other")]
    for i, gate in enumerate(gates):
        dag = hold.bind(scratch.marks, gate, f"held{i}")
        workflow.run_async(dag, workflow_id=scratch.id(str(i)))
        scratch.marks.wait_for(f"held{i}")
    refs = [workflow.get_output_async(scratch.id(str(i))) for i in range(2)]
    gates[1].open()
    done, waiting = ray.wait(refs, num_returns=1, timeout=PATIENCE / 2)
    outcome = {"done": [refs.index(r) for r in done], "waiting": [refs.index(r) for r in waiting]}
    gates[0].open()
    return {**outcome, "values": caught(ray.get, refs)}


@scenario
def outputs_of_a_workflow_that_fails_then(workflow, scratch):
    gate = scratch.gate()
    held = hold.bind(scratch.marks, gate, "held")
    dag = named(workflow, fail, "failing").bind(held)
    started = workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    whole = workflow.get_output_async(scratch.id())
    task = workflow.get_output_async(scratch.id(), task_id="failing")
    has_asked(workflow, scratch)
    gate.open()
    return {
        "run_async": caught(ray.get, started),
        "workflow": caught(ray.get, whole),
        "task": caught(ray.get, task),
    }


@scenario
def outputs_of_tasks_never_reached(workflow, scratch):
    """Asked for while the workflow runs, which then fails before them."""
    gate = scratch.gate()
    failing = fail.bind(hold.bind(scratch.marks, gate, "held"))
    dag = named(workflow, identity, "last").bind(failing)
    workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    ref = workflow.get_output_async(scratch.id(), task_id="last")
    has_asked(workflow, scratch)
    gate.open()
    return {"last": caught(ray.get, ref)}


@scenario
def outputs_of_unknown_tasks_while_running(workflow, scratch):
    """It may be in a continuation to come: known to be none when the workflow ends."""
    gate = scratch.gate()
    workflow.run_async(hold.bind(scratch.marks, gate, "held"), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    ref = workflow.get_output_async(scratch.id(), task_id="unknown")
    early = ready(ref, 0.3)
    gate.open()
    return {"early": early, "value": caught(ray.get, ref)}


@scenario
def outputs_of_tasks_to_come(workflow, scratch):
    """Of a continuation that does not exist yet."""
    gate = scratch.gate()

    def more(_):
        return named(workflow, identity, "inner").bind("inner value")

    dag = continue_with.bind(more, hold.bind(scratch.marks, gate, "held"))
    workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    ref = workflow.get_output_async(scratch.id(), task_id="inner")
    has_asked(workflow, scratch)
    gate.open()
    return {"value": caught(ray.get, ref)}


@scenario
def outputs_of_continuing_tasks(workflow, scratch):
    def more():
        return named(workflow, add, "inner").bind(named(workflow, identity, "deep").bind(1), 2)

    dag = identity.bind(named(workflow, continue_with, "outer").bind(more))
    workflow.run(dag, workflow_id=scratch.id())
    return {
        name: caught(workflow.get_output, scratch.id(), task_id=name)
        for name in ("outer", "inner", "deep")
    }


@scenario
def outputs_of_catching_tasks(workflow, scratch):
    good = named(workflow, identity, "good", catch_exceptions=True).bind(1)
    workflow.run(identity.bind(good), workflow_id=scratch.id())
    return {"good": caught(workflow.get_output, scratch.id(), task_id="good")}


@scenario
def outputs_of_unstored_tasks(workflow, scratch):
    dag = identity.bind(named(workflow, identity, "unstored", checkpoint=False).bind(1))
    value = workflow.run(dag, workflow_id=scratch.id())
    return {
        "value": value,
        "task": caught(workflow.get_output, scratch.id(), task_id="unstored"),
        "workflow": caught(workflow.get_output, scratch.id()),
    }


@scenario
def outputs_of_a_workflow_that_ends_unstored(workflow, scratch):
    dag = named(workflow, mark, "unstored", checkpoint=False).bind(scratch.marks, "a")
    value = caught(workflow.run, dag, workflow_id=scratch.id())
    return {"run": value, "status": seen(workflow.get_status(scratch.id()))}


@scenario
def get_output_of_a_workflow_that_ended_unstored(workflow, scratch):
    dag = named(workflow, mark, "unstored", checkpoint=False).bind(scratch.marks, "a")
    workflow.run(dag, workflow_id=scratch.id())
    return {
        "output": caught(workflow.get_output, scratch.id()),
        "resume": caught(workflow.resume, scratch.id()),
        "ran": scratch.marks.counts(),
    }


@scenario
def outputs_of_unstored_tasks_while_running(workflow, scratch):
    gate = scratch.gate()
    unstored = named(workflow, mark, "unstored", checkpoint=False).bind(scratch.marks, "a")
    other = hold.bind(scratch.marks, scratch.gate("other"), "other")
    dag = hold.bind(scratch.marks, gate, "held", unstored, other)
    ref = workflow.run_async(dag, workflow_id=scratch.id())
    scratch.marks.wait_for("a")
    scratch.marks.wait_for("other")
    first = caught(workflow.get_output, scratch.id(), task_id="unstored")
    scratch.gate("other").open()
    gate.open()
    return {"first": first, "workflow": caught(ray.get, ref)}


@scenario
def status_when_the_output_is_there(workflow, scratch):
    """A driver that has the output sees the workflow finished."""
    statuses = set()
    for i in range(5):
        workflow.run(identity.bind(i), workflow_id=scratch.id(str(i)))
        statuses.add(seen(workflow.get_status(scratch.id(str(i)))))
    return {"statuses": sorted(statuses)}


@scenario
def outputs_from_a_ray_task(workflow, scratch):
    @ray.remote
    def look(workflow_id):
        from tests.parity.kit import workflow as library

        return library.get_output(workflow_id), str(library.get_status(workflow_id).value)

    workflow.run(identity.bind(1), workflow_id=scratch.id())
    return {"value": caught(ray.get, look.remote(scratch.id()))}


@scenario
def outputs_while_others_wait(workflow, scratch):
    """Two that wait for one workflow both get it."""
    gate = scratch.gate()
    workflow.run_async(hold.bind(scratch.marks, gate, "held"), workflow_id=scratch.id())
    scratch.marks.wait_for("held")
    refs = [workflow.get_output_async(scratch.id()) for _ in range(3)]
    has_asked(workflow, scratch)
    gate.open()
    wait_until(lambda: all(ready(ref) for ref in refs), "all refs")
    return {"values": ray.get(refs)}
