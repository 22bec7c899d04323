"""Capture: a Ray DAG becomes a plan. No cluster is needed for it."""

from __future__ import annotations

import gc
import json
import os
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import ray
from ray import cloudpickle
from ray.dag import InputNode
from ray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)

from ray_workflows import options, sleep, wait_for_event
from ray_workflows._capture import garbage, pickling, unpickling
from ray_workflows._capture.dag import capture_plan, function_name
from ray_workflows._capture.options import decode_ray_options, task_options
from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.unpickling import unpickle_value
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._codec.envelope import seal
from ray_workflows._codec.placeholders import CONSTANT, UPSTREAM_REF, UPSTREAM_VALUE
from ray_workflows._model.plan import LISTENER, TIMER, Environment, Plan
from ray_workflows._model.values import INLINE_LIMIT, Blob
from ray_workflows.events import TimerListener
from ray_workflows.exceptions import SerializationError
from ray_workflows.storage import MemoryStorage
from tests.unit.driver import Driver
from tests.unit.plans import plan as engine_plan


@ray.remote
def f(*args, **kwargs):
    return args, kwargs


@ray.remote
def g():
    return 0


@ray.remote
def add(a, b):
    return a + b


def capture(dag, *args, storage=None, **kwargs) -> Plan:
    writer = ValueWriter(storage or MemoryStorage(), "i1")
    return capture_plan(
        dag, writer=writer, environment=Environment(), prefix="p", args=args, kwargs=kwargs
    )


def arguments(plan: Plan, index: int):
    """The arguments of a task, placeholders as (kind, index)."""
    reader = ValueReader(MemoryStorage(), "i1")
    return reader.read(
        plan.tasks[index].arguments, where="x", resolve=lambda kind, index: (kind, index)
    )


def test_topological_order_with_the_output_last() -> None:
    shared = g.bind()
    plan = capture(f.bind(f.bind(shared), shared))
    names = [task.name for task in plan.tasks]
    assert names == [f"{__name__}.g", f"{__name__}.f", f"{__name__}.f"]
    assert [task.upstream for task in plan.tasks] == [(), (0,), (1, 0)]
    assert len(plan.functions) == 2
    assert len(plan.options) == 1


def test_direct_and_nested_nodes() -> None:
    a, b = g.bind(), g.bind()
    plan = capture(f.bind(a, [b], key={"x": a}))
    args, kwargs = arguments(plan, 2)
    assert args == ((UPSTREAM_VALUE, 0), [(UPSTREAM_REF, 1)])
    assert kwargs == {"key": {"x": (UPSTREAM_REF, 0)}}
    assert plan.tasks[2].nested == (1,)


def test_dag_inputs_are_stored_once() -> None:
    with InputNode() as inputs:
        dag = f.bind(inputs[0], f.bind(inputs[0], inputs.b))
    plan = capture(dag, "first", b="second")
    assert len(plan.constants) == 2
    assert arguments(plan, 1)[0][0] == (CONSTANT, arguments(plan, 0)[0][0][1])


def test_equal_plans_have_equal_digests() -> None:
    assert capture(f.bind(1, g.bind())).digest == capture(f.bind(1, g.bind())).digest
    assert capture(f.bind(1)).digest != capture(f.bind(2)).digest
    assert capture(f.bind(g.bind())).digest != capture(f.bind(g.bind(), g.bind())).digest


def test_deep_dags_need_no_stack() -> None:
    node = g.bind()
    for _ in range(20_000):
        node = f.bind(node)
    assert len(capture(node).tasks) == 20_001


def test_a_diamond_ladder_is_linear() -> None:
    left, right = g.bind(), g.bind()
    for _ in range(60):
        left, right = f.bind(left, [right]), f.bind({"x": left}, right)
    assert len(capture(f.bind(left, right)).tasks) == 123


def test_large_arguments_become_blobs() -> None:
    storage = MemoryStorage()
    array = np.arange(INLINE_LIMIT)
    plan = capture(f.bind(array), storage=storage)
    value = plan.tasks[0].arguments
    (blob,) = value.objects
    assert blob.size > array.nbytes
    (restored,), _ = ValueReader(storage, "i1").read(value, where="x")
    assert (restored == array).all()
    assert not restored.flags.owndata


def test_options_travel() -> None:
    named = f.options(num_cpus=2, **options(task_id="me", metadata={"a": 1}, checkpoint=False))
    plan = capture(named.bind())
    (spec,) = plan.tasks
    chosen = plan.options[spec.options]
    assert spec.name == "me"
    assert (chosen.metadata, chosen.checkpoint) == ({"a": 1}, False)
    assert chosen.ray == {"num_cpus": 2}


