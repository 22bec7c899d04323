"""Run by test_modes.py as a process of its own: every verb under Ray Client.

It notices every file below the storage that this process opens itself: there must be none.
"""

import json
import os
import sys
import time
import warnings

import numpy as np
import ray
from ray.dag import InputNode

import ray_workflows as workflow
from ray_workflows._client.connection import connect, find_coordinator
from tests.ray.marks import Gate, wait_until

NAMES = json.loads(os.environ["NAMES"])
touched = []


def watch(event, args):
    path = args[0] if args else None
    if isinstance(path, (str, bytes, os.PathLike)) and NAMES["storage"] in os.fsdecode(path):
        touched.append((event, path))


sys.addaudithook(watch)


class Trouble(Exception):
    pass


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def fib(n):
    return n if n < 2 else workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))


def only_inside(client):
    if os.getpid() == client:
        raise AssertionError("an object left the cluster")
    return OnlyInside(client)


class OnlyInside:
    """Can't be unpickled in the client."""

    def __init__(self, client):
        self.client = client

    def __reduce__(self):
        return only_inside, (self.client,)


@ray.remote
def make_inside(client):
    return OnlyInside(client)


@ray.remote
def use(direct, nested, large):
    import shipped

    assert isinstance(ray.get(nested[1]), OnlyInside)
    there = (shipped.NAME, os.environ["FLAVOUR"])
    return direct, ray.get(nested[0]), ray.put(large[:3]), large * 2, there


@ray.remote
def fail(path):
    if not os.path.exists(path):
        raise Trouble("no file")
    return "mended"


@ray.remote
def hang(gate):
    gate.wait()


@ray.remote
class Actor:
    pass


