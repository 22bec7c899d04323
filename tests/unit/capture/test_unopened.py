"""Outputs pass through the waiter as they were stored, and are opened where they arrive."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import ray

from ray_workflows._capture.pickling import Pickled
from ray_workflows._capture.unopened import UnopenedError, UnopenedReader
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._client.waiter import OutputError
from ray_workflows._model.values import ErrorInfo, Outcome
from ray_workflows.codec import PayloadCodec
from ray_workflows.exceptions import WorkflowExecutionError
from ray_workflows.storage import MemoryStorage

#: How often something of `Poison` was unpickled.
opened: list[str] = []


def note(text: str) -> Any:
    opened.append(text)
    return text


class Poison:
    """Whose unpickling runs code, and may do anything."""

    def __reduce__(self) -> Any:
        return note, ("value",)


class PoisonError(ValueError):
    def __reduce__(self) -> Any:
        return note_error, ("error",)


def note_error(text: str) -> ValueError:
    opened.append(text)
    return ValueError(text)


class BrokenError(Exception):
    """Whose unpickling raises."""

    def __reduce__(self) -> Any:
        return fail, ()


def fail() -> None:
    raise KeyError("gone")


class Rot13(PayloadCodec):
    name = "rot13"

    def encode(self, data: bytes) -> bytes:
        return bytes((byte + 13) % 256 for byte in data)

    def decode(self, data: bytes) -> bytes:
        return bytes((byte - 13) % 256 for byte in data)


@pytest.fixture(autouse=True)
def nothing_opened() -> None:
    opened.clear()


@pytest.fixture(params=["plain", "encoded"])
def storage(request: pytest.FixtureRequest) -> Any:
    storage = MemoryStorage()
    return storage if request.param == "plain" else storage.with_codecs([Rot13()])


def through_ray(value: Any) -> Any:
    """What arrives of a value that an actor returns: buffers travel out of band."""
    buffers: list[pickle.PickleBuffer] = []
    data = ray.cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


def read(storage: Any, value: Any) -> Any:
    stored = ValueWriter(storage, "i").write(value, key="k", where="value")
    opened.clear()
    return UnopenedReader(storage, "i").read_outcome(Outcome(stored), where="output")


@pytest.mark.parametrize("value", [None, 7, "text", {"a": [1, (2,)]}, b"x" * 100_000])
def test_a_value_arrives_as_it_was(storage: Any, value: Any) -> None:
    found = read(storage, value)
    assert type(found) is Pickled
    assert through_ray(found) == value


def test_an_array_arrives_as_it_was_and_its_buffer_is_not_copied_into_the_pickle(
    storage: Any,
) -> None:
    array = np.arange(100_000)
    found = read(storage, {"array": array})
    buffers: list[pickle.PickleBuffer] = []
    data = ray.cloudpickle.dumps(found, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 2_000
    assert [buffer.raw().nbytes for buffer in buffers] == [array.nbytes]
    assert (through_ray(found)["array"] == array).all()


def test_code_of_a_value_runs_where_it_arrives_and_nowhere_else(storage: Any) -> None:
    for poison in (Poison(), [Poison(), "x" * 100_000]):
        found = read(storage, poison)
        data = pickle.dumps(found, 5)
        assert opened == []
        pickle.loads(data)
        assert opened == ["value"]


def test_code_of_an_error_runs_where_it_arrives_and_nowhere_else(storage: Any) -> None:
    writer = ValueWriter(storage, "i")
    info = writer.write_error(PoisonError("boom"), key="e", traceback="Traceback: at line 5")
    opened.clear()
    reader = UnopenedReader(storage, "i")
    error = reader.read_error(info, where="task 'a'")
    failed = WorkflowExecutionError("w", "a", "boom")
    failed.__cause__ = error
    caught = reader.read_outcome(Outcome(error=info, wrapped=True), where="output")
    data = pickle.dumps((OutputError(failed), OutputError(error), caught), 5)
    assert opened == []
    output, raised, (nothing, value) = pickle.loads(data)
    assert nothing is None
    for arrived in (output.error.__cause__, raised.error, value):
        assert isinstance(arrived, ValueError)
        assert isinstance(arrived, ray.exceptions.RayTaskError)
        assert "at line 5" in str(arrived)


def test_an_error_that_cannot_be_opened_says_what_it_was(storage: Any) -> None:
    value = ValueWriter(storage, "i").write(BrokenError(), key="e", where="error")
    info = ErrorInfo("BrokenError", "it broke", exception=value)
    error = UnopenedReader(storage, "i").read_error(info, where="task 'a'")
    arrived = pickle.loads(pickle.dumps(error))
    assert "BrokenError: it broke (it can't be restored here" in repr(arrived)
    assert repr(arrived) == repr(ValueReader(storage, "i").read_error(info, where="task 'a'"))


def test_an_error_that_was_not_stored(storage: Any) -> None:
    error = UnopenedReader(storage, "i").read_error(ErrorInfo("Odd", "it broke"), where="task 'a'")
    assert isinstance(error, UnopenedError)
    assert str(error) == "Odd: it broke"
    arrived = pickle.loads(pickle.dumps(error))
    assert isinstance(arrived, RuntimeError)
    assert "Odd: it broke" in str(arrived)
