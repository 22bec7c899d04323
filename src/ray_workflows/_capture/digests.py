"""Digests of arguments, equal for equal arguments in every process.

They tell whether a durable function calls a step with other arguments than the first time. Pickles
don't serve: they depend on the order of sets, and on which objects are the same. No code of users
runs here, such as `__eq__`, `__repr__` or `__getstate__`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from itertools import islice
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

#: How deep values are compared, how many at most in all, and how many items of one container.
MAX_DEPTH, MAX_VALUES, MAX_ITEMS = 30, 5_000, 2_000

#: A digest of a longer text, bytes or array has its length, and so many bytes of each end.
MAX_BYTES = 1 << 20

#: Objects of these packages keep caches in themselves, so that equal ones differ.
OPAQUE = frozenset(
    ("jax", "pandas", "polars", "pyarrow", "ray", "scipy", "sklearn", "tensorflow", "torch")
)

#: Types of the standard library whose `repr` is their value.
BY_REPR = frozenset((complex, date, Decimal, range, slice, time, timedelta))


class TooLarge(Exception):
    """There are too many values. Where to stop would depend on the order of sets."""


class Writer:
    """Writes values as bytes. Different values give different bytes, up to the limits above."""

    __slots__ = ("inside", "left")

    def __init__(self) -> None:
        self.left = MAX_VALUES
        #: The objects around the value that is written, by their identity.
        self.inside: dict[int, int] = {}

    def write(self, value: Any) -> bytes:
        kind = type(value)
        scalar = SCALARS.get(kind)
        if scalar is not None:
            return scalar(value)
        self.left -= 1
        key = id(value)
        if self.left < 0:
            raise TooLarge
        if key in self.inside:
            return b"cycle%d;" % (len(self.inside) - self.inside[key])
        if len(self.inside) > MAX_DEPTH:
            return name_of(kind)
        self.inside[key] = len(self.inside)
        try:
            container = CONTAINERS.get(kind)
            return container(self, value) if container is not None else self.write_other(value)
        finally:
            del self.inside[key]

    def write_sequence(self, value: list[Any] | tuple[Any, ...]) -> bytes:
        tag = b"l%d;" if isinstance(value, list) else b"t%d;"
        length = len(value)
        if length > MAX_ITEMS:
            return tag % length
        self.left -= length
        write = self.write
        return tag % length + b"".join([write(each) for each in value])

    def write_set(self, value: Any) -> bytes:
        return self.write_sorted(b"S", zip(value))

    def write_dict(self, value: Any) -> bytes:
        return self.write_sorted(b"d", dict.items(value))

    def write_sorted(self, tag: bytes, values: Iterable[tuple[Any, ...]]) -> bytes:
        items = list(islice(values, MAX_ITEMS + 1))
        length = len(items)
        if length > MAX_ITEMS:
            return tag + b"many;"
        self.left -= length
        write = self.write
        return b"%b%d;" % (tag, length) + b"".join(
            sorted(b"".join([write(each) for each in item]) for item in items)
        )

    def write_other(self, value: Any) -> bytes:
        """A value of a user's class, or of one that is rare."""
        kind = type(value)
        name = name_of(kind)
        if kind in BY_REPR:
            return name + write_text(repr(value))
        if kind is datetime and type(value.tzinfo) in (timezone, type(None)):
            return name + write_text(repr(value))
        if issubclass(kind, type):
            return b"T" + name_of(value)
        if kind in (FunctionType, BuiltinFunctionType):
            return name + write_text(f"{value.__module__}.{value.__qualname__}")
        if issubclass(kind, Enum):
            # Not through the instance: its class may have an attribute of this name.
            found: Any = Enum.__dict__["value"].fget(value)
            return name + self.write(found)
        if issubclass(kind, PurePath):
            return name + write_text(PurePath.__str__(value))
        package = kind.__module__.partition(".")[0]
        if package == "numpy":
            return name + self.write_array(value)
        if package in OPAQUE:
            return name
        return name + self.write_builtin(value) + self.write_attributes(value)

    def write_builtin(self, value: Any) -> bytes:
        """What a value of a subclass has from the builtin type."""
        for base, write in BUILTIN_BASES:
            if issubclass(type(value), base):
                return write(self, value)
        return b""

    def write_attributes(self, value: Any) -> bytes:
        found: list[tuple[Any, Any]] = []
        cached: set[str] = set()
        for cls in type(value).__mro__:
            names = vars(cls)
            if "__slots__" in names:
                for name, slot in names.items():
                    if type(slot) is MemberDescriptorType:
                        try:
                            found.append((name, slot.__get__(value)))
                        except AttributeError:
                            continue
            cached.update(
                name for name, each in names.items() if type(each) is functools.cached_property
            )
        if has_plain_dict(type(value)):
            attributes = object.__getattribute__(value, "__dict__")
            # A cached property is there only if somebody has used it.
            found += [item for item in attributes.items() if item[0] not in cached]
        return self.write_sorted(b"o", found)

    def write_array(self, value: Any) -> bytes:
        numpy = sys.modules.get("numpy")
        if numpy is None or not issubclass(type(value), (numpy.ndarray, numpy.generic)):
            return b""
        shape = write_text(f"{value.dtype.str}{value.shape}")
        if value.dtype.hasobject or not value.size:
            return shape
        ends = value
        if value.nbytes > 2 * MAX_BYTES:
            count = MAX_BYTES // value.itemsize + 1
            ends = numpy.concatenate((value.flat[:count], value.flat[-count:]))
        return shape + write_bytes(ends.tobytes())


