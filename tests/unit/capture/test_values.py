"""A value is the same to every reader: from the storage, or as a live copy of any kind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from ray import cloudpickle

from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.values import Brought, ValueReader, ValueWriter
from ray_workflows._codec.placeholders import UPSTREAM_REF, UPSTREAM_VALUE
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._model.messages import AttemptReturned
from ray_workflows._model.values import Blob, Outcome
from ray_workflows.storage.memory import MemoryStorage
from tests.unit.kinds_of_values import VALUES, described
from tests.unit.workers import Process, attempt, run


def through_ray(value: Any) -> Any:
    """What arrives of a value: Ray's pickler, with buffers beside the pickle."""
    buffers: list[pickle.PickleBuffer] = []
    data = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES.keys())
def test_a_live_copy_is_what_is_stored(make: Callable[[], Any]) -> None:
    value = make()
    pickled = pickle_value(value, where="value")
    storage = MemoryStorage()
    stored = ValueWriter(storage, "i").write_pickled(pickled, key="k", where="value")
    reader = ValueReader(storage, "i")
    expected = described(reader.read(stored, where="value"))
    copies = {
        "of this process": pickled.open(),
        "through Ray": through_ray(pickled),
        "all in the pickle": pickle.loads(pickle.dumps(pickled, 5)),
        "restored": through_ray(reader.unopened(reader.envelope(stored, where="value"))),
    }
    assert {name: described(copy) for name, copy in copies.items()} == dict.fromkeys(
        copies, expected
    )
    if not isinstance(value, (memoryview, pickle.PickleBuffer)):
        # Of these nothing but their bytes can be had.
        assert type(copies["through Ray"]) is type(value)


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("checkpoint", [True, False])
def test_each_taker_of_a_result_gets_the_same(make: Callable[[], Any], checkpoint: bool) -> None:
    storage, process = MemoryStorage(), Process()
    (report,), live = run(storage, attempt(make, checkpoint=checkpoint), process=process)
    assert isinstance(report, AttemptReturned)
    stored = pickle_value(make(), where="value").open()
    taker = msgspec.structs.replace(attempt(len), inputs=(Outcome(report.value),))
    if isinstance(report.value.data, Blob):
        assert list(live) == [report.value.data.key]
    brought = {key: Brought(value) for key, value in live.items()}
    kept = {key: pickle_value(make(), where="value") for key in live}
    for copies in (brought, kept, {}):
        takes = AttemptRun(taker, storage, copies, process, 2, 2)
        if copies or checkpoint:
            assert described(takes.resolve(UPSTREAM_VALUE, 0)) == described(stored)
        if copies is kept:
            assert described(takes.resolve(UPSTREAM_REF, 0)) == described(stored)
