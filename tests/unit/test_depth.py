"""Values deeper than Python's limit of recursion: taken, or refused with what is too deep."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_workflows._capture.depth import DEEP_LIMIT, deeply
from ray_workflows._capture.pickling import pickle_value
from ray_workflows.exceptions import SerializationError


class Link:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


def nested(depth: int, make: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = None
    for _ in range(depth):
        value = make(value)
    return value


def depth_of(value: Any, part: Callable[[Any], Any] = lambda value: value[0]) -> int:
    depth = 0
    while value is not None:
        value, depth = part(value), depth + 1
    return depth


@pytest.mark.parametrize("depth", [200, 900, 1024, 4000])
def test_what_plain_ray_takes_is_taken(depth: int) -> None:
    limit, stack = sys.getrecursionlimit(), threading.stack_size()
    assert depth_of(pickle_value(nested(depth), where="value").open()) == depth
    assert (sys.getrecursionlimit(), threading.stack_size()) == (limit, stack)


def test_objects_in_each_other() -> None:
    value = nested(1000, Link)
    found = pickle_value(value, where="value").open()
    assert depth_of(found, lambda link: link.inner) == 1000


def test_from_deep_inside_of_the_callers_own_recursion() -> None:
    def within(calls: int) -> Any:
        if calls:
            return within(calls - 1)
        return pickle_value(nested(400), where="value").open()

    assert depth_of(within(500)) == 400


@pytest.mark.parametrize("depth", [DEEP_LIMIT, 50_000])
def test_what_is_too_deep_is_named_with_its_place(depth: int) -> None:
    value = {"fine": [1, 2], "deep": (0, nested(depth))}
    with pytest.raises(SerializationError) as caught:
        pickle_value(value, where="result of task 't'")
    message = str(caught.value)
    assert "result of task 't'" in message
    assert f"{depth + 2} levels at ['deep'][1][0][0][0]..." in message
    assert len(message) < 500


def test_recursion_of_the_users_own_code_is_an_error_of_the_value() -> None:
    class Endless:
        def __reduce__(self) -> Any:
            return self.__reduce__()

    with pytest.raises(SerializationError, match="value, of type Endless"):
        pickle_value(Endless(), where="value")
    assert pickle_value([1], where="value").open() == [1]


def test_what_is_raised_on_the_thread_is_raised_here() -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(KeyboardInterrupt):
        deeply(interrupt)
    assert sys.getrecursionlimit() == limit


def interrupt() -> None:
    raise KeyboardInterrupt
