"""Digests of classes of a script: equal digests mean the same code and the same constants.

A class's place in its file does not count. Lists, dicts, and all objects but constants of Python's
own count by their types alone, because they change while a program runs.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ray_workflows._environment.code.loaded import names_in, names_of_class
from ray_workflows._environment.code.modules import find_spec

#: The module name of a process's script.
SCRIPT = "__main__"

#: Attributes that Python and cloudpickle add to a class, and its place.
NOT_DEFINED = frozenset(
    (
        *("__module__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"),
        *("__slotnames__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
    )
)

#: The dicts of a class that describe its fields; the attributes of a dataclass field.
FIELDS = ("__annotations__", "__dataclass_fields__")
OF_FIELD = ("type", "default", "default_factory", "init", "repr", "hash", "compare", "kw_only")

ATOMS = (type(None), bool, int, float, complex, type(Ellipsis), type(NotImplemented))

#: Modules of Python whose objects are constants that differ in their ``repr``.
CONSTANTS = frozenset(
    (
        *("builtins", "dataclasses", "datetime", "decimal", "fractions", "ipaddress", "pathlib"),
        *("re", "types", "typing", "uuid", "zoneinfo"),
    )
)
CHANGING = (list, dict, set, bytearray)

#: The attributes of code objects that are compared: all but the place.
OF_CODE = (
    *("co_name", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags", "co_code"),
    *("co_names", "co_varnames", "co_freevars", "co_cellvars", "co_consts"),
)

#: Modules of wrappers around functions (properties, class methods, caches), and their attributes.
WRAPPERS = frozenset(("builtins", "functools", "abc", "enum"))
WRAPPED = ("__func__", "__wrapped__", "fget", "fset", "fdel", "func")

ADDRESS = re.compile(r"0x[0-9a-f]+")


def definition(cls: type) -> str:
    """The digest of a class; empty if it can't be computed."""
    digest = hashlib.sha256()
    try:
        for word in Walk().class_words(cls):
            digest.update(word.encode("utf-8", "surrogatepass") + b"\0")
    except Exception:
        # Code of the class raised, or it is too deep.
        return ""
    return digest.hexdigest()[:32]


def named(module: str, qualname: str) -> Any:
    """The object with a name in this process, or None."""
    found: Any = sys.modules.get(module)
    names = names_in(found)
    for name in qualname.split("."):
        found = names.get(name)
        names = names_of_class(found)
    return found


def comes_along(module: Any) -> bool:
    """Whether pickles contain the classes and functions of this module by value, because no other
    process can import it: the script, or a module that ``runpy`` runs under another name."""
    if module == SCRIPT:
        return True
    if type(module) is not str or "." in module or module not in sys.modules:
        return False
    spec = names_in(sys.modules[module]).get("__spec__")
    if type(spec) is ModuleSpec and spec.name == module:
        return False
    return module not in sys.builtin_module_names and not can_find(module)


@functools.lru_cache(maxsize=1024)
def can_find(module: str) -> bool:
    """Whether there is a file of a module."""
    return find_spec(module) is not None


def is_elsewhere(value: Any) -> bool:
    """Whether a class or function is in an importable module: pickles contain only its name."""
    module = value.__module__
    return not comes_along(module) and named(module, value.__qualname__) is value


class Walk:
    """One walk over a class. The order of its words depends on the class alone."""

    def __init__(self) -> None:
        #: The objects seen and their numbers, by identity. A cycle ends at one of them.
        self.met: dict[int, tuple[int, Any]] = {}

    def class_words(self, cls: type) -> Iterator[str]:
        yield from ("class", cls.__qualname__)
        yield from self.words(type(cls))
        yield from self.each(cls.__bases__)
        names = names_of_class(cls)
        for name in sorted(names.keys() - NOT_DEFINED):
            yield name
            value = names[name]
            if name in FIELDS and type(value) is dict:
                for field, meaning in value.items():
                    yield str(field)
                    yield from self.words(meaning)
            else:
                yield from self.words(value)

    def each(self, values: Iterable[Any]) -> Iterator[str]:
        yield "("
        for value in values:
            yield from self.words(value)
        yield ")"

    def words(self, value: Any) -> Iterator[str]:
        kind = type(value)
        yield kind.__qualname__
        if kind in ATOMS:
            yield repr(value)
        elif kind is str:
            yield value
        elif kind is bytes:
            yield hashlib.sha256(value).hexdigest()
        elif kind is tuple:
            yield from self.each(value)
        elif kind is frozenset:
            yield from sorted("\0".join(Walk().words(item)) for item in value)
        elif kind is CodeType:
            yield from self.each([getattr(value, name) for name in OF_CODE])
        elif id(value) in self.met:
            yield str(self.met[id(value)][0])
        else:
            self.met[id(value)] = len(self.met), value
            yield from self.words_of(value, kind)

    def words_of(self, value: Any, kind: type) -> Iterator[str]:
        """The words of a value that may contain itself."""
        if isinstance(value, (type, FunctionType)):
            if is_elsewhere(value):
                yield from (value.__module__, value.__qualname__)
            elif isinstance(value, type):
                yield from self.class_words(value)
            else:
                yield from self.function_words(value)
            return
        yield kind.__module__
        if isinstance(value, enum.Enum):
            yield from self.words(value.value)
        elif kind is dataclasses.Field:
            yield from self.each([getattr(value, name) for name in OF_FIELD])
        elif isinstance(value, ModuleType):
            yield value.__name__
        elif kind not in CHANGING:
            wrapped = [] if kind.__module__ not in WRAPPERS else WRAPPED
            parts = [getattr(value, name, None) for name in wrapped]
            if any(part is not None for part in parts):
                yield from self.each(parts)
            elif kind.__module__.partition(".")[0] in CONSTANTS:
                yield ADDRESS.sub("", repr(value))

    def function_words(self, function: FunctionType) -> Iterator[str]:
        yield from self.words(function.__code__)
        yield from self.each(function.__defaults__ or ())
        for name, default in (function.__kwdefaults__ or {}).items():
            yield name
            yield from self.words(default)
        for cell in function.__closure__ or ():
            try:
                found = cell.cell_contents
            except ValueError:  # It is empty.
                continue
            yield from self.words(found)
