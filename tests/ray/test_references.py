"""ObjectRefs inside of what tasks return: stored to any depth, and ObjectRefs again."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from typing import Any

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from ray_workflows._capture.objects import ObjectWriter, remember_restored, restored_objects
from ray_workflows._capture.pickling import Pickled
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._model.values import Value
from ray_workflows.exceptions import SerializationError
from ray_workflows.storage import MemoryStorage

UNSTORED = workflow.options(checkpoint=False)


@dataclasses.dataclass
class Box:
    content: Any


@ray.remote
def boxes() -> dict[str, Any]:
    """All shapes, and who made what they refer to."""
    array = ray.put(np.arange(100_000))
    return {
        "twice": [array, array],
        "of a ref": ray.put([ray.put([array])]),
        "dataclass": Box({("k", 1): ray.put(bytearray(b"deep"))}),
        "of a task": plain.remote(7),
        "pid": os.getpid(),
    }


@ray.remote
def plain(value: Any) -> Any:
    return value


@ray.remote
def ref_of(value: Any) -> ray.ObjectRef:
    return ray.put([ray.put(value)])


@ray.remote
def checked(value: Any) -> str:
    check(value)
    return "checked"


@ray.remote
def checked_refs(refs: list[ray.ObjectRef]) -> str:
    check(ray.get(refs[0]))
    return "checked"


def check(found: dict[str, Any]) -> None:
    first, second = found["twice"]
    assert first == second
    assert ray.get(first).sum() == np.arange(100_000).sum()
    (inner,) = ray.get(found["of a ref"])
    (innermost,) = ray.get(inner)
    assert ray.get(innermost)[-1] == 99_999
    # Ray itself makes bytes of a bytearray that is put.
    assert bytes(ray.get(found["dataclass"].content["k", 1])) == b"deep"
    assert ray.get(found["of a task"]) == 7


def test_refs_come_back_as_refs_also_when_their_owner_is_gone(wid: str) -> None:
    node = boxes.options(**workflow.options(task_id="boxes")).bind()
    takers = [checked.bind(node), checked_refs.bind([node])]
    off = boxes.options(**UNSTORED).bind()
    takers += [checked.bind(off), checked_refs.bind([off])]
    assert workflow.run(plain_list.bind(takers), workflow_id=wid) == ["checked"] * 4
    output = workflow.run(boxes.bind(), workflow_id=f"{wid}-output")
    check(output)
    os.kill(output["pid"], signal.SIGKILL)
    found = workflow.get_output(f"{wid}-output")
    check(found)
    check(workflow.get_output(wid, task_id="boxes"))


@ray.remote
def plain_list(refs: list[ray.ObjectRef]) -> list[Any]:
    return ray.get(refs)


def test_a_result_that_is_a_ref_is_one_to_each_that_takes_it(wid: str) -> None:
    for number, options in enumerate(({}, UNSTORED)):
        node = ref_of.options(**options).bind(5)
        dag = kinds.bind(node, [node], [ref_of.bind(6)])
        got = workflow.run(dag, workflow_id=f"{wid}-{number}")
        assert got == ["ObjectRef", "ObjectRef", "ObjectRef"]
        output = workflow.run(ref_of.options(**options).bind(5), workflow_id=f"{wid}-o-{number}")
        assert ray.get(ray.get(output)[0]) == 5


@ray.remote
def kinds(*values: Any) -> list[str]:
    first, *lists = values
    return [type(each).__name__ for each in (first, *[ray.get(refs[0]) for refs in lists])]


def test_objects_in_each_other_are_stored_to_any_depth_and_once() -> None:
    shared = ray.put("shared")
    ref = shared
    for _ in range(1500):
        ref = ray.put([ref, shared])
    storage = MemoryStorage()
    writer = ObjectWriter(storage, "i")
    (top,) = writer.write_all(Pickled(b"", (), [ref]), where="value")
    assert len(writer.blobs) == 1501
    reader = ValueReader(storage, "i", writer.written)
    below = reader.read(Value(top), where="value")
    assert [type(each) for each in below] == [ray.ObjectRef] * 2
    assert ray.get(below[1]) == "shared"


def test_what_was_restored_is_not_stored_again() -> None:
    storage = MemoryStorage()
    ref = ray.put(1)
    writer = ObjectWriter(storage, "i")
    (blob,) = writer.write_all(Pickled(b"", (), [ref]), where="value")
    again = ray.put(1)
    remember_restored(again, "i", blob)
    assert ObjectWriter(storage, "i").write_all(Pickled(b"", (), [again]), where="v") == (blob,)
    assert ObjectWriter(storage, "j").write_all(Pickled(b"", (), [again]), where="v") != (blob,)
    restored_objects.clear()


@ray.remote(num_cpus=0)
class Loop:
    """Whose call returns an ObjectRef of its own result."""

    def __init__(self) -> None:
        self.told = asyncio.Event()

    async def tell(self, refs: list[ray.ObjectRef]) -> None:
        self.refs = refs
        self.told.set()

    async def result(self) -> Any:
        await self.told.wait()
        return {"self": self.refs}


@pytest.mark.timeout(60)
def test_an_object_that_refers_to_itself_is_refused() -> None:
    loop = Loop.remote()
    ref = loop.result.remote()
    ray.get(loop.tell.remote([ref]))
    with pytest.raises(SerializationError, match=r"value\[0\].* refers to itself") as caught:
        ValueWriter(MemoryStorage(), "i").write([ref], key="k", where="result of task 't'")
    assert "result of task 't'" in str(caught.value)
    ray.kill(loop)


@ray.remote(num_cpus=0)
def lose() -> None:
    raise ray.exceptions.ObjectLostError("00", "", "")


def test_an_object_that_is_lost_is_named_with_its_place() -> None:
    outer = ray.put({"deep": [None, lose.remote()]})
    with pytest.raises(SerializationError, match="is lost") as caught:
        ValueWriter(MemoryStorage(), "i").write(Box([outer]), key="k", where="result of task 't'")
    message = str(caught.value)
    assert "ray.get(value.content[0])['deep'][1]" in message
    assert "result of task 't'" in message
    assert isinstance(caught.value.__cause__, ray.exceptions.ObjectLostError)