def test_decorated_options_stay_under_call_options() -> None:
    @options(task_id="decorated", metadata={"a": 1})
    @ray.remote(num_cpus=3)
    def h():
        return 0

    def chosen(node):
        return task_options(node.get_options(), where="x")

    assert chosen(h.bind())[1] == "decorated"
    overridden, task_id = chosen(h.options(**options(task_id="called")).bind())
    assert (task_id, overridden.metadata) == ("called", {"a": 1})
    kept, task_id = chosen(h.options(num_cpus=1).bind())
    assert (task_id, kept.ray["num_cpus"]) == ("decorated", 1)
    # Labels of the user's own stay the user's own.
    mixed, task_id = chosen(h.options(_labels={"team": "a"}).bind())
    assert (task_id, mixed.ray["_labels"]) == ("decorated", {"team": "a"})


def test_none_takes_an_option_back_and_leaving_it_out_does_not() -> None:
    @options(checkpoint=False, metadata={"a": 1})
    @ray.remote
    def h():
        return 0

    def chosen(**given):
        return task_options(h.options(**options(**given)).bind().get_options(), where="x")[0]

    assert (chosen().checkpoint, chosen().metadata) == (False, {"a": 1})
    assert chosen(checkpoint=None).checkpoint is None
    assert chosen(metadata=None).metadata == {}


def test_strategies_are_data() -> None:
    affinity = NodeAffinitySchedulingStrategy("ab" * 28, soft=True)
    stored, _ = task_options({"scheduling_strategy": affinity}, where="x")
    decoded = decode_ray_options(stored.ray)["scheduling_strategy"]
    assert (decoded.node_id, decoded.soft) == ("ab" * 28, True)
    stored, _ = task_options({"scheduling_strategy": "SPREAD"}, where="x")
    assert decode_ray_options(stored.ray)["scheduling_strategy"] == "SPREAD"


def conditions(strategy: NodeLabelSchedulingStrategy) -> list[Any]:
    return [
        [(each.key, type(each.operator), vars(each.operator)) for each in expressions]
        for expressions in (strategy.hard, strategy.soft)
    ]


LABELS = NodeLabelSchedulingStrategy(
    {"zone": In("a", "b"), "disk": Exists()}, soft={"old": DoesNotExist(), "gpu": NotIn("x")}
)


def test_conditions_on_labels_of_nodes_are_data() -> None:
    stored, _ = task_options({"scheduling_strategy": LABELS}, where="x")
    assert json.loads(json.dumps(stored.ray)) == stored.ray
    decoded = decode_ray_options(stored.ray)["scheduling_strategy"]
    assert conditions(decoded) == conditions(LABELS)


def test_conditions_that_0_1_0_stored_are_read() -> None:
    stored = {"scheduling_strategy": {"node_label": cloudpickle.dumps(LABELS).hex()}}
    decoded = decode_ray_options(stored)["scheduling_strategy"]
    assert conditions(decoded) == conditions(LABELS)


