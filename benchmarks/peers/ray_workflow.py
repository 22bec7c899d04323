"""ray.workflow, as it was in ray 2.47.1."""

from __future__ import annotations

import os
import uuid
from typing import Any

import ray
from ray import workflow

from peers.clusters import start_cluster
from peers.serving import Round, Runner, serve, timed
from peers.shapes import shapes
from peers.tasks import add, identity


@ray.remote
def fib(n: int) -> Any:
    if n < 2:
        return n
    return workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))


def whole(make: Any) -> Runner:
    """Runs one DAG."""

    def run(size: int) -> Round:
        workflow_id = uuid.uuid4().hex
        with timed() as clock:
            result = workflow.run(make(size), workflow_id=workflow_id)
        done = Round(clock.seconds, result)
        if isinstance(result, list):
            done.result, done.details["zero_copy"] = result
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
        result = sum(ray.get(refs))
    return Round(clock.seconds, result)


if __name__ == "__main__":
    start_cluster(storage="file://" + os.path.abspath("storage"))
    workflow.init()
    serve(
        {"ray": ray.__version__},
        {
            **{name: whole(make) for name, make in shapes(workflow).items()},
            "fib": whole(fib.bind),
            "one_task": one_task,
            "submit_loop": submit_loop,
        },
    )
    ray.shutdown()
