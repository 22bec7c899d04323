"""What scenarios are made of: the library under test, their registry, and how outcomes are told.

Imported by the Python of both sides; it must not import anything that only one side has.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from tests.ray.marks import Gate, Marks

#: The library that this process runs scenarios with.
LIBRARY = os.environ.get("PARITY_LIBRARY", "ray_workflows")

workflow = importlib.import_module(LIBRARY)

#: Clusters that scenarios run in, one after the other: the arguments of `workflow.init`, or None
#: for none. Those named "crash..." are killed once, between the two halves of their scenarios.
GROUPS: dict[str, dict[str, int] | None] = {
    "shared": {},
    "fresh": None,
    "limits": {"max_running_workflows": 1, "max_pending_workflows": 2},
    "no_queue": {"max_running_workflows": 1, "max_pending_workflows": 0},
    "crash": {},
    "crash_limits": {"max_running_workflows": 1},
}


class Scratch:
    """A scenario's own directory: counts of what ran, gates that hold tasks back, ids."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / name
        self.name = name
        self.marks = Marks(str(self.path / "marks"))

    def gate(self, name: str = "gate") -> Gate:
        return Gate(str(self.path / f"{name}.gate"))

    def open_all_gates(self) -> None:
        """Let everything go that this scenario left waiting."""
        for name in ("gate", "other"):
            self.gate(name).open()

    def id(self, suffix: str = "") -> str:
        """A workflow id of the scenario's own, the same on both sides."""
        return f"{self.name}{suffix}"

    def listed(self, *filters: Any) -> list[Any]:
        """What `list_all` says of this scenario's workflows."""
        found = workflow.list_all(*filters)
        return [[seen(i), seen(s)] for i, s in found if i.startswith(self.name)]


#: Seconds until a scenario counts as hanging. What works never takes so long: the slowest took
#: 25 s where some fifteen processes shared two cores.
PATIENCE = 60.0


def on_each(*, old: float, ours: float) -> float:
    """A number of seconds: how long to wait for what one of the libraries never does."""
    return old if LIBRARY == "ray.workflow" else ours


def within(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition comes to hold within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


Half = Callable[[Any, Scratch], Any]

SCENARIOS: dict[str, Scenario] = {}


class Scenario:
    """One documented behaviour. Called with the library and a scratch directory, it returns a
    dict that JSON can represent: what a user would see."""

    def __init__(self, function: Half, group: str, timeout: float) -> None:
        self.name = function.__name__
        self.halves: list[Half] = [function]
        self.group = group
        self.timeout = timeout
        self.about = function.__doc__ or ""

    def after_the_crash(self, function: Half) -> Scenario:
        """Add what runs on a new cluster, after the old one was killed."""
        self.halves.append(function)
        return self


def scenario(
    function: Half | None = None, *, group: str = "shared", old_hangs: float = PATIENCE
) -> Any:
    """Register a scenario. ``old_hangs``: seconds after which the old library, which is known to
    hang in it, is given up."""

    def register(function: Half) -> Scenario:
        made = Scenario(function, group, on_each(old=old_hangs, ours=PATIENCE))
        if made.name in SCENARIOS:
            raise ValueError(f"two scenarios are named {made.name}")
        SCENARIOS[made.name] = made
        return made

    return register if function is None else register(function)


# -- outcomes ------------------------------------------------------------------------------

#: Names that say how an error travelled, or how it was built, and not what one can rely on.
NOT_TOLD = {"object", "BaseException", "RayTaskError", "RayError", "PicklableWorkflowError"}


def error_types(error: BaseException) -> list[str]:
    """The names by which an `except` clause can catch an error."""
    names = [cls.__name__ for cls in type(error).__mro__]
    return [name for name in names if name not in NOT_TOLD and "(" not in name]


def seen(value: Any) -> Any:
    """A value as JSON: types that matter to users stay distinguishable."""
    if isinstance(value, BaseException):
        return {"error": error_types(value)}
    if isinstance(value, ray.ObjectRef):
        return "<ObjectRef>"
    if isinstance(value, tuple):
        return {"tuple": [seen(item) for item in value]}
    if isinstance(value, list):
        return [seen(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(seen(item) for item in value)}
    if isinstance(value, dict):
        return {str(key): seen(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str.__str__(getattr(value, "value", value))
    return f"<{type(value).__name__}>"


def caught(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returns or raises."""
    try:
        value = call(*args, **kwargs)
    except BaseException as error:
        return {"raises": error_types(error)}
    return {"returns": seen(value)}


def raised(call: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseException:
    """The error that a call raises."""
    try:
        call(*args, **kwargs)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def cause_types(error: BaseException) -> list[list[str]]:
    """The types of an error's causes, from the nearest."""
    chain = []
    while error.__cause__ is not None:
        error = error.__cause__
        chain.append(error_types(error))
    return chain


def ready(ref: ray.ObjectRef, seconds: float = 0.0) -> bool:
    """Whether a ref is ready within some seconds."""
    return bool(ray.wait([ref], timeout=seconds)[0])


def shape(metadata: Any) -> Any:
    """Metadata with its times replaced by their types, and all else as it is."""
    if isinstance(metadata, dict):
        return {str(key): shape(value) for key, value in metadata.items()}
    if isinstance(metadata, float):
        return "<time>" if metadata > 1e9 else metadata
    return seen(metadata)


def without_random(text: str) -> str:
    """Replace what is random in an id: UUIDs and times."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    return re.sub(r"\d{10}\.\d{9}", "TIME", text)
