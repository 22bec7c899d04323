"""This project, with its default storage: SQLite and blob files, every commit synced."""

from __future__ import annotations

import os
import statistics
import time
import uuid
from pathlib import Path
from typing import Any

import ray

import ray_workflows as workflow
from peers.clusters import start_cluster
from peers.interrupted import store_interrupted
from peers.serving import Round, Runner, serve, timed
from peers.shapes import after_a_pause, after_a_signal, shapes, tree
from peers.tasks import add, identity
from ray_workflows._client.connection import connect

#: Of the timers, in seconds: longer than it takes to start a workflow.
PAUSE_SECONDS = 0.3


@ray.remote
def fib(n: int) -> Any:
    if n < 2:
        return n
    return workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))


def coordinator_pid() -> int:
    pid: int = ray.get(connect().coordinator.describe.remote())["holder"].pid
    return pid


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def whole(make: Any, count_bind: bool = True) -> Runner:
    """Runs one DAG. Its memory is that of the coordinator at its peak."""

    def run(size: int) -> Round:
        workflow_id = uuid.uuid4().hex
        pid = coordinator_pid()
        reset_peak(pid)
        with timed() as bind:
            dag = make(size)
        with timed() as clock:
            result = workflow.run(dag, workflow_id=workflow_id)
        done = Round(
            clock.seconds + (bind.seconds if count_bind else 0),
            result,
            {"bind_seconds": bind.seconds, "coordinator_mib": peak_mib(pid)},
        )
        if isinstance(result, list):
            done.result, shared = result
            done.details["zero_copy"] = shared == size
        assert workflow.get_status(workflow_id) == workflow.SUCCESSFUL
        workflow.delete(workflow_id)
        return done

    return run


def one_task(size: int) -> Round:
    with timed() as clock:
        result = sum(workflow.run(identity.bind(i)) for i in range(size))
    return Round(clock.seconds, result)


def submit_loop(size: int) -> Round:
    with timed() as clock:
        refs = [workflow.run_async(identity.bind(i)) for i in range(size)]
        with timed() as rest:
            result = sum(ray.get(refs))
    return Round(clock.seconds, result, {"acknowledged_seconds": clock.seconds - rest.seconds})


def submit_many(size: int) -> Round:
    with timed() as clock:
        refs = workflow.run_async_many([identity.bind(i) for i in range(size)])
        with timed() as rest:
            result = sum(ray.get(refs))
    return Round(clock.seconds, result, {"acknowledged_seconds": clock.seconds - rest.seconds})


def timer(size: int) -> Round:
    """The median of how much later than its timer a task starts."""
    late = []
    for _ in range(size):
        workflow_id = uuid.uuid4().hex
        ran_at = workflow.run(after_a_pause(workflow, PAUSE_SECONDS), workflow_id=workflow_id)
        (pause,) = (task for task in workflow.get_tasks(workflow_id) if "end_time" in task.task_id)
        late.append(ran_at - (pause.started_at + PAUSE_SECONDS))
    # One that is early is a wrong result, not a fast one.
    return Round(statistics.median(late), sum(each >= 0 for each in late), {"worst": max(late)})


def signal(size: int) -> Round:
    """The median of how long after a call of `signal` a task starts that has waited for it."""
    late, acknowledged = [], []
    for _ in range(size):
        workflow_id = uuid.uuid4().hex
        ref = workflow.run_async(after_a_signal(workflow), workflow_id=workflow_id)
        # It may have to wait for nothing else: what a submission causes is over by then.
        time.sleep(PAUSE_SECONDS)
        sent_at = time.time()
        workflow.signal(workflow_id, "go")
        acknowledged.append(time.time() - sent_at)
        late.append(ray.get(ref) - sent_at)
    return Round(
        statistics.median(late),
        sum(each >= 0 for each in late),
        {"worst": max(late), "acknowledged_seconds": statistics.median(acknowledged)},
    )


def resume(size: int) -> Round:
    """Until the first attempt of a workflow that another coordinator has left."""
    workflow_id = uuid.uuid4().hex
    path = os.path.abspath(workflow_id)
    with timed() as build:
        store_interrupted(connect().storage, workflow_id, path, size, done=size * 9 // 10)
    assert workflow.get_status(workflow_id) == workflow.RESUMABLE
    pid = coordinator_pid()
    reset_peak(pid)
    resumed_at = time.time()
    with timed() as clock:
        result = workflow.resume(workflow_id)
    done = Round(
        float(Path(path).read_text()) - resumed_at,
        result,
        {
            "build_seconds": build.seconds,
            "to_the_end_seconds": clock.seconds,
            "coordinator_mib": peak_mib(pid),
        },
    )
    os.remove(path)
    workflow.delete(workflow_id)
    return done


if __name__ == "__main__":
    start_cluster()
    workflow.init(os.path.abspath("storage"))
    serve(
        {"ray": ray.__version__, "ray-workflows": workflow.__version__},
        {
            **{name: whole(make) for name, make in shapes(workflow).items()},
            **{f"scale_{10**power}": whole(tree, count_bind=False) for power in range(2, 7)},
            "fib": whole(fib.bind),
            "one_task": one_task,
            "submit_loop": submit_loop,
            "submit_many": submit_many,
            "timer": timer,
            "signal": signal,
            "resume": resume,
        },
    )
    ray.shutdown()
