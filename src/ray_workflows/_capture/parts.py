"""The parts of a value, each with the path to it for error messages."""

from __future__ import annotations

import reprlib
from collections import deque
from types import CellType
from typing import Any

from ray.dag import DAGNode


class Direct:
    """Marks a direct argument: the task gets the value, not a reference to it."""

    __slots__ = ("target",)

    def __init__(self, target: Any) -> None:
        self.target = target


def children(value: Any) -> list[tuple[str, Any]]:
    """The parts of a value, each with the path to it. A DAG node has no parts, nor has a value
    whose own code raises."""
    try:
        return parts_of(value)
    except Exception:
        return []


def parts_of(value: Any) -> list[tuple[str, Any]]:
    """As `children`."""
    if isinstance(value, DAGNode):
        return []
    if type(value) is Direct:
        return [("", value.target)]
    if isinstance(value, dict):
        return [(f"[{reprlib.repr(key)}]", item) for key, item in value.items()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    found: list[tuple[str, Any]] = []
    if getattr(value, "__closure__", None):
        names = value.__code__.co_freevars
        cells = zip(names, map(content, value.__closure__), strict=True)
        found += [(f".<closure>.{name}", part) for name, part in cells]
    defaults = getattr(value, "__defaults__", None) or ()
    found += [(f".__defaults__[{index}]", item) for index, item in enumerate(defaults)]
    if hasattr(value, "__code__") and hasattr(value, "__globals__"):
        used = [name for name in value.__code__.co_names if name in value.__globals__]
        found += [(f".<globals>.{name}", value.__globals__[name]) for name in used]
    if not isinstance(value, type):
        attributes = getattr(value, "__dict__", None) or {}
        found += [(f".{name}", item) for name, item in attributes.items()]
        slots = [name for kind in type(value).__mro__ for name in slots_of(kind)]
        found += [(f".{name}", getattr(value, name)) for name in slots if hasattr(value, name)]
    return found


def content(cell: CellType) -> Any:
    """The value of a closure's variable; None if it is unset."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def slots_of(kind: type) -> list[str]:
    """The slots that a class declares."""
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]
