"""What tasks may return, take, and be told."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Marks


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def one():
    return 1


@ray.remote
def fib(n):
    if n < 2:
        return n
    return workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))


@ray.remote
def factorial(n, so_far=1):
    if n == 1:
        return so_far
    return workflow.continuation(factorial.bind(n - 1, so_far * n))


# -- continuations -------------------------------------------------------------------------


def test_recursion_by_continuations() -> None:
    assert workflow.run(fib.bind(10)) == 55


def test_a_loop_by_continuations() -> None:
    assert workflow.run(factorial.bind(30)) == 265252859812191058636308480000000


def test_nested_continuations() -> None:
    @ray.remote
    def inner(x):
        return workflow.continuation(add.bind(x, 1))

    @ray.remote
    def outer(x):
        return workflow.continuation(inner.bind(add.bind(x, 10)))

    assert workflow.run(add.bind(outer.bind(1), 100)) == 112


def test_a_dag_returned_without_continuation_is_one() -> None:
    @ray.remote
    def outer():
        return add.bind(1, 2)

    assert workflow.run(outer.bind()) == 3


def test_continuation_outside_of_a_workflow_executes() -> None:
    assert workflow.continuation(add.bind(1, one.bind())) == 2

    @ray.remote
    def plain():
        return workflow.continuation(add.bind(1, 1))

    assert ray.get(plain.remote()) == 2


# -- objects -------------------------------------------------------------------------------


@ray.remote
def make_refs():
    return {"put": ray.put(np.arange(5)), "list": [one.remote(), ray.put("x")]}


@ray.remote
def use_refs(refs):
    assert isinstance(refs["put"], ray.ObjectRef)
    return int(ray.get(refs["put"]).sum()), ray.get(refs["list"])


def test_refs_inside_results(wid: str) -> None:
    refs = make_refs.options(**workflow.options(task_id="refs"))
    assert workflow.run(use_refs.bind(refs.bind()), workflow_id=wid) == (10, [1, "x"])
    again = workflow.get_output(wid, task_id="refs")
    assert ray.get(again["list"]) == [1, "x"]


def test_refs_inside_refs() -> None:
    @ray.remote
    def make():
        return ray.put([ray.put([ray.put(7)])])

    @ray.remote
    def use(ref):
        (middle,) = ray.get(ref)
        (inner,) = ray.get(middle)
        return ray.get(inner)

    assert workflow.run(use.bind(make.bind())) == 7


def test_refs_as_arguments_survive_in_storage(wid: str) -> None:
    nested, direct = ray.put("nested"), ray.put("direct")

    @ray.remote
    def take(value, container):
        assert isinstance(container[0], ray.ObjectRef)
        return value, ray.get(container[0])

    assert workflow.run(take.bind(direct, [nested]), workflow_id=wid) == ("direct", "nested")


def test_an_identical_ref_is_stored_once(wid: str, storage_dir) -> None:
    @ray.remote
    def make():
        ref = ray.put(np.zeros(1000))
        return [ref, ref, {"again": ref}]

    @ray.remote
    def pass_on(refs):
        return refs[0]

    before = set((storage_dir / "blobs").iterdir()) if (storage_dir / "blobs").exists() else set()
    workflow.run(pass_on.bind(make.bind()), workflow_id=wid)
    (fresh,) = set((storage_dir / "blobs").iterdir()) - before
    assert len([p for p in fresh.iterdir() if p.name.startswith("object-")]) == 1


def test_direct_nodes_are_values_and_nested_nodes_are_refs() -> None:
    @ray.remote
    def look(direct, nested):
        return direct, type(nested[0]).__name__, ray.get(nested[0])

    assert workflow.run(look.bind(one.bind(), [one.bind()])) == (1, "ObjectRef", 1)


def test_large_arrays_are_read_in_place() -> None:
    @ray.remote
    def make():
        return np.ones(2_000_000)

    @ray.remote
    def look(array):
        # Not writable and not its own memory: a view on the object store.
        return float(array.sum()), array.flags.writeable, array.flags.owndata

    @ray.remote
    def look_nested(arrays):
        array = ray.get(arrays[0])
        return array.flags.owndata

    array = make.bind()
    assert workflow.run(look.bind(array)) == (2_000_000.0, False, False)
    assert workflow.run(look_nested.bind([make.bind()])) is False


def test_arguments_are_taken_when_bound() -> None:
    @ray.remote
    def total(numbers):
        return sum(numbers)

    numbers = [1, 2]
    dag = total.bind(numbers)
    ref = workflow.run_async(dag)
    numbers.append(1000)
    assert ray.get(ref) == 3


# -- options -------------------------------------------------------------------------------


def test_options_as_decorator_and_as_arguments(wid: str) -> None:
    @workflow.options(task_id="named", metadata={"a": 1}, catch_exceptions=True)
    @ray.remote
    def div(a, b):
        return a / b

    assert workflow.run(div.bind(4, 2), workflow_id=wid) == (2.0, None)
    metadata = workflow.get_metadata(wid, "named")
    assert metadata["user_metadata"] == {"a": 1}
    # What .options() does not name stays as decorated.
    node = div.options(num_cpus=0.5, **workflow.options(task_id="other")).bind(1, 0)
    value, error = workflow.run(node, workflow_id=wid + "2")
    assert value is None
    assert isinstance(error, ZeroDivisionError)
    assert workflow.get_metadata(wid + "2", "other")["user_metadata"] == {"a": 1}
    # Outside of workflows it is a plain remote function.
    assert ray.get(div.remote(4, 2)) == 2.0


def test_errors_of_continuations_are_caught() -> None:
    @ray.remote
    def fail():
        raise KeyError("gone")

    @ray.remote
    def outer():
        return workflow.continuation(add.bind(1, fail.bind()))

    node = outer.options(**workflow.options(catch_exceptions=True)).bind()
    value, error = workflow.run(node)
    assert value is None
    assert isinstance(error, KeyError)


def test_a_caught_error_is_stored(wid: str, marks: Marks) -> None:
    @ray.remote
    def fail():
        marks.add("fail")
        raise KeyError("gone")

    node = fail.options(**workflow.options(task_id="f", catch_exceptions=True)).bind()
    workflow.run(node, workflow_id=wid)
    value, error = workflow.get_output(wid, task_id="f")
    assert isinstance(error, KeyError)
    assert marks.count("fail") == 1


def test_task_ids_are_numbered(wid: str) -> None:
    node = add.bind(one.bind(), add.bind(one.bind(), 5))
    workflow.run(node, workflow_id=wid)
    assert workflow.get_output(wid, task_id=f"{__name__}.add") == 6
    assert workflow.get_output(wid, task_id=f"{__name__}.add_1") == 7
    assert workflow.get_output(wid, task_id=f"{__name__}.one_1") == 1


def test_results_without_checkpoint(wid: str, storage_dir) -> None:
    @ray.remote
    def make():
        return np.ones(200_000)

    @ray.remote
    def total(a):
        return float(a.sum())

    node = make.options(**workflow.options(task_id="unstored", checkpoint=False)).bind()
    assert workflow.run(total.bind(node), workflow_id=wid) == 200_000.0
    with pytest.raises(ValueError, match="not checkpointed"):
        workflow.get_output(wid, task_id="unstored")


def test_the_output_is_stored_even_without_checkpoint(wid: str) -> None:
    node = one.options(**workflow.options(checkpoint=False)).bind()
    assert workflow.run(node, workflow_id=wid) == 1
    assert workflow.get_output(wid) == 1


def test_ray_options_are_honoured(wid: str) -> None:
    @ray.remote(num_gpus=1)
    def on_gpu():
        return ray.get_runtime_context().get_assigned_resources()

    @ray.remote(max_calls=1)
    def once():
        return os.getpid()

    @ray.remote(num_cpus=0.5, resources={"special": 1}, runtime_env={"env_vars": {"A": "b"}})
    def special():
        return os.environ["A"], ray.get_runtime_context().get_assigned_resources()

    @ray.remote
    def node_id():
        return ray.get_runtime_context().get_node_id()

    @ray.remote
    def collect(*values):
        return values

    here = ray.get_runtime_context().get_node_id()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    first, second, third, fourth = workflow.run(
        collect.bind(
            on_gpu.bind(),
            collect.bind(*(once.bind() for _ in range(3))),
            special.bind(),
            node_id.options(scheduling_strategy=strategy).bind(),
        ),
        workflow_id=wid,
    )
    assert first["GPU"] == 1
    assert len(set(second)) == 3
    assert third == ("b", {"CPU": 0.5, "special": 1})
    assert fourth == here
    ray_options = workflow.get_metadata(wid, f"{__name__}.{special_name()}")["task_options"]
    assert ray_options["ray_options"]["resources"] == {"special": 1}


def special_name() -> str:
    return "test_ray_options_are_honoured.locals.special"


def test_an_option_that_ray_refuses_fails_the_task(wid: str) -> None:
    node = one.options(_labels={"bad": "x"}).bind()
    node._bound_options["no_such_option"] = 1  # As an older Ray's option would.
    with pytest.raises(workflow.WorkflowExecutionError, match="no_such_option"):
        workflow.run(node, workflow_id=wid)


# -- retries -------------------------------------------------------------------------------


def test_retry_exceptions(marks: Marks) -> None:
    @ray.remote(max_retries=3, retry_exceptions=True)
    def flaky():
        marks.add("flaky")
        if marks.count("flaky") < 3:
            raise ValueError("again")
        return marks.count("flaky")

    assert workflow.run(flaky.bind()) == 3


def test_retry_exceptions_by_type(wid: str, marks: Marks) -> None:
    @ray.remote(max_retries=5, retry_exceptions=[KeyError])
    def flaky(error):
        marks.add(error.__name__)
        raise error("x")

    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(flaky.bind(ValueError), workflow_id=wid)
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(flaky.bind(KeyError), workflow_id=wid + "2")
    assert marks.counts() == {"KeyError": 6, "ValueError": 1}


def test_errors_are_not_retried_by_default(marks: Marks) -> None:
    @ray.remote
    def flaky():
        marks.add("flaky")
        raise ValueError

    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(flaky.bind())
    assert marks.count("flaky") == 1


def test_a_killed_worker_is_replaced(marks: Marks) -> None:
    @ray.remote(max_retries=2)
    def suicidal():
        marks.add("run")
        if marks.count("run") <= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    assert workflow.run(suicidal.bind()) == "survived"


def test_a_worker_that_always_dies_fails_the_workflow(marks: Marks) -> None:
    @ray.remote(max_retries=1)
    def suicidal():
        marks.add("run")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(suicidal.bind())
    assert isinstance(caught.value.__cause__, ray.exceptions.WorkerCrashedError)
    assert marks.count("run") == 2


def test_the_idempotency_key_is_the_same_for_all_attempts(wid: str, marks: Marks) -> None:
    @ray.remote(retry_exceptions=True)
    def pay(marks: Marks):
        task = workflow.current()
        marks.add(f"{task.task_id}:{task.idempotency_key}")
        if task.attempt < 3:
            raise ConnectionError
        return task

    named = pay.options(**workflow.options(task_id="pay"))

    @ray.remote
    def both(a, b):
        return a, b

    first, second = workflow.run(both.bind(named.bind(marks), named.bind(marks)), workflow_id=wid)
    assert (first.workflow_id, first.task_id, second.task_id) == (wid, "pay", "pay_1")
    assert first.idempotency_key != second.idempotency_key
    assert sorted(marks.counts().values()) == [3, 3]
    assert workflow.current() is None


# -- events --------------------------------------------------------------------------------


def test_sleep() -> None:
    started = time.time()
    assert workflow.run(workflow.sleep(0.5)) is None
    assert time.time() - started >= 0.5


class FileListener(workflow.EventListener):
    """Waits for a file, and marks what became of it."""

    async def poll_for_event(self, path, marks):
        import asyncio

        marks.add("polled")
        while not os.path.exists(path):
            await asyncio.sleep(0.02)
        return {"path": path, "marks": marks}

    async def event_checkpointed(self, event):
        event["marks"].add("acknowledged")


def test_an_event_from_a_listener(marks: Marks, tmp_path) -> None:
    @ray.remote
    def after(event):
        # Acknowledged before anybody uses it.
        return event["path"], event["marks"].count("acknowledged")

    path = tmp_path / "event"
    ref = workflow.run_async(after.bind(workflow.wait_for_event(FileListener, str(path), marks)))
    marks.wait_for("polled")
    assert ray.wait([ref], timeout=0.1)[0] == []
    path.touch()
    assert ray.get(ref) == (str(path), 1)


def test_a_task_starts_when_all_its_events_have_occurred(marks: Marks, tmp_path) -> None:
    @ray.remote
    def gather(*events):
        marks.add("gathered")
        return len(events)

    paths = [tmp_path / f"event{i}" for i in range(3)]
    nodes = [workflow.wait_for_event(FileListener, str(path), marks) for path in paths]
    ref = workflow.run_async(gather.bind(*nodes))
    for path in paths:
        assert marks.count("gathered") == 0
        path.touch()
    assert ray.get(ref) == 3


def test_the_timer_listener() -> None:
    @ray.remote
    def after(event):
        return event

    until = time.time() + 0.3
    node = workflow.wait_for_event(workflow.TimerListener, until)
    assert workflow.run(after.bind(node)) is None
    assert time.time() >= until


def test_events_outside_of_workflows() -> None:
    assert workflow.continuation(workflow.sleep(0.01)) is None


def test_an_error_of_a_listener_fails_the_workflow() -> None:
    class Broken(workflow.EventListener):
        async def poll_for_event(self):
            raise ConnectionError("no broker")

    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(workflow.wait_for_event(Broken))
    assert isinstance(caught.value.__cause__, ConnectionError)