def has_plain_dict(kind: type) -> bool:
    """Whether instances have a `__dict__` that is no code of a user."""
    for cls in kind.__mro__:
        found = vars(cls).get("__dict__")
        if found is not None and cls is not type:
            return type(found) is GetSetDescriptorType
    return False


def name_of(kind: type) -> bytes:
    """The name of a class. Without its module, which is another one in the user's script."""
    return b"c%s;" % kind.__qualname__.encode("utf-8", "surrogatepass")


def write_text(value: str) -> bytes:
    data = str.encode(value, "utf-8", "surrogatepass")
    if len(data) > 2 * MAX_BYTES:
        return b"s%d:" % len(data) + data[:MAX_BYTES] + data[-MAX_BYTES:]
    return b"s%d:%b" % (len(data), data)


def write_bytes(value: bytes | bytearray) -> bytes:
    size = len(value)
    if size > 2 * MAX_BYTES:
        return b"b%d:" % size + bytes(value[:MAX_BYTES]) + bytes(value[-MAX_BYTES:])
    return b"b%d:%b" % (size, bytes(value))


def write_int(value: int) -> bytes:
    return b"i%x;" % value


def write_float(value: float) -> bytes:
    # -0.0 equals 0.0.
    return b"f%b;" % float.hex(value + 0.0).encode()


#: Writers of values that have nothing inside, by their exact type.
SCALARS: dict[type, Callable[[Any], bytes]] = {
    str: write_text,
    int: write_int,
    bool: lambda value: b"B1" if value else b"B0",
    float: write_float,
    type(None): lambda _: b"N",
    bytes: write_bytes,
    bytearray: write_bytes,
}

CONTAINERS: dict[type, Callable[[Writer, Any], bytes]] = {
    list: Writer.write_sequence,
    tuple: Writer.write_sequence,
    set: Writer.write_set,
    frozenset: Writer.write_set,
    dict: Writer.write_dict,
}

#: How to write what subclasses have from these, without any method of theirs.
BUILTIN_BASES: tuple[tuple[Any, Callable[[Writer, Any], bytes]], ...] = (
    (str, lambda _, value: write_text(str.__str__(value))),
    (int, lambda _, value: write_int(int.__int__(value))),
    (float, lambda _, value: write_float(float.__float__(value))),
    (bytes, lambda _, value: write_bytes(bytes.__getitem__(value, slice(None)))),
    (list, lambda writer, value: writer.write_sequence(list.__getitem__(value, slice(None)))),
    (tuple, lambda writer, value: writer.write_sequence(tuple.__getitem__(value, slice(None)))),
    (dict, Writer.write_dict),
    (set, lambda writer, value: writer.write_set(set.__iter__(value))),
    (frozenset, lambda writer, value: writer.write_set(frozenset.__iter__(value))),
    (
        BaseException,
        lambda writer, value: writer.write(BaseException.__dict__["args"].__get__(value)),
    ),
)


def digest_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The digest of the arguments of a call; empty if they can't be compared.

    Equal arguments have equal digests in every process. Values of which nothing is known but their
    type are equal to each other here.
    """
    try:
        writer = Writer()
        data = writer.write(args)
        if kwargs:
            data += writer.write(kwargs)
        return blake2b(data, digest_size=12).hexdigest()
    except BaseException:
        return ""
