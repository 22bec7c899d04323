"""Events: listeners, timers, and what happens when their results are stored."""

from __future__ import annotations

import asyncio
import os
import time

import ray

from tests.parity.kit import (
    LIBRARY,
    PATIENCE,
    caught,
    on_each,
    scenario,
    seen,
    within,
    workflow,
)
from tests.parity.tasks import describe, fail_unless, identity, mark

if LIBRARY == "ray.workflow":
    from ray.workflow.event_listener import TimerListener
else:
    from ray_workflows import TimerListener


class Listener(workflow.EventListener):
    """Returns when the gate is open; notes what is called."""

    async def poll_for_event(self, marks, gate, event="event"):
        marks.add("polled")
        while not os.path.exists(gate.path):
            await asyncio.sleep(0.02)
        self.marks = marks
        return [marks, event]

    async def event_checkpointed(self, event):
        marks, event = event
        marks.add(f"checkpointed {event}")


class Silent(workflow.EventListener):
    async def poll_for_event(self, event):
        return event


class Failing(workflow.EventListener):
    async def poll_for_event(self):
        raise ValueError("no event")


class FailingLater(workflow.EventListener):
    async def poll_for_event(self):
        return "event"

    async def event_checkpointed(self, event):
        raise ValueError("not acknowledged")


@ray.remote
def event_of(pair):
    return pair[1]


@scenario
def an_event(workflow, scratch):
    event = workflow.wait_for_event(Listener, scratch.marks, scratch.gate())
    ref = workflow.run_async(event_of.bind(event), workflow_id=scratch.id())
    scratch.marks.wait_for("polled")
    status = caught(workflow.get_status, scratch.id())
    scratch.gate().open()
    return {"status": status, "value": ray.get(ref), "ran": scratch.marks.counts()}


@scenario
def an_event_is_a_dag(workflow, scratch):
    from ray.dag import DAGNode

    return {
        "event": isinstance(workflow.wait_for_event(Silent, 1), DAGNode),
        "sleep": isinstance(workflow.sleep(1), DAGNode),
        "run": caught(
            workflow.run, workflow.wait_for_event(Silent, "alone"), workflow_id=scratch.id()
        ),
    }


@scenario
def arguments_of_listeners(workflow, scratch):
    class Echo(workflow.EventListener):
        async def poll_for_event(self, *args, **kwargs):
            return [seen(list(args)), seen(kwargs)]

    event = workflow.wait_for_event(Echo, 1, identity.bind(2), ray.put(3), k=identity.bind(4))
    return {"value": caught(workflow.run, event, workflow_id=scratch.id())}


@scenario
def acknowledged_before_it_is_used(workflow, scratch):
    @ray.remote
    def look(pair):
        return pair[0].counts()

    scratch.gate().open()
    event = workflow.wait_for_event(Listener, scratch.marks, scratch.gate())
    return {"value": caught(workflow.run, look.bind(event), workflow_id=scratch.id())}


@scenario
def many_events(workflow, scratch):
    scratch.gate().open()
    names = ["a", "b", "c"]
    events = [workflow.wait_for_event(Listener, scratch.marks, scratch.gate(), n) for n in names]
    dag = describe.bind(*[event_of.bind(event) for event in events])
    value = workflow.run(dag, workflow_id=scratch.id())
    return {"value": value, "ran": scratch.marks.counts()}


@scenario
def a_received_event_is_not_polled_again(workflow, scratch):
    scratch.gate().open()
    event = workflow.wait_for_event(Listener, scratch.marks, scratch.gate())
    dag = fail_unless.bind(scratch.marks, "failing", scratch.gate("other"), event)
    caught(workflow.run, dag, workflow_id=scratch.id())
    scratch.gate("other").open()
    return {"resumed": caught(workflow.resume, scratch.id()), "ran": scratch.marks.counts()}


