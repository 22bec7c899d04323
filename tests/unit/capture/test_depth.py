"""Values deeper than Python's limit of recursion: taken, or refused with what is too deep."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import click
import pytest

from ray_workflows._capture.depth import DEEP_LIMIT, deeply
from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.values import DetachedReader
from ray_workflows._codec.envelope import seal
from ray_workflows._codec.placeholders import OBJECT_REF, placeholder
from ray_workflows._model.values import Value
from ray_workflows.cli.resume import parse_runtime_env
from ray_workflows.cli.signal import parse_value
from ray_workflows.exceptions import SerializationError
from ray_workflows.storage import MemoryStorage


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


class OneRef:
    """Whose pickle refers to the first object of its envelope."""

    def __reduce__(self) -> Any:
        return placeholder, (OBJECT_REF, 0)


@pytest.mark.parametrize("depth", [20, 5000])
def test_objects_in_each_other_where_there_is_no_cluster(depth: int) -> None:
    storage = MemoryStorage()
    blob = storage.write_blob("i", "object-0", seal(pickle.dumps("bottom", 5), []))
    for number in range(1, depth):
        chunks = seal(pickle.dumps([OneRef()], 5), [], [blob])
        blob = storage.write_blob("i", f"object-{number}", chunks)
    reader = DetachedReader(storage, "i")
    if depth > 1000:
        with pytest.raises(SerializationError, match="too many ObjectRefs in each other"):
            reader.read(Value(blob), where="output")
        return
    value = reader.read(Value(blob), where="output")
    for _ in range(1, depth):
        (value,) = value
    assert value == "bottom"


@pytest.mark.parametrize("parse", [parse_value, parse_runtime_env])
def test_json_on_the_command_line(parse: Any) -> None:
    text = "[" * 100_000 + "]" * 100_000
    with pytest.raises(click.BadParameter, match="not JSON") as caught:
        parse(None, None, text)
    assert len(caught.value.message) < 300


def interrupt() -> None:
    raise KeyboardInterrupt
