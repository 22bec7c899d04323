"""Names that stand for contents: equal names mean equal functions, arguments and objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from ray_workflows._capture import objects
from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.functions import function_digest
from ray_workflows._capture.objects import identity_of
from ray_workflows._capture.pickling import Pickled
from ray_workflows._capture.values import ValueWriter
from ray_workflows._executor.protocol import AttemptRequest, AttemptTemplate
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._executor.worker.process import HERE
from ray_workflows._model.messages import AttemptLostInput
from ray_workflows._model.plan import Environment, Function, Plan, TaskOptions
from ray_workflows._ray import private
from ray_workflows.storage import MemoryStorage
from tests.unit.codec.test_payload_codec import Salted


@ray.remote
def listed(*values):
    return list(values)


def over_closure(ref):
    def read():
        return ray.get(ref)

    return read


def over_default(ref):
    def read(refs=[ref]):  # noqa: B006
        return ray.get(refs[0])

    return read


def over_global(ref):
    names = {"ray": ray, "shared": ref, "__name__": "__main__"}
    exec("def read(): return ray.get(shared)", names)
    return names["read"]


def over_large_closure(ref):
    large = np.zeros(100_000)

    def read():
        return ray.get(ref) + int(large.sum())

    return read


def over_method(ref):
    class Reader:
        def __init__(self):
            self.parts = {"deep": [ref]}

    reader = Reader()

    def read():
        return ray.get(reader.parts["deep"][0])

    return read


def over_nested_object(ref):
    outer = ray.put([ref])

    def read():
        return ray.get(ray.get(outer)[0])

    return read


WAYS = [
    over_closure,
    over_default,
    over_global,
    over_large_closure,
    over_method,
    over_nested_object,
]


def captured(dag: Any, storage: Any = None) -> Plan:
    writer = ValueWriter(storage or MemoryStorage(), "i1")
    return capture_plan(dag, writer=writer, environment=Environment(), prefix="p")


def test_functions_over_other_objects_are_other_functions(wid: str) -> None:
    """In each way in which a function can come to an ObjectRef, in one workflow and in several."""
    readers = [ray.remote(way(ray.put(n))) for way in WAYS for n in range(2)]
    plan = captured(listed.bind(*[reader.bind() for reader in readers]))
    assert len({function.digest for function in plan.functions}) == len(readers) + 1
    expected = [0, 1] * len(WAYS)
    one = workflow.run(listed.bind(*[r.bind() for r in readers]), workflow_id=f"{wid}-one")
    assert one == expected
    two = [r.bind() for r in readers[:2]]
    each = workflow.run_async_many(two, workflow_ids=[f"{wid}-two", f"{wid}-three"])
    assert ray.get(each) == [0, 1]


def test_equal_functions_over_one_object_are_one() -> None:
    ref = ray.put(1)
    digests = [captured(ray.remote(over_closure(ref)).bind()).functions[0].digest for _ in range(2)]
    assert digests[0] == digests[1]


def an_attempt(ref: ray.ObjectRef, digest: str) -> AttemptRun:
    """An attempt of a function over an ObjectRef, in this process."""
    storage = MemoryStorage()
    plan = captured(ray.remote(over_closure(ref)).bind(), storage)
    (stored,) = plan.functions
    function = Function(digest, stored.name, stored.data, stored.objects)
    scene = AttemptTemplate("wf", "i1", function, TaskOptions(), Environment(), ())
    request = AttemptRequest(scene, 0, "t", 1, 1, plan.tasks[0].arguments, True)
    return AttemptRun(request, storage, {stored.objects[0].key: ref}, HERE, 1, 1)


def test_functions_stored_by_0_1_0_are_told_apart_by_their_objects() -> None:
    """Their digests are of their pickles alone."""
    attempts = [an_attempt(ray.put(n), "of 0.1.0") for n in range(2)]
    assert [attempt.load()[0]() for attempt in attempts] == [0, 1]


def test_a_function_whose_object_is_lost_is_read_again() -> None:
    ref = ray.put(1)
    attempt = an_attempt(ref, "lost")
    function, _, _ = attempt.load()
    assert attempt.load()[0] is function
    report = attempt.raised(ray.exceptions.ObjectLostError(ref.hex(), "", ""))
    assert isinstance(report, AttemptLostInput)
    assert attempt.load()[0] is not function


def test_plans_over_other_objects_are_other_plans() -> None:
    def digest(value: object, storage: Any = None) -> str:
        return captured(listed.bind([ray.put(value)]), storage).digest

    def encoded() -> Any:
        return MemoryStorage().with_codecs((Salted(),))

    for stores in (MemoryStorage, encoded):
        assert digest(1, stores()) != digest(2, stores())
    # As good as the same: a script that runs again has put the same into another object.
    assert digest(1) == digest(1)


def test_an_object_is_the_same_for_its_owner_and_its_borrowers() -> None:
    @ray.remote
    def seen(refs: list[ray.ObjectRef]) -> str:
        return identity_of(refs[0])

    @ray.remote
    def put() -> tuple[list[ray.ObjectRef], str]:
        ref = ray.put(1)
        return [ref], identity_of(ref)

    ref = ray.put(1)
    assert ray.get(seen.remote([ref])) == identity_of(ref)
    refs, owner = ray.get(put.remote())
    assert ray.get(seen.remote(refs)) == identity_of(refs[0]) == owner


def test_objects_of_other_clusters_are_other_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts ids anew in each: what the first driver puts first has always the same."""
    ref = ray.put(1)
    address = private.owner_address(ref)
    assert bytes.fromhex(ray.get_runtime_context().get_node_id()) in address
    identities = {identity_of(ref), identity_of(ray.put(1))}
    for other in (b"", address + b"x"):
        monkeypatch.setattr(objects, "owner_address", lambda ref, other=other: other)
        identities.add(identity_of(ref))
    assert len(identities) == 4


def test_an_object_that_ray_does_not_know_has_no_owner() -> None:
    assert private.owner_address(ray.ObjectRef(b"x" * 28)) == b""


def test_functions_over_buffers_cut_elsewhere_are_other_functions() -> None:
    data = memoryview(bytes(10))
    digests = {function_digest(Pickled(b".", [data[:cut], data[cut:]]), ()) for cut in range(1, 10)}
    assert len(digests) == 9
