"""Digests of arguments: equal for equal values in every process, and without code of users."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy
import pytest

from ray_workflows._capture import digests
from ray_workflows._capture.digests import MAX_BYTES, MAX_ITEMS, digest_of


def digest(*args: Any, **kwargs: Any) -> str:
    return digest_of(args, kwargs)


class Color(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    LOW = 1


@dataclass
class Order:
    id: str
    lines: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("x", "y")
    x: int
    y: Any


class Struct(msgspec.Struct):
    a: int
    b: str = ""


class Text(str):
    pass


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    @functools.cached_property
    def length(self) -> int:
        return len(self.__dict__)


Point = namedtuple("Point", "x y")


def looped(number: int) -> list[Any]:
    items: list[Any] = [number]
    items.append({"inside": items})
    return items


def nested(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


MAKERS: dict[str, Any] = {
    "scalars": lambda n: ("order-5", 3 + n, 2.5, True, None, b"x", bytearray(b"y"), 10**5000),
    "text": lambda n: f"h\u00e4\udc80{n}",
    "bytes": lambda n: bytes([n]),
    "float": lambda n: 0.5 + n,
    "list": lambda n: [1, [2, n]],
    "dict": lambda n: {"b": 1, "a": [n], 3: None},
    "keys": lambda n: {n: 1},
    "set": lambda n: {"a", "b", "c", n},
    "frozenset": lambda n: frozenset({(1, "a"), (2, n)}),
    "enum": lambda n: (Color.RED, Color.BLUE)[n],
    "dataclass": lambda n: Order("a", [n]),
    "slots": lambda n: Slotted(1, [n]),
    "struct": Struct,
    "object": lambda n: Plain(a=1, b=Plain(c=n)),
    "namedtuple": lambda n: Point(1, n),
    "ordered dict": lambda n: OrderedDict(a=n),
    "defaultdict": lambda n: defaultdict(list, a=[n]),
    "counter": lambda n: Counter({"a": n + 1}),
    "text of a subclass": Text,
    "decimal": Decimal,
    "date": lambda n: date(2024, 1, 1 + n),
    "datetime": lambda n: datetime(2024, 1, 1 + n, tzinfo=timezone.utc),
    "timedelta": timedelta,
    "uuid": lambda n: UUID(int=n),
    "path": lambda n: Path("/a") / str(n),
    "type": lambda n: (Order, Slotted)[n],
    "function": lambda n: (digest_of, nested)[n],
    "error": ValueError,
    "array": lambda n: numpy.arange(6).reshape(2, 3) + n,
    "turned array": lambda n: (numpy.arange(6).reshape(2, 3) + n).T,
    "scalar of numpy": numpy.float32,
    "cycle": looped,
    "deep": lambda n: nested(20, n),
    "long text": lambda n: f"{n}" + "x" * 3 * MAX_BYTES,
    "long bytes": lambda n: b"x" * 3 * MAX_BYTES + bytes([n]),
    "long array": lambda n: numpy.concatenate([numpy.zeros(MAX_BYTES), [n]]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_equal_values_have_equal_digests_and_others_do_not(name: str) -> None:
    make = MAKERS[name]
    assert digest(make(0)) == digest(make(0)) != ""
    assert digest(make(0)) != digest(make(1))
    assert digest(x=make(0)) == digest(x=make(0)) != digest(make(0))


def test_digests_do_not_depend_on_the_process() -> None:
    code = (
        "from tests.unit.capture.test_digests import MAKERS, digest\n"
        "print([digest(make(0)) for make in MAKERS.values()])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in "12"
    }
    assert found == {f"{[digest(make(0)) for make in MAKERS.values()]}\n"}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (({"a": 1, "b": 2},), ({"b": 2, "a": 1},)),
        ((0.0,), (-0.0,)),
        (([[1], [1]],), ([[1]] * 2,)),
        ((numpy.ones((2, 2)),), (numpy.ones((2, 2)).T,)),
    ],
)
def test_equal(left: tuple[Any, ...], right: tuple[Any, ...]) -> None:
    assert digest_of(left, {}) == digest_of(right, {})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("ab", "c"), ("a", "bc")),
        ((1,), (True,)),
        ((1,), ("1",)),
        (("a",), (b"a",)),
        (([1, 2],), ((1, 2),)),
        (([1], 2), ([1, 2],)),
        ((Level.LOW,), (1,)),
        ((Text("a"),), ("a",)),
        (({1, 2},), ([1, 2],)),
        ((numpy.zeros(2),), (numpy.zeros(2, dtype="f4"),)),
        ((numpy.zeros((2, 1)),), (numpy.zeros((1, 2)),)),
        ((Order("a"),), (Plain(id="a", lines=[]),)),
    ],
)
def test_different(left: tuple[Any, ...], right: tuple[Any, ...]) -> None:
    assert digest_of(left, {}) != digest_of(right, {})


def test_a_cached_property_makes_no_difference() -> None:
    used = Plain(a=1)
    assert used.length == 1
    assert digest(used) == digest(Plain(a=1))


def test_what_is_not_known_is_its_type() -> None:
    assert digest(threading.Lock()) == digest(threading.Lock())
    assert digest(iter([1])) == digest(iter([2]))
    assert digest(iter([1])) != digest(iter((1,)))


class Hostile:
    """Nothing of it may be called."""

    def __init__(self) -> None:
        object.__setattr__(self, "a", 1)

    def fail(self, *args: Any) -> Any:
        raise SystemExit

    __eq__ = __repr__ = __str__ = __getattr__ = __getattribute__ = __len__ = __iter__ = fail
    __bool__ = __reduce__ = __reduce_ex__ = __getstate__ = __format__ = __lt__ = fail

    def __hash__(self) -> int:
        raise SystemExit


class HostileList(list):  # type: ignore[type-arg]
    __len__ = __iter__ = __eq__ = __repr__ = __getitem__ = Hostile.fail  # type: ignore[assignment]


class HostileDict(dict):  # type: ignore[type-arg]
    __len__ = __iter__ = __eq__ = __repr__ = items = keys = __getitem__ = Hostile.fail


class HostileSet(set):  # type: ignore[type-arg]
    __len__ = __iter__ = __eq__ = __repr__ = copy = Hostile.fail  # type: ignore[assignment]


class HostileError(Exception):
    args = property(Hostile.fail)  # type: ignore[assignment]


class WithDict:
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise SystemExit


@pytest.mark.parametrize(
    "make",
    [
        Hostile,
        *(lambda: HostileList([1]), lambda: HostileDict(a=1), lambda: HostileSet({1})),
        *(lambda: HostileError("a"), WithDict, lambda: [Hostile()], lambda: {"a": Hostile()}),
    ],
)
def test_no_code_of_users_runs(make: Any) -> None:
    # In a function of ours, because pytest looks at the values of a test.
    assert bool(digest_of((make(),), {})) is True


def test_too_many_values_can_not_be_compared() -> None:
    few = [[0] * 100] * 10
    assert digest(few)
    assert digest([few] * 10) == ""


def test_long_containers_are_compared_by_their_length() -> None:
    assert digest([0] * (MAX_ITEMS + 1)) == digest([1] * (MAX_ITEMS + 1)) != ""
    assert digest([0] * (MAX_ITEMS + 1)) != digest([0] * (MAX_ITEMS + 2))
    assert digest(set(range(MAX_ITEMS + 1))) == digest(set(range(MAX_ITEMS + 2))) != ""


def test_great_depth_does_not_raise() -> None:
    assert digest(nested(100_000, 1)) == digest(nested(100_000, 2)) != ""


def test_numpy_is_not_imported() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import importlib.util as u\n"
        f"s = u.spec_from_file_location('digests', {digests.__file__!r})\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "m.digest_of((1,), {}); assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
