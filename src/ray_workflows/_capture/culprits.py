"""Finds the part of a value that can't be pickled, and the path to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_workflows._capture.depth import DEEP_LIMIT, deepest
from ray_workflows._capture.parts import children
from ray_workflows._model.errors import name_of, text_of
from ray_workflows.exceptions import WorkflowError

#: How many steps of the path to a too deep part an error shows.
SHOWN_STEPS = 5


def describe_depth(value: Any, where: str) -> str:
    """Describe how deep a too deep value is, and where."""
    steps = deepest(value, children)
    begin = "".join(steps[:SHOWN_STEPS])
    return (
        f"The {where}, of type {type(value).__name__}, can't be stored: it is nested too deep, "
        f"{len(steps)} levels at {begin}... and Python pickles no more than about "
        f"{DEEP_LIMIT // 2}. Put the parts into a list beside each other."
    )


def describe_failure(
    value: Any, where: str, error: Exception, can_pickle: Callable[[Any], bool]
) -> str:
    """Name the type at fault and the path to it."""
    reason = text_of(error)
    if not isinstance(error, WorkflowError):
        reason = f"{name_of(error)}: {reason}"
    path, culprit = find_culprit(value, can_pickle)
    location = f" (at {path}, of type {type(culprit).__name__})" if path else ""
    return (
        f"The {where}, of type {type(value).__name__}, can't be stored{location}: {reason}. "
        f"Give it a __reduce__, leave out what can't be pickled, or create it inside the task."
    )


def find_culprit(value: Any, can_pickle: Callable[[Any], bool]) -> tuple[str, Any]:
    """Follow the parts that can't be pickled to the innermost; its path and itself."""
    path = ""
    seen: set[int] = set()
    while id(value) not in seen:
        seen.add(id(value))
        try:
            parts = children(value)
        except Exception:
            break  # Code of a user's class raised.
        for step, part in parts:
            if not can_pickle(part):
                path += step
                value = part
                break
    return path, value