class Hostile(NodeLabelSchedulingStrategy):
    """Runs something where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_no_strategy_of_a_users_is_unpickled_to_submit_a_task() -> None:
    """The coordinator does that, and again after each restart."""
    stored, _ = task_options({"scheduling_strategy": Hostile({"a": In("b")})}, where="x")
    decoded = decode_ray_options(stored.ray)["scheduling_strategy"]
    assert type(decoded) is NodeLabelSchedulingStrategy
    old = cloudpickle.dumps(Hostile({"a": In("b")})).hex()
    with pytest.raises(pickle.UnpicklingError, match="none of Ray's"):
        decode_ray_options({"scheduling_strategy": {"node_label": old}})


def test_timers_and_listeners() -> None:
    plan = capture(f.bind(sleep(5), wait_for_event(TimerListener, 1.0)))
    kinds = [plan.options[task.options].kind for task in plan.tasks]
    assert kinds == [TIMER, LISTENER, LISTENER, "function"]
    assert plan.options[plan.tasks[0].options].duration == 5.0


def test_what_a_listener_acknowledges_is_stored() -> None:
    """Also in the continuation of a task whose own result is not."""
    d = Driver(engine_plan(("f", (), {"checkpoint": False}), ("end", (0,))))
    d.go_on("f", capture(f.bind(wait_for_event(TimerListener, 1.0))))
    name = f"event-{TimerListener.__name__}"
    tasks = {task.task_id: task for task in d.state.tasks.values()}
    assert d.state.checkpoints(tasks[name])
    assert not any(
        d.state.checkpoints(task) for key, task in tasks.items() if key not in (name, "end")
    )


def test_function_names() -> None:
    def inner() -> None:
        pass

    assert function_name(inner) == f"{__name__}.test_function_names.locals.inner"
    assert function_name(len) == "builtins.len"


def test_values_without_a_dict_are_described() -> None:
    def generator():
        yield 1

    with pytest.raises(SerializationError, match="of type generator"):
        pickle_value(generator(), where="result of task 'x'")


def test_pickled_values_come_back() -> None:
    value = {"a": np.ones(10_000), "b": [1, (2, "x")], "f": lambda x: x + 1}
    pickled = pickle_value(value, where="x")
    assert len(pickled.buffers) == 1
    restored = unpickle_value(pickled.data, pickled.buffers)
    assert restored["f"](1) == 2
    assert restored["a"].sum() == 10_000


def test_what_was_pickled_is_not_kept():
    """Gigabytes would stay in a worker until the garbage collector comes by."""
    value = np.ones(1_000_000)
    kept = weakref.ref(value)
    gc.disable()
    try:
        pickled = pickle_value(value, where="x")
        assert pickled.buffers[0].nbytes == value.nbytes
        del pickled, value
        assert kept() is None
    finally:
        gc.enable()


class Text(str):
    """One that a pickler has to look at: no atom."""


DEEP: Any = ((((1,),),),)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (((1, "a", 2.5, None, b"x", True), {"b": 1}), True),
        ({"a": (1, 2), 3: {"b": None}}, True),
        ("placeholder", True),
        (Text("a"), False),
        ((Text("a"),), False),
        ({Text("a"): 1}, False),
        ([1], False),
        (tuple(range(100)), False),
        (DEEP, False),
    ],
)
def test_simple_values_are_pickled_as_others_are(
    value: Any, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pickling.is_plain(value) is plain
    fast = pickling.pickle_value(value, where="a value")
    assert unpickling.unpickle_value(fast.data, []) == value
    monkeypatch.setattr(pickling, "is_plain", lambda value: False)
    assert pickling.pickle_value(value, where="a value").data == fast.data


#: Pickles at the sizes at which the header of their envelope grows.
SIZES = [*range(100, 300), *range(65_400, 65_600)]


def test_small_plain_values_are_read_without_opening_their_envelopes() -> None:
    for size in SIZES:
        value = b"v" * size
        pickled = pickling.pickle_value(value, where="a value").data
        assert unpickling.unpickle_plain(b"".join(seal(pickled, []))) == value
    assert unpickling.unpickle_plain(b"".join(seal(pickle.dumps("placeholder"), []))) is None


def test_only_whole_envelopes_of_nothing_but_a_pickle_are_taken_for_such() -> None:
    # For a shorter or longer one, of every size, the long way finds out what is wrong with it.
    for size in SIZES:
        whole = b"".join(seal(pickle.dumps(b"v" * size), []))
        for end in range(len(whole) - 20, len(whole)):
            assert unpickling.unpickle_plain(whole[:end]) is None
    pickled = pickle.dumps(b"v" * 200)
    whole = b"".join(seal(pickled, []))
    for end in range(len(whole)):
        assert unpickling.unpickle_plain(whole[:end]) is None
    assert unpickling.unpickle_plain(whole + b"!") is None
    assert unpickling.unpickle_plain(b"XX" + whole[2:]) is None
    assert unpickling.unpickle_plain(b"".join(seal(pickled, [memoryview(b"b")]))) is None
    assert unpickling.unpickle_plain(b"".join(seal(pickled, [], [Blob("object", 1, "c")]))) is None


def test_plans_are_identified_by_shape_and_arguments() -> None:
    def digest(dag: Any) -> str:
        return capture(dag).digest

    shared = [f.bind(n) for n in range(600)]
    many = f.bind(*shared)
    digests = [
        digest(many),
        digest(f.bind(f.bind(-1), *shared[1:])),
        digest(f.bind(*shared[:-1], f.bind(-1))),
        digest(f.bind(*shared[:-1], g.bind())),
        digest(f.bind(*shared[1:])),
        digest(f.bind(*shared, 1)),
        digest(f.bind(*shared, shared[0])),
    ]
    assert digests[0] == digest(many) == digest(f.bind(f.bind(0), *shared[1:]))
    assert len(set(digests)) == len(digests)


def test_wrong_calls_are_found_behind_right_ones() -> None:
    right = [add.bind(n, 1) for n in range(3)]
    with pytest.raises(TypeError, match="add"):
        capture(f.bind(*right, add.bind(1)))
    with pytest.raises(TypeError, match="add"):
        capture(f.bind(*right, add.bind(1, c=2)))


def test_garbage_is_looked_for_less_often_while_a_dag_is_captured() -> None:
    before = gc.get_threshold()
    seen = []

    class Value:
        def __reduce__(self) -> Any:
            seen.append(gc.get_threshold())
            return str, ()

    capture(add.bind(Value(), 1))
    with pytest.raises(TypeError):
        capture(add.bind(1))
    assert gc.get_threshold() == before
    assert seen[-1][0] == garbage.YOUNG_OBJECTS
