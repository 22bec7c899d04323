"""Reads pickles of functions as data, and imports, calls and makes nothing in them.

So functions can be compared without their modules, actors and objects, and without side effects in
this process: unpickling a class of a script would replace methods of the class of the same origin.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from types import CodeType
from typing import Any

from ray_workflows._capture.source_lines import restored_code
from ray_workflows._ray.private import MAKE_CLASSES, NAMES_TYPE, SET_STATE


class Inert:
    """A call in a pickle: the callable's name and its arguments."""

    #: ``module.name`` of the callable; empty for a class that the pickle makes.
    symbol = ""
    #: For a class that the pickle makes: the call that makes it.
    made_by: Inert | None = None

    called: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: The states set on the object later, and the items added to it.
    states: list[Any]
    items: list[Any]
    pairs: list[tuple[Any, Any]]

    # Keeps all arguments, and evaluates none.
    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        new = object.__new__(cls)
        new.called, new.args, new.kwargs = cls, args, kwargs
        new.states, new.items, new.pairs = [], [], []
        return new

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any) -> Inert:
        result = Inert(*args)
        result.called = self
        return result

    def __setstate__(self, state: Any) -> None:
        self.states.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))

    def append(self, item: Any) -> None:
        self.items.append(item)

    add = append

    def extend(self, items: Any) -> None:
        self.items.extend(items)


def made_class(symbol: str) -> Any:
    """A stand-in for a function that makes a class."""

    def make(*args: Any) -> type[Inert]:
        call = Inert(*args)
        call.called = symbol
        return type("Made", (Inert,), {"made_by": call})

    return make


def set_state(made: Inert | type[Inert], state: Any) -> None:
    """The stand-in for cloudpickle's functions that fill functions and classes."""
    call = made.made_by if isinstance(made, type) else made
    assert call is not None
    call.states.append(state)


class InertUnpickler(pickle.Unpickler):
    """Makes a tree of `Inert` and of plain containers. Code objects are real: they do nothing."""

    def __init__(self, data: bytes | memoryview, buffers: Sequence[memoryview]) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self.symbols: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        symbol = f"{module}.{name}"
        if symbol not in self.symbols:
            self.symbols[symbol] = self.stand_in(symbol, name)
        return self.symbols[symbol]

    def stand_in(self, symbol: str, name: str) -> Any:
        """The stand-in for an object that the pickle refers to by name."""
        if symbol == f"{restored_code.__module__}.{restored_code.__qualname__}":
            return lambda lines, *args: CodeType(*args)
        if name == NAMES_TYPE:
            return lambda kind: CodeType if kind == "CodeType" else self.find_class("types", kind)
        if name in SET_STATE:
            return set_state
        if name in MAKE_CLASSES:
            return made_class(symbol)
        return type("Named", (Inert,), {"symbol": symbol})


def load_inert(data: bytes | memoryview, buffers: Sequence[memoryview]) -> Any:
    """Read a pickle as data.

    Raises:
        Exception: it has something that no pickle of a function has.
    """
    return InertUnpickler(data, buffers).load()