@scenario
def failing_listeners(workflow, scratch):
    return {
        "poll": caught(workflow.run, workflow.wait_for_event(Failing), workflow_id=scratch.id("1")),
        "checkpointed": caught(
            workflow.run, workflow.wait_for_event(FailingLater), workflow_id=scratch.id("2")
        ),
        "unimplemented": caught(
            workflow.run,
            workflow.wait_for_event(workflow.EventListener),
            workflow_id=scratch.id("3"),
        ),
    }


@scenario
def bad_listeners(workflow, scratch):
    return {
        "other_class": caught(workflow.wait_for_event, dict),
        "instance": caught(workflow.wait_for_event, Silent()),
        "none": caught(workflow.wait_for_event, None),
    }


@scenario
def a_sleep(workflow, scratch):
    before = time.time()
    value = workflow.run(workflow.sleep(0.5), workflow_id=scratch.id())
    took = time.time() - before
    return {"value": value, "long_enough": took >= 0.5, "not_too_long": took < PATIENCE / 2}


@scenario
def after_a_sleep(workflow, scratch):
    value = workflow.run(
        mark.bind(scratch.marks, "after", workflow.sleep(0.1)), workflow_id=scratch.id()
    )
    return {"value": value, "ran": scratch.marks.counts()}


@scenario
def sleeps_run_beside_each_other(workflow, scratch):
    after = mark.bind(scratch.marks, "after", workflow.sleep(0.1))
    dag = describe.bind(workflow.sleep(3600), after, workflow.sleep(3600))
    workflow.run_async(dag, workflow_id=scratch.id())
    together = within(lambda: scratch.marks.count("after") == 1, PATIENCE / 2)
    workflow.cancel(scratch.id())
    return {"together": together}


@scenario
def a_sleep_in_a_continuation(workflow, scratch):
    @ray.remote
    def later():
        from tests.parity.kit import workflow as library

        return library.continuation(identity.bind(library.sleep(0.1)))

    return {"value": caught(workflow.run, later.bind(), workflow_id=scratch.id())}


@scenario
def more_sleeps_than_cpus(workflow, scratch):
    """Waiting needs no CPU."""
    gate = scratch.gate()
    listeners = [workflow.wait_for_event(Listener, scratch.marks, gate) for _ in range(6)]
    ref = workflow.run_async(describe.bind(*listeners), workflow_id=scratch.id())
    at_once = within(
        lambda: scratch.marks.count("polled") == 6, on_each(old=3.0, ours=PATIENCE / 2)
    )
    gate.open()
    ray.get(ref)
    return {"polled_at_once": at_once}


@scenario
def timer_listeners(workflow, scratch):
    before = time.time()
    event = workflow.wait_for_event(TimerListener, before + 0.5)
    value = workflow.run(event, workflow_id=scratch.id("1"))
    past = workflow.wait_for_event(TimerListener, before - 10)
    return {
        "value": value,
        "long_enough": time.time() - before >= 0.5,
        "past": caught(workflow.run, past, workflow_id=scratch.id("2")),
    }


@scenario
def bad_durations(workflow, scratch):
    return {
        "text": caught(lambda: workflow.run(workflow.sleep("1"), workflow_id=scratch.id("1"))),
        "negative": caught(lambda: workflow.run(workflow.sleep(-1), workflow_id=scratch.id("2"))),
    }


@scenario
def events_as_plain_dags(workflow, scratch):
    """Outside of workflows an event node is an ordinary DAG."""
    node = workflow.wait_for_event(Silent, "plain")
    return {"value": caught(lambda: ray.get(node.execute()))}


@scenario
def ids_of_event_tasks(workflow, scratch):
    workflow.run(workflow.wait_for_event(Silent, 1), workflow_id=scratch.id("1"))
    workflow.run(workflow.sleep(0), workflow_id=scratch.id("2"))
    base = "ray.workflow.api.wait_for_event.locals"
    return {
        name: caught(workflow.get_output, scratch.id("1"), task_id=f"{base}.{name}")
        for name in ("get_message", "message_committed")
    }
