"""Large parts of arguments are stored once for all tasks; each task gets a copy of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray

from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._client.blob_copies import copy_blobs
from ray_workflows._codec.references import blobs_in
from ray_workflows._model.plan import Environment, Plan
from ray_workflows.exceptions import SerializationError
from ray_workflows.storage.memory import MemoryStorage
from tests.unit.codec.test_payload_codec import Salted
from tests.unit.kinds_of_values import VALUES, described

SIZE = 3_000_000


@ray.remote
def take(*args: Any, **kwargs: Any) -> None: ...


def captured(dag: Any, storage: Any, prefix: str = "p") -> Plan:
    writer = ValueWriter(storage, "i")
    return capture_plan(dag, writer=writer, environment=Environment(), prefix=prefix)


def arguments(storage: Any, plan: Plan, index: int, incarnation: str = "i") -> Any:
    def resolve(kind: str, number: int) -> Any:
        return kind

    reader = ValueReader(storage, incarnation)
    return reader.read(plan.tasks[index].arguments, where="arguments", resolve=resolve)


def stored_bytes(storage: Any) -> int:
    """What the blobs of the incarnation take."""
    return sum(stored.blob.size for stored in storage.blobs.home.blobs["i"].values())


def large_list() -> list[bytes]:
    return [number.to_bytes(100, "big") for number in range(SIZE // 100)]


MAKES = {
    "array": lambda: np.arange(SIZE // 8),
    "bytes": lambda: bytes(SIZE),
    "bytearray": lambda: bytearray(SIZE),
    "list": large_list,
    "frame": lambda: pd.DataFrame({"a": range(SIZE // 16), "b": range(SIZE // 16)}),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
@pytest.mark.parametrize("again", ["the same", "another one"])
def test_a_large_argument_is_stored_once(make: Any, again: str) -> None:
    storage = MemoryStorage()
    value = make()
    values = [value if again == "the same" else make() for _ in range(20)]
    nodes = [take.bind(each, number, key=number) for number, each in enumerate(values)]
    plan = captured(take.bind(*nodes), storage)
    assert stored_bytes(storage) < 2 * SIZE
    for number in range(20):
        (got, first), kwargs = arguments(storage, plan, number)
        assert (first, kwargs) == (number, {"key": number})
        assert type(got) is type(value)
        assert np.all(np.asarray(got) == np.asarray(value))


def test_an_array_inside_of_arguments_is_stored_once() -> None:
    storage = MemoryStorage()
    array = np.arange(SIZE // 8)
    nodes = [take.bind([array, n], deep={"a": (array, n)}) for n in range(20)]
    plan = captured(take.bind(*nodes), storage)
    assert stored_bytes(storage) < 1.5 * SIZE
    (pair,), kwargs = arguments(storage, plan, 7)
    assert (pair[1], kwargs["deep"]["a"][1]) == (7, 7)
    assert (pair[0] == array).all()
    # As in one pickle: what was one object in the arguments of a task is one there.
    assert pair[0] is kwargs["deep"]["a"][0]


def test_contents_that_differ_are_different_parts() -> None:
    storage = MemoryStorage()
    arrays = [np.arange(SIZE // 8) for _ in range(3)]
    arrays[1][-1] = 0
    shaped = arrays[0].reshape(5, -1)
    plan = captured(take.bind(*[take.bind(each) for each in (*arrays, shaped)]), storage)
    (keys,) = {tuple(task.arguments.objects[0].key for task in plan.tasks[:4])}
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3
    for index, expected in enumerate((*arrays, shaped)):
        (got,), _ = arguments(storage, plan, index)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", VALUES)
def test_a_shared_argument_is_what_an_own_one_is(name: str) -> None:
    """Of each kind and size: by itself, and inside of a list."""
    storage = MemoryStorage()
    value = VALUES[name]()
    plan = captured(take.bind(take.bind(value), take.bind([value, 1])), storage)
    reader = ValueReader(storage, "i")
    alone = reader.read(ValueWriter(storage, "i").write(value, key="own", where="v"), where="v")
    (got,), _ = arguments(storage, plan, 0)
    ((inner, one),), _ = arguments(storage, plan, 1)
    assert described(got) == described(inner) == described(alone)
    assert one == 1


def test_nodes_in_a_large_argument_stay_its_tasks_own() -> None:
    storage = MemoryStorage()
    array = np.arange(SIZE // 8)
    below = take.bind()
    large = [below, array, bytes(200_000)]
    plan = captured(take.bind(large, below, large), storage)
    (first, direct, second), _ = arguments(storage, plan, 1)
    assert first[0] == "upstream-ref"
    assert direct == "upstream-value"
    assert first is second
    assert (first[1] == array).all()


def test_a_large_argument_that_cannot_be_stored_is_refused() -> None:
    class Locked:
        """Ray's own ``bind`` takes it once."""

        taken = False

        def __reduce__(self) -> Any:
            if self.taken:
                raise ValueError("it has a lock")
            type(self).taken = True
            return Locked, ()

    node = take.bind([bytes(200_000), Locked()])
    with pytest.raises(SerializationError, match="it has a lock"):
        captured(node, MemoryStorage())


def test_parts_go_where_their_workflow_goes() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    plan = captured(take.bind(np.arange(SIZE // 8), [np.ones(SIZE // 8)]), source)
    copy_blobs(source, "i", target, "j", blobs_in(plan))
    (first, (second,)), _ = arguments(target, plan, 0, "j")
    assert (first[-1], second[-1]) == (SIZE // 8 - 1, 1.0)
    # What is there already is the same.
    copy_blobs(source, "i", target, "j", blobs_in(plan))
    source.delete_blobs("i")
    assert (arguments(target, plan, 0, "j")[0][0] == first).all()


def test_encoded_parts_are_stored_once_too() -> None:
    inner = MemoryStorage()
    storage = inner.with_codecs((Salted(),))
    array = np.arange(SIZE // 8)
    plan = captured(take.bind(*[take.bind(array, turn) for turn in range(4)]), storage)
    assert stored_bytes(inner) < 1.5 * SIZE
    assert (arguments(storage, plan, 3)[0][0] == array).all()


@pytest.mark.parametrize("codecs", [(), (Salted(),)], ids=["plain", "encoded"])
def test_plans_over_other_contents_are_other_plans(codecs: Any) -> None:
    array = np.arange(20_000)
    other = array.copy()
    other[5] = 0

    def digest(*values: Any) -> str:
        storage: Any = MemoryStorage().with_codecs(codecs)
        return captured(take.bind(*[take.bind(value) for value in values]), storage).digest

    assert digest(array, other) == digest(array.copy(), other.copy())
    shapes = [(array, array), (array, other), (other, array), (other, other)]
    shapes += [([one, 1], [two, 2]) for one, two in shapes]
    assert len({digest(*values) for values in shapes}) == len(shapes)
