"""Tasks that many scenarios use."""

from __future__ import annotations

import os
import time
from typing import Any

import ray

from tests.parity.kit import seen, workflow
from tests.ray.marks import Gate, Marks


@ray.remote
def identity(value: Any) -> Any:
    return value


@ray.remote
def add(left: Any, right: Any) -> Any:
    return left + right


@ray.remote
def mark(marks: Marks, name: str, *upstream: Any) -> Any:
    """Note that it ran; its name is its result."""
    marks.add(name)
    return name


@ray.remote
def hold(marks: Marks, gate: Gate, name: str, *upstream: Any) -> Any:
    """Note that it ran, then wait for the gate, then note that it ended."""
    marks.add(name)
    gate.wait()
    marks.add(f"{name}-ended")
    return name


@ray.remote
def fail(*upstream: Any) -> None:
    raise ValueError("on purpose")


@ray.remote
def fail_until(marks: Marks, name: str, runs: int, *upstream: Any) -> Any:
    """Raise until it has run so often."""
    marks.add(name)
    if marks.count(name) < runs:
        raise ValueError(f"run {marks.count(name)}")
    return marks.count(name)


@ray.remote
def fail_unless(marks: Marks, name: str, gate: Gate, *upstream: Any) -> Any:
    """Raise while the gate is closed."""
    marks.add(name)
    if not os.path.exists(gate.path):
        raise ValueError("the gate is closed")
    return name


@ray.remote
def crash_until(marks: Marks, name: str, runs: int) -> int:
    """Kill the worker until it has run so often."""
    marks.add(name)
    if marks.count(name) < runs:
        os._exit(1)
    return marks.count(name)


@ray.remote
def describe(*args: Any, **kwargs: Any) -> Any:
    """The arguments as they arrive."""
    return [seen(list(args)), seen(kwargs)]


@ray.remote
def continue_with(make: Any, *args: Any) -> Any:
    """Return the continuation that a function makes."""
    return workflow.continuation(make(*args))


@ray.remote
def nap(seconds: float) -> None:
    time.sleep(seconds)