def raised(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def init():
    # So that the coordinator is one that a client has started, with a runtime_env.
    if (coordinator := find_coordinator()) is not None:
        ray.kill(coordinator)
        wait_until(lambda: find_coordinator() is None, "the coordinator is gone")
    assert isinstance(raised(workflow.init, "relative/path"), workflow.StorageConfigError)
    assert isinstance(raised(workflow.init, "/dev/null/store"), workflow.StorageConfigError)
    workflow.init()
    assert isinstance(raised(workflow.init, "/another"), workflow.StorageConfigError)
    assert connect().storage.url == f"file://{NAMES['storage']}"
    pid = ray.get(connect().coordinator.describe.remote())["holder"].pid
    with open(f"/proc/{pid}/environ", "rb") as file:
        assert b"FLAVOUR" not in file.read()


def plain_values():
    assert ray.get(add.remote(1, 2)) == 3
    assert workflow.run(fib.bind(6)) == 8
    with InputNode() as given:
        dag = add.bind(given[0], given.x)
    assert workflow.run(dag, 3, x=4) == 7
    unstored = add.options(**workflow.options(checkpoint=False))
    ref = workflow.run_async(add.bind(unstored.bind(1, 1), 1))
    assert ray.wait([ref], timeout=60)[0] == [ref]
    assert ray.get(ref) == 3
    assert workflow.continuation(add.bind(add.bind(1, 1), 1)) == 3
    soon = workflow.wait_for_event(workflow.TimerListener, time.time() + 0.1)
    catching = add.options(**workflow.options(catch_exceptions=True))
    value, error = workflow.run(catching.bind(soon, workflow.sleep(0.01)))
    assert value is None
    assert isinstance(error, TypeError)


def references():
    large = np.arange(100_000.0)
    direct, nested = ray.put("direct"), ray.put(["nested", ray.put("inner")])
    dag = use.bind(direct, [nested, make_inside.remote(os.getpid())], large)
    first = workflow.run(dag, workflow_id="client")
    ray.kill(connect().coordinator, no_restart=False)
    for output in (
        first,
        workflow.get_output("client"),
        ray.get(workflow.get_output_async("client")),
        ray.get(workflow.run_async(dag, workflow_id="client")),
        workflow.resume("client"),
    ):
        assert (output[0], *output[4]) == ("direct", "shipped", "vanilla")
        assert output[1][0] == "nested"
        assert ray.get(output[1][1]) == "inner"
        assert ray.get(output[2]).tolist() == [0.0, 1.0, 2.0]
        assert (output[3] == large * 2).all()
    error = raised(workflow.run, add.bind(Actor.remote(), 1))
    assert "the actor handle" in str(error), error
    ref = workflow.run_async(workflow.wait_for_signal("sent"), workflow_id="signaled")
    workflow.signal("signaled", "sent", [large, ray.put("inner")])
    array, inner = ray.get(ref)
    assert (array == large).all()
    assert ray.get(inner) == "inner"


def failures():
    path = NAMES["file"]
    for error in (
        raised(workflow.run, fail.bind(path), workflow_id="failed"),
        raised(ray.get, workflow.run_async(fail.bind(path), workflow_id="failed 2")),
    ):
        assert isinstance(error, workflow.WorkflowExecutionError), error
        assert isinstance(error.__cause__, Trouble), error.__cause__
    assert isinstance(raised(workflow.get_output, "failed"), workflow.OutputNotAvailableError)
    assert workflow.get_status("failed") == workflow.FAILED
    with open(path, "w"):
        pass
    assert workflow.resume("failed") == "mended"
    resumed = workflow.resume_all(include_failed=True)
    assert {name: ray.get(ref) for name, ref in resumed} == {"failed 2": "mended"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert workflow.run(add.bind(5, 5), workflow_id="failed") == "mended"
    assert "another DAG" in str(caught[-1].message)


def looking_and_stopping():
    dag = hang.bind(Gate(NAMES["gate"]))
    ref = workflow.run_async(dag, workflow_id="hanging", metadata={"by": "client"})
    error = raised(workflow.run, dag, workflow_id="hanging")
    assert isinstance(error, workflow.WorkflowAlreadyRunningError)
    assert isinstance(raised(workflow.delete, "hanging"), workflow.WorkflowStillActiveError)
    assert ("hanging", workflow.RUNNING) in workflow.list_all("RUNNING")
    assert workflow.get_metadata("hanging")["user_metadata"] == {"by": "client"}
    (task,) = workflow.get_tasks("hanging")
    assert workflow.get_metadata("hanging", task.task_id)["task_id"] == task.task_id
    workflow.cancel("hanging")
    assert isinstance(raised(ray.get, ref), workflow.WorkflowCancellationError)
    workflow.delete("hanging")
    error = raised(workflow.get_status, "hanging")
    assert isinstance(error, workflow.WorkflowNotFoundError)


def connect_from_outside(**options):
    """Ray gives a client's server 30 s to start, which a busy machine may not keep to."""
    for _ in range(3):
        try:
            return ray.init(NAMES["address"], log_to_driver=False, **options)
        except ConnectionAbortedError as error:
            failure = error
    raise failure


def example():
    """The one of the document, in this process, which has a runtime_env besides."""
    connect_line = f'ray.init("{NAMES["address"]}")'
    assert connect_line in NAMES["example"]
    exec(NAMES["example"].replace(connect_line, ""), {"__name__": "__main__"})


def main():
    environment = {"working_dir": NAMES["project"], "env_vars": {"FLAVOUR": "vanilla"}}
    connect_from_outside(runtime_env=environment)
    example()
    init()
    plain_values()
    references()
    failures()
    looking_and_stopping()
    workflow.run_async(hang.bind(Gate(NAMES["gate"])), workflow_id="left behind")
    assert touched == [], touched
    ray.shutdown()

    # The same process as a driver of the cluster, on the same disk.
    ray.init(address="auto", log_to_driver=False)
    assert workflow.get_status("left behind") == workflow.RUNNING
    Gate(NAMES["gate"]).open()
    assert workflow.get_output("left behind") is None
    assert touched != []
    print("all right", flush=True)


if __name__ == "__main__":
    main()
