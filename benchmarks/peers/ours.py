"""This project, with its default storage: SQLite and blob files, every commit synced."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import ray

import ray_workflows as workflow
from peers.clusters import start_cluster
from peers.interrupted import store_interrupted
from peers.serving import Round, Runner, serve, timed
from peers.shapes import after_a_pause, after_a_signal, fan_out, shapes, tree
from peers.tasks import add, identity, increment
from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.values import ValueWriter
from ray_workflows._client.connection import connect
from ray_workflows._model.plan import Environment
from ray_workflows.storage.memory import MemoryStorage

#: Of the timers, in seconds: longer than it takes to start a workflow.
PAUSE_SECONDS = 0.3

#: Workflows that are submitted together to sleep, for how long they do, and how long it is looked
#: at what that costs, in seconds.
SLEEPERS, SLEEP_SECONDS, LOOK_SECONDS = 2_000, 1e6, 60.0

ROOT = Path(__file__).parents[2]


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
            assert shared, "A task got a copy of an array."
            done.details["zero_copy"] = shared
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


def plus_one(value: int) -> int:
    return value + 1


@workflow.durable
async def local_steps(size: int) -> int:
    value = 0
    for _ in range(size):
        value = await workflow.step(plus_one, value)
    return value


@workflow.durable
async def ray_steps(size: int) -> int:
    value = 0
    for _ in range(size):
        value = await workflow.step(increment, value)
    return value


@workflow.durable
async def gathered_steps(size: int) -> int:
    return sum(await asyncio.gather(*[workflow.step(identity, i) for i in range(size)]))


@workflow.durable
async def steps_and_a_wait(size: int) -> int:
    done = await asyncio.gather(*[workflow.step(identity, i) for i in range(size)])
    await workflow.wait_for_signal("go")
    return len(done)


def waiting_steps(workflow_id: str) -> int:
    """How many tasks of a workflow wait without an attempt."""
    tasks = workflow.get_tasks(workflow_id)
    return sum(str(task.status) == "WAITING" for task in tasks)


def replay(size: int) -> Round:
    """From a signal to the end of a durable function that has left its process."""
    workflow_id = uuid.uuid4().hex
    ref = workflow.run_async(steps_and_a_wait.bind(size), workflow_id=workflow_id)
    while waiting_steps(workflow_id) < 2:  # the function, and its wait for the signal
        time.sleep(0.2)
    with timed() as clock:
        workflow.signal(workflow_id, "go")
        result = ray.get(ref)
    return Round(clock.seconds, result)


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


def capture(size: int) -> Round:
    dag = fan_out(size)
    writer = ValueWriter(MemoryStorage(), "incarnation")
    with timed() as clock:
        plan = capture_plan(dag, writer=writer, environment=Environment(), prefix="plan")
    return Round(clock.seconds, len(plan.tasks))


def engine(size: int) -> Round:
    """As the tests do it that fail when it costs more, in a process of its own."""
    with timed() as clock:
        done = subprocess.run(
            [sys.executable, "-m", "tests.unit.engine.engine_path", "--json", str(size)],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
    found = json.loads(done.stdout)
    return Round(clock.seconds, found.pop("size"), found)


def cpu_seconds(pid: int) -> float:
    """What a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sleeping(size: int) -> Round:
    """Submit them, look on while they sleep, and wake one of their kind. They are left asleep."""
    pid = coordinator_pid()
    reset_peak(pid)
    refs = []
    with timed() as clock:
        for first in range(0, size, SLEEPERS):
            sleepers = range(first, min(first + SLEEPERS, size))
            refs += workflow.run_async_many(
                [after_a_pause(workflow, SLEEP_SECONDS) for _ in sleepers]
            )
    time.sleep(5.0)
    before = cpu_seconds(pid)
    with timed() as look:
        time.sleep(min(LOOK_SECONDS, size / 10))
    percent = 100 * (cpu_seconds(pid) - before) / look.seconds
    ready, asleep = ray.wait(refs, num_returns=len(refs), timeout=0)
    assert not ready, ready
    return Round(
        clock.seconds,
        len(asleep),
        {
            "coordinator_mib": peak_mib(pid),
            "asleep_percent": percent,
            "late_seconds": timer(5).seconds,
        },
    )


if __name__ == "__main__":
    start_cluster()
    workflow.init(os.path.abspath("storage"))
    serve(
        {"ray": ray.__version__, "ray-workflows": workflow.__version__},
        {
            **{name: whole(make) for name, make in shapes(workflow).items()},
            **{f"scale_{10**power}": whole(tree, count_bind=False) for power in range(2, 7)},
            "fib": whole(fib.bind),
            "local_steps": whole(local_steps.bind),
            "ray_steps": whole(ray_steps.bind),
            "gathered_steps": whole(gathered_steps.bind),
            "replay": replay,
            "one_task": one_task,
            "submit_loop": submit_loop,
            "submit_many": submit_many,
            "timer": timer,
            "signal": signal,
            "capture": capture,
            "engine": engine,
            "sleeping": sleeping,
            "resume": resume,
        },
    )
    ray.shutdown()
