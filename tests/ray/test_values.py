"""A value is the same to each that gets it on a real cluster: `tests/unit/kinds_of_values.py`."""

from __future__ import annotations

from typing import Any

import ray

import ray_workflows as workflow
from ray_workflows._capture.pickling import pickle_value
from tests.unit.kinds_of_values import SIZES, VALUES, described

UNSTORED = workflow.options(checkpoint=False)


@ray.remote
def made(name: str) -> Any:
    return VALUES[name]()


@ray.remote
def passed_on(value: Any) -> Any:
    return value


@ray.remote
def described_value(value: Any) -> Any:
    return described(value)


@ray.remote
def described_ref(refs: list[ray.ObjectRef]) -> Any:
    return described(ray.get(refs[0]))


@ray.remote
def both(value: Any, refs: list[ray.ObjectRef]) -> Any:
    return described(value), described(ray.get(refs[0]))


@ray.remote
def listed(*values: Any) -> list[Any]:
    return list(values)


def test_every_taker_of_a_value_gets_the_same(wid: str) -> None:
    names = list(VALUES)
    expected = [described(pickle_value(VALUES[n](), where="v").open()) for n in names]
    off = made.options(**UNSTORED)
    takers = {
        "a result": [described_value.bind(made.bind(name)) for name in names],
        "a result that is not stored": [described_value.bind(off.bind(name)) for name in names],
        "an ObjectRef of one": [described_ref.bind([made.bind(name)]) for name in names],
        "an ObjectRef of one that is not": [described_ref.bind([off.bind(n)]) for n in names],
        "an argument": [described_value.bind(VALUES[name]()) for name in names],
        "a value in a list": [described_value.bind([VALUES[name]()]) for name in names],
    }
    got = workflow.run(
        listed.bind(*[listed.bind(*nodes) for nodes in takers.values()]), workflow_id=wid
    )
    expected_in_list = [("list", [each], [True]) for each in expected]
    for (way, _), values in zip(takers.items(), got, strict=True):
        wanted = expected_in_list if way == "a value in a list" else expected
        assert dict(zip(names, values, strict=True)) == dict(zip(names, wanted, strict=True)), way


def test_every_output_is_the_value(wid: str) -> None:
    """As it is waited for, as its ref gives it, and as the storage has it."""
    names = [name for name in VALUES if not name.endswith(str(SIZES[0]))]
    ids = [f"{wid}-{number}" for number in range(len(names))]
    refs = workflow.run_async_many([made.bind(name) for name in names], workflow_ids=ids)
    for name, workflow_id, ref in zip(names, ids, refs, strict=True):
        expected = described(pickle_value(VALUES[name](), where="v").open())
        assert described(ray.get(ref)) == expected, name
        assert described(workflow.get_output(workflow_id)) == expected, name
    for name in ("bytearray, 20000", "bytearray, 300000", "numpy, 300000", "odd, 300000"):
        expected = described(pickle_value(VALUES[name](), where="v").open())
        output = workflow.run(passed_on.bind(made.bind(name)), workflow_id=f"{wid}-{name[:12]}")
        assert described(output) == expected, name


def test_one_task_takes_a_value_and_a_reference_to_it() -> None:
    for task in (made, made.options(**UNSTORED)):
        for name in ("bytearray, 100", "bytearray, 300000"):
            node = task.bind(name)
            got = workflow.run(both.bind(node, [node]))
            expected = described(pickle_value(VALUES[name](), where="v").open())
            assert got == (expected, expected), name
