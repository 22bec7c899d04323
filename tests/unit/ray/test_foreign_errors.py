"""The coordinator runs nothing of a user's when Ray brings it a task's error."""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

import pytest
import ray
from ray.exceptions import NodeDiedError, ObjectLostError, RayError, RayTaskError

from ray_workflows._ray.errors import ErrorUnpickler, unpickle_no_user_errors

ran: list[str] = []

#: How Ray reads an error.
AS_RAY_READS = RayError.__dict__["from_ray_exception"]


def note(what: str) -> Exception:
    ran.append(what)
    return ValueError(what)


class Hostile(Exception):
    """Runs something of its own where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return note, ("hostile",)


class Attacks:
    """Pickles as a call of something that is no error."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayError, "from_ray_exception", AS_RAY_READS)
    unpickle_no_user_errors()
    ran.clear()


def through_ray(error: Exception) -> Exception:
    """An error as a process reads it that Ray brings it to."""
    found = RayError.from_bytes(error.to_bytes())  # type: ignore[attr-defined]
    assert isinstance(found, Exception)
    return found


@pytest.mark.usefixtures("guarded")
def test_an_error_of_a_users_class_is_read_as_text() -> None:
    error = RayTaskError("task", "Traceback: Hostile of the task", Hostile())
    ran.clear()
    found = through_ray(error)
    assert ran == []
    assert isinstance(found, RayTaskError)
    assert "Hostile" in str(found)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("function", [os.system, eval, getattr, ray.cloudpickle.loads])
def test_nothing_but_an_error_can_be_called(function: Any) -> None:
    error = RayTaskError("task", "traceback", ValueError("x"))
    error.extra = Attacks(function, "1")
    assert isinstance(through_ray(error), RayTaskError)
    assert not hasattr(through_ray(error), "extra")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "bytearray"),
        ("os", "system"),
        ("ray.exceptions", "pickle"),
        ("ray.exceptions", "pickle.loads"),
        ("ray.exceptions", "RayError.from_bytes"),
        ("ray_workflows.exceptions", "is_transient"),
    ],
)
def test_a_name_of_another_thing_is_refused(module: str, name: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match="none of Ray's errors"):
        ErrorUnpickler(io.BytesIO()).find_class(module, name)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(
    "error",
    [
        NodeDiedError("the node died"),
        ObjectLostError("ab" * 28, "", ""),
        RayTaskError("task", "traceback", ValueError("plain")),
        RayTaskError("task", "traceback", ObjectLostError("ab" * 28, "", "")),
    ],
)
def test_errors_of_ray_are_read_as_they_are(error: Exception) -> None:
    """What is decided on depends on their classes."""
    found = through_ray(error)
    assert type(found) is type(error)
    assert type(getattr(found, "cause", None)) is type(getattr(error, "cause", None))


def test_without_it_user_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is guarded against is real."""
    monkeypatch.setattr(RayError, "from_ray_exception", AS_RAY_READS)
    ran.clear()
    through_ray(RayTaskError("task", "traceback", Hostile()))
    assert ran
