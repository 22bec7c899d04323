"""Values of many kinds and sizes, of which some travel in the pickle and some beside it, and a
description of each that two values share only if they are the same."""

from __future__ import annotations

import array
import collections
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa


@dataclasses.dataclass
class Holder:
    """An object with others in it."""

    name: str
    parts: Any


class Odd:
    """Which can't be compared, counted, hashed, or asked whether it is true."""

    def refuse(self, *args: Any) -> Any:
        raise RuntimeError("nobody has to ask me")

    __eq__ = __ne__ = __bool__ = __hash__ = __len__ = refuse


class OddBytes(bytearray):
    """A subclass: what is made of it must be one, too."""


#: Sizes in bytes: within the pickle; beside it, and within the journal; in a blob.
SIZES = (100, 20_000, 300_000)


def read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def fields(size: int) -> np.ndarray:
    values = np.zeros(size // 8, dtype=[("a", "i4"), ("b", "U1")])
    values["a"] = range(size // 8)
    return values


#: Makes a value of about the given number of bytes.
MAKERS: dict[str, Callable[[int], Any]] = {
    "bytes": lambda size: b"x" * size,
    "bytearray": lambda size: bytearray(b"x" * size),
    "subclass of bytearray": lambda size: OddBytes(b"x" * size),
    "memoryview": lambda size: memoryview(b"x" * size),
    "PickleBuffer": lambda size: pickle.PickleBuffer(b"x" * size),
    "PickleBuffer to write": lambda size: pickle.PickleBuffer(bytearray(b"x" * size)),
    "array.array": lambda size: array.array("d", range(size // 8)),
    "text": lambda size: "ü" * (size // 2),
    "list": lambda size: [b"x" * 100 for _ in range(size // 100)],
    "dict of odd keys": lambda size: {(n, frozenset({n})): bytearray(8) for n in range(size // 60)},
    "deque": lambda size: collections.deque([b"x" * 100 for _ in range(size // 100)], maxlen=size),
    "odd": lambda size: [Odd(), bytearray(size)],
    "dataclass": lambda size: Holder("h", [bytearray(size), (memoryview(b"y" * size),)]),
    "numpy": lambda size: np.arange(size // 8),
    "numpy read-only": lambda size: read_only(np.arange(size // 8)),
    "numpy backwards": lambda size: np.arange(size // 8)[::-1],
    "numpy strided": lambda size: np.arange(size // 4)[::2],
    "numpy Fortran": lambda size: np.asfortranarray(
        np.arange(size // 8 // 10 * 10).reshape(10, -1)
    ),
    "numpy broadcast": lambda size: np.broadcast_to(np.arange(5), (size // 40, 5)),
    "numpy objects": lambda size: np.array([bytearray(9), None, "a"] * (size // 30), dtype=object),
    "numpy fields": fields,
    "numpy masked": lambda size: np.ma.masked_array(
        np.arange(size // 8), [False, True] * (size // 16)
    ),
    "numpy twice": lambda size: [np.arange(size // 8)] * 2,
    "series": lambda size: pd.Series([1, None] * (size // 16), name="n"),
    "frame": lambda size: pd.DataFrame({"a": range(size // 8), "b": ["ü"] * (size // 8)}),
    "interval": lambda size: pd.interval_range(0, max(2, size // 100)),
    "arrow table": lambda size: pa.table({"a": list(range(size // 8))}),
    "arrow slice": lambda size: pa.table({"a": list(range(size // 8))}).slice(1, size // 16),
    "arrow buffer": lambda size: pa.py_buffer(b"x" * size),
}

VALUES = {
    f"{name}, {size}": (lambda make=make, size=size: make(size))
    for name, make in MAKERS.items()
    for size in SIZES
} | {
    "large integer": lambda: 1 << 70,
    "negative zero": lambda: -0.0,
    "truth": lambda: True,
    "half of a character": lambda: "\ud800",
}


def described(value: Any) -> Any:
    """What there is to a value: types and bytes, and what can be written to."""
    kind = type(value).__name__
    if isinstance(value, np.ma.MaskedArray):
        return kind, described(value.data), described(value.mask)
    if isinstance(value, np.ndarray):
        about = (kind, str(value.dtype), value.shape, value.strides, value.flags.writeable)
        if value.dtype.hasobject:
            return about, [described(each) for each in value]
        return about, value.tobytes()
    if isinstance(value, memoryview):
        return kind, value.readonly, value.format, value.tobytes()
    if isinstance(value, pickle.PickleBuffer):
        return kind, value.raw().readonly, value.raw().tobytes()
    if isinstance(value, (pd.DataFrame, pd.Series, pd.IntervalIndex)):
        return kind, value.to_json() if hasattr(value, "to_json") else repr(value.tolist())
    if isinstance(value, (pa.Table, pa.Buffer)):
        return kind, value.to_pylist() if isinstance(value, pa.Table) else value.to_pybytes()
    if isinstance(value, dict):
        return kind, [(described(key), described(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return kind, [described(each) for each in value], [value[0] is each for each in value]
    if dataclasses.is_dataclass(value):
        return kind, [described(item) for item in vars(value).values()]
    if isinstance(value, array.array):
        return kind, value.typecode, value.tobytes()
    return kind, None if isinstance(value, Odd) else repr(value)
