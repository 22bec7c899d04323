"""Workflows started inside tasks and actors: of workflows, and of plain Ray."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import ray

import ray_workflows as workflow
from ray_workflows._client.connection import connect
from ray_workflows._coordinator.actor import SEATS, VERB_THREADS
from ray_workflows._coordinator.protocol import decode_watched
from tests.conftest import CLUSTER_CPUS
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.test_crashes import held


@ray.remote(num_cpus=0)
def add(a, b):
    return a + b


@ray.remote(num_cpus=CLUSTER_CPUS)
def inner(n):
    task = workflow.current()
    return n, task.workflow_id, task.task_id


@ray.remote(num_cpus=CLUSTER_CPUS)
def outer(inner_id):
    """Takes all CPUs, and starts a workflow that needs them too."""
    before = workflow.current()
    ran = workflow.run(inner.bind(1), workflow_id=inner_id)
    again = ray.get(workflow.run_async(inner.bind(2)))
    assert workflow.current() == before
    assert workflow.get_output(inner_id) == ran == workflow.resume(inner_id)
    return ran, again[0], before.task_id if before else None


def test_waiting_for_a_workflow_gives_back_the_cpus(wid: str) -> None:
    name = f"{__name__}.inner"
    expected = ((1, f"{wid}-inner", name), 2, f"{__name__}.outer")
    assert workflow.run(outer.bind(f"{wid}-inner"), workflow_id=wid) == expected
    # A plain Ray task is no task of a workflow.
    assert ray.get(outer.remote(f"{wid}-plain")) == ((1, f"{wid}-plain", name), 2, None)


@ray.remote(num_cpus=0)
def runs(depth):
    """As many workflows in each other as that, each of which waits for the next."""
    return 0 if depth == 0 else 1 + workflow.run(runs.bind(depth - 1))


def test_more_wait_than_there_is_room_for(wid: str, gate: Gate, marks: Marks) -> None:
    """A long poll over the coordinator's limit returns and polls again, and blocks no workflow."""
    connection = connect()
    workflow.run_async(held.bind(marks, gate, "held"), workflow_id=wid)
    watch_one = connection.coordinator.watch_one
    calls = [watch_one.remote(wid, None) for _ in range(SEATS + VERB_THREADS)]
    turned_away, _ = ray.wait(calls, num_returns=VERB_THREADS)
    assert {decode_watched(answer) for answer in ray.get(turned_away)} == {None}
    assert connection.call("describe")["waiting"] > SEATS - 8
    assert workflow.run(runs.bind(2), workflow_id=f"{wid}-nested") == 2
    assert ray.get(workflow.run_async(add.bind(1, 2))) == 3
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(workflow.get_output, wid)
        assert connection.call("describe")["waiting"] > SEATS - 8
        gate.open()
        assert waiting.result() == workflow.get_output(wid)
    seen = [decode_watched(answer) for answer in ray.get(calls)]
    # All that got a seat; some were taken by polls.
    ended = [watched.row.status for watched in seen if watched is not None]
    assert set(ended) == {workflow.SUCCESSFUL}
    assert len(ended) > SEATS // 2
    free = "seats that are free again"
    wait_until(lambda: connection.call("describe")["waiting"] < SEATS // 2, free)


def test_in_actors() -> None:
    @ray.remote(num_cpus=0)
    class Threaded:
        def go(self):
            return workflow.run(add.bind(1, 2)), ray.get(workflow.run_async(add.bind(3, 4)))

    @ray.remote(num_cpus=0)
    class Async:
        async def go(self):
            return await workflow.run_async(add.bind(5, 6))

    threaded, awaiting = Threaded.remote(), Async.remote()
    assert ray.get(threaded.go.remote()) == (3, 7)
    assert ray.get([awaiting.go.remote() for _ in range(3)]) == [11, 11, 11]


def test_in_a_listener() -> None:
    class Listener(workflow.EventListener):
        async def poll_for_event(self):
            return await workflow.run_async(add.bind(7, 8))

    assert workflow.run(workflow.wait_for_event(Listener)) == 15


def test_a_ref_of_another_workflow_as_a_result(wid: str, marks: Marks, gate: Gate) -> None:
    @ray.remote(num_cpus=0)
    def start(marks, gate):
        marks.add("started")
        return workflow.run_async(held.bind(marks, gate, "inner"))

    ref = workflow.run_async(start.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    # What the ref refers to is stored with the result, so the outer one waits for the inner.
    assert workflow.get_status(wid) == workflow.RUNNING
    gate.open()
    assert ray.get(ray.get(ref)) == "inner"
    assert ray.get(workflow.get_output(wid)) == "inner"
    assert marks.counts() == {"held": 1, "started": 1}


def test_a_task_that_runs_again_finds_the_workflow_it_started(
    wid: str, marks: Marks, gate: Gate
) -> None:
    @ray.remote(num_cpus=0)
    def start(marks, gate):
        marks.add("started")
        inner_id = f"{workflow.current().idempotency_key}-inner"
        try:
            return workflow.run(held.bind(marks, gate, "inner"), workflow_id=inner_id)
        except workflow.WorkflowAlreadyRunningError:
            marks.add("found")
            return workflow.get_output(inner_id)

    ref = workflow.run_async(start.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    os.kill(marks.pids("started")[0], signal.SIGKILL)
    marks.wait_for("found")
    gate.open()
    assert ray.get(ref) == "inner"
    assert marks.counts() == {"found": 1, "held": 1, "started": 2}


def test_an_inner_workflow_is_not_canceled_with_the_outer(
    wid: str, marks: Marks, gate: Gate
) -> None:
    @ray.remote(num_cpus=0)
    def start(marks, gate, inner_id):
        return workflow.run(held.bind(marks, gate, "inner"), workflow_id=inner_id)

    workflow.run_async(start.bind(marks, gate, f"{wid}-inner"), workflow_id=wid)
    marks.wait_for("held")
    workflow.cancel(wid)
    gate.open()
    assert workflow.get_output(f"{wid}-inner") == "inner"
