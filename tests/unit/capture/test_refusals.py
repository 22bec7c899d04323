"""What can't be stored is refused at the call: the message names the task and the way to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.dag import InputNode

from ray_workflows import durable, options
from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.values import ValueWriter
from ray_workflows._model.plan import Environment
from ray_workflows.exceptions import InvalidResultError, SerializationError
from ray_workflows.storage import MemoryStorage


@ray.remote
def f(x=None):
    return x


@ray.remote
class Actor:
    def go(self):
        return 1


@ray.remote
def two(first, second):
    return first, second


class Once:
    """Which is pickled once: Ray's own ``bind`` pickles arguments to find nodes in them."""

    pickled = 0

    def __reduce__(self) -> Any:
        self.pickled += 1
        if self.pickled > 1:
            raise ValueError("no more")
        return Once, ()


class Box:
    def __init__(self, inside: object) -> None:
        self.inside = {"list": [1, inside]}


def capture(dag: Any) -> None:
    writer = ValueWriter(MemoryStorage(), "i1")
    capture_plan(dag, writer=writer, environment=Environment(), prefix="p")


def closing_over(value: object) -> Any:
    return ray.remote(lambda: value).bind()


def with_default(value: object) -> Any:
    def task(x=Box(value)):  # noqa: B008
        return x

    return ray.remote(task).bind()


NODE = f.bind(1)


@pytest.mark.parametrize(
    ("dag", "error", "message"),
    [
        (
            lambda: closing_over(Box(NODE)),
            SerializationError,
            r"lambda' can't be stored \(at .<closure>.value.inside\['list'\]\[1\]\): "
            r"it holds a DAG node \(FunctionNode of f\).*task.bind\(node\)",
        ),
        (
            lambda: f.bind(Box(Actor.bind())),
            TypeError,
            r"argument 1 of task '.*\.f' can't be stored "
            r"\(at .inside\['list'\]\[1\]\): .*ClassNode",
        ),
        (
            lambda: two.bind(1, [Actor.bind()]),
            TypeError,
            r"argument 2 of task '.*\.two' can't be stored \(at \[0\]\): .*ClassNode",
        ),
        (
            lambda: two.bind(1, second={"k": (Once(), 2)}),
            SerializationError,
            r"argument 'second' of task '.*\.two', of type dict, can't be stored "
            r"\(at \['k'\]\[0\], of type Once\): ValueError: no more",
        ),
        (
            lambda: closing_over(x for x in ()),
            SerializationError,
            r"\(at .<closure>.value, of type generator\)",
        ),
        (
            lambda: with_default(x for x in ()),
            SerializationError,
            r"\(at .__defaults__\[0\].inside\['list'\]\[1\], of type generator\)",
        ),
    ],
)
def test_the_way_to_what_is_refused_is_named(dag: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        capture(dag())


def test_nodes_in_results_are_refused_with_their_place() -> None:
    with pytest.raises(InvalidResultError, match=r"\(at \['a'\]\[0\]\).*workflow.continuation"):
        pickle_value({"a": [NODE]}, where="result")


def test_nodes_in_closures_of_arguments_are_tasks_of_the_dag() -> None:
    """As in Ray: they are given as ObjectRefs."""
    writer = ValueWriter(MemoryStorage(), "i1")
    dag = f.bind(lambda: NODE)
    plan = capture_plan(dag, writer=writer, environment=Environment(), prefix="p")
    assert [task.upstream for task in plan.tasks] == [(), (0,)]
    assert plan.tasks[1].nested == (0,)


class Unwilling:
    """Raises wherever it is looked at, as lazy proxies do whose target is gone."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __reduce__(self) -> Any:
        raise Unprintable


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def no_pickle() -> Iterator[int]:
    """What can't be pickled. (A lock can, once somebody has imported Ray Serve.)"""
    return (x for x in ())


class Keys(dict):
    def items(self) -> Any:
        raise RuntimeError


def over_an_empty_variable() -> Any:
    lock = no_pickle()

    def task():
        return later, lock

    if lock is None:
        later = 1
    return task


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([Unwilling()], r"\(at \[0\], of type Unwilling\)"),
        (Keys(a=no_pickle()), "of type Keys, can't be stored"),
        (over_an_empty_variable(), r"\(at .<closure>.lock, of type generator\)"),
    ],
    ids=["raises", "keys", "empty variable"],
)
def test_what_does_not_let_itself_be_looked_at_is_refused_as_any(value: Any, place: str) -> None:
    with pytest.raises(SerializationError, match=place):
        pickle_value(value, where="argument")


@pytest.mark.parametrize(
    ("dag", "args", "kwargs", "message"),
    [
        (f.bind, ([1, (x for x in ())],), {}, "input of the DAG.*at \\[1\\]"),
        (lambda i: f.bind(i[1]), (1, no_pickle()), {}, "input 1 of the DAG, of type generator"),
        (lambda i: f.bind(i.a), (), {"a": no_pickle()}, "input 'a' of the DAG, of type generator"),
    ],
)
def test_inputs_are_named(dag: Any, args: Any, kwargs: Any, message: str) -> None:
    writer = ValueWriter(MemoryStorage(), "i1")
    with InputNode() as inputs, pytest.raises(SerializationError, match=message):
        capture_plan(
            dag(inputs),
            writer=writer,
            environment=Environment(),
            prefix="p",
            args=args,
            kwargs=kwargs,
        )


def test_ray_itself_refuses_arguments_that_cannot_be_pickled() -> None:
    """Before there is a node, and without a hook: such an error can't name task and argument. When
    this fails, Ray leaves it to us, and `Arguments` names them."""
    for value in (sys._getframe(), no_pickle()):
        with pytest.raises(TypeError, match="cannot pickle") as caught:
            f.bind(value)
        assert "py_obj_scanner" in str(caught.traceback[-2].path) + str(caught.traceback[-3].path)


@durable
async def body(x):
    return x


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_gpus", 1),
        ("num_cpus", 2),
        ("num_cpus", 0.5),
        ("memory", 1 << 20),
        ("resources", {"special": 1}),
        ("accelerator_type", "H100"),
        ("scheduling_strategy", "SPREAD"),
    ],
)
def test_a_durable_function_has_no_resources(option: str, value: Any) -> None:
    dag = f.bind(body.options(**{option: value}).bind(1))
    with pytest.raises(ValueError, match=rf"body' is a durable function.*{option}=.*its steps"):
        capture(dag)


def test_what_a_durable_function_may_have() -> None:
    environment = {"env_vars": {"A": "1"}}
    for given in (
        {"num_cpus": 0, "num_gpus": 0, "resources": {}, "scheduling_strategy": "DEFAULT"},
        {"num_cpus": 1, "name": "me", "runtime_env": environment},
        {"max_retries": 5, "retry_exceptions": [ValueError]},
        options(task_id="me", catch_exceptions=True),
    ):
        capture(body.options(**given).bind(1))
