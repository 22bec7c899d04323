"""Comparing two states of the engine, part by part, so that no part is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import msgspec

from ray_workflows._engine.commands import commands
from ray_workflows._engine.snapshots import restore, restore_lifecycle, save
from ray_workflows._engine.state import Body, Frame, Lifecycle, Task, WorkflowState
from ray_workflows._model.events import StateSaved

#: Nothing depends on the order of this one.
UNORDERED = ".timers"


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two states differ: in a field, in what is derived, or in an order."""
    if type(one) is not type(other) and not (isinstance(one, str) and isinstance(other, str)):
        yield f"{where}: {one!r} and {other!r}"
    elif isinstance(one, (WorkflowState, Task, Frame, Body)):
        fields = getattr(one, "__struct_fields__", None) or one.__slots__
        for name in fields:
            here, there = getattr(one, name), getattr(other, name)
            if isinstance(one, Task) and name == "frame":
                here, there = here.number, there.number
            yield from differences(here, there, f"{where}.{name}")
    elif isinstance(one, dict):
        keys, others = list(one), list(other)
        if where == UNORDERED:
            keys, others = sorted(keys), sorted(others)
        if keys != others:
            yield f"{where}: {keys} and {others}"
        else:
            for key in keys:
                yield from differences(one[key], other[key], f"{where}[{key!r}]")
    elif one != other:
        yield f"{where}: {one!r} and {other!r}"


def through_bytes(saved: StateSaved) -> StateSaved:
    """A snapshot as a journal has it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(saved), type=StateSaved)


def check_snapshot(state: WorkflowState) -> WorkflowState:
    """The state that is restored from a snapshot of one; raises AssertionError if they differ."""
    again = restore(through_bytes(save(state, 0.0, None)))
    check_same(again, state)
    return again


def check_saved_lifecycle(state: WorkflowState) -> Lifecycle:
    """The lifecycle that is restored from a snapshot of it; raises AssertionError if it differs."""
    again = restore_lifecycle(through_bytes(save(state, 0.0, 7)))
    check_same_lifecycle(again, state)
    return again


def check_same_lifecycle(one: Lifecycle, other: Lifecycle) -> None:
    """Raise AssertionError if two lifecycles, or those of two states, differ."""
    if lifecycle_parts(one) == lifecycle_parts(other):
        return
    for name in Lifecycle.__struct_fields__:
        found = list(differences(getattr(one, name), getattr(other, name), f".{name}"))
        assert not found, found


def check_same(one: WorkflowState, other: WorkflowState) -> None:
    """Raise AssertionError if two states differ."""
    if parts(one) != parts(other):
        found = list(differences(one, other))
        raise AssertionError(found)
    assert commands(one) == commands(other)


PLAIN = [name for name in WorkflowState.__struct_fields__ if name not in ("frames", "tasks")]
#: Parts by the order of which something is decided.
ORDERED = ("signals", "taken", "active", "waits")
TASK = attrgetter(*[name for name in Task.__slots__ if name != "frame"], "frame.number")
FRAME = attrgetter(*Frame.__slots__)
STATE = attrgetter(*PLAIN)
LIFECYCLE = attrgetter(*Lifecycle.__struct_fields__)
ORDERS = attrgetter(*ORDERED)


def lifecycle_parts(state: Lifecycle) -> list[Any]:
    """All of a lifecycle, to compare it with another one, with the order of each of its dicts."""
    values = LIFECYCLE(state)
    orders = [list(value) for value in values if isinstance(value, dict)]
    return [values, orders, [list(each) for each in state.signals.values()]]


def parts(state: WorkflowState) -> list[Any]:
    """All of a state, to compare it with another one: what `differences` names one by one."""
    return [
        STATE(state),
        [list(each) for each in ORDERS(state)],
        [list(each) for each in (*state.signals.values(), *state.waits.values())],
        [(list(each.steps), list(each.frames)) for each in state.bodies.values()],
        [FRAME(frame) for frame in state.frames.values()],
        [TASK(task) for task in state.tasks.values()],
    ]
