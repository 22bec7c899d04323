"""Metadata that can't be stored is refused at the call that gives it, not when it is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_workflows._capture.depth import JSON_DEPTH
from ray_workflows._capture.options import encode_ray_option
from ray_workflows.options import validate_metadata


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2**64, "OverflowError"),
        (-(2**63) - 1, "OverflowError"),
        ("\ud800", "UnicodeEncodeError"),
        (float("nan"), "ValueError"),
        ({1, 2}, "TypeError"),
    ],
)
def test_what_cannot_be_stored(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"metadata must be JSON serializable.*{said}"):
        validate_metadata({"deep": [{"value": value}]})


def test_what_can_be_stored() -> None:
    metadata = {"n": 2**64 - 1, "m": -(2**63), "s": "\N{SNOWMAN}", "d": {"l": [None, True, 0.5]}}
    assert validate_metadata(metadata) == metadata
    assert validate_metadata(None) == {}


def nested(depth: int, make: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = make(value)
    return value


MAKES = {"dict": lambda inner: {"a": inner}, "list": lambda inner: [0, inner]}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
def test_how_deep_it_may_be(make: Callable[[Any], Any]) -> None:
    deep = {"a": nested(JSON_DEPTH - 1, make)}
    assert validate_metadata(deep) == deep
    for depth in (JSON_DEPTH, 490, 980, 5000, 100_000):
        with pytest.raises(ValueError, match=f"more than {JSON_DEPTH} levels"):
            validate_metadata({"a": nested(depth, make)})


def test_a_cycle_is_refused() -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = [cycle]
    with pytest.raises(ValueError, match="a part of itself"):
        validate_metadata(cycle)


def test_parts_that_are_the_same_are_looked_at_once() -> None:
    """As many as 2 to the power of 90 they would be otherwise."""
    shared = nested(JSON_DEPTH + 1, lambda inner: [inner, inner])
    with pytest.raises(ValueError, match="levels deep"):
        validate_metadata({"a": shared})


def test_ray_options_are_no_deeper() -> None:
    for depth in (JSON_DEPTH + 1, 490, 980, 5000):
        with pytest.raises(ValueError, match="task 'f' has the Ray option .* levels deep"):
            encode_ray_option("runtime_env", nested(depth, MAKES["dict"]), where="task 'f'")
    deep = nested(JSON_DEPTH, MAKES["dict"])
    assert encode_ray_option("runtime_env", deep, where="task 'f'") == deep
