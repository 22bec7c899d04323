"""What a class of a script says, as a digest: equal digests, the same code and the same constants.

Where it stands in its file is no part of that, nor is what changes while a program runs: lists,
dicts, and objects that are no constants of Python's own, count by their types alone.
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

#: The module that the script of a process is, whatever that is.
SCRIPT = "__main__"

#: What Python, and cloudpickle, add to a class, and where the class stands.
NOT_DEFINED = frozenset(
    (
        *("__module__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"),
        *("__slotnames__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
    )
)

#: The dicts of a class that say what its fields are; what a dataclass says of one of them.
FIELDS = ("__annotations__", "__dataclass_fields__")
OF_FIELD = ("type", "default", "default_factory", "init", "repr", "hash", "compare", "kw_only")

ATOMS = (type(None), bool, int, float, complex, type(Ellipsis), type(NotImplemented))

#: Modules of Python whose objects are constants, which ``repr`` tells apart.
CONSTANTS = frozenset(
    (
        *("builtins", "dataclasses", "datetime", "decimal", "fractions", "ipaddress", "pathlib"),
        *("re", "types", "typing", "uuid", "zoneinfo"),
    )
)
CHANGING = (list, dict, set, bytearray)

#: What tells one code object from another: all but its place.
OF_CODE = (
    *("co_name", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags", "co_code"),
    *("co_names", "co_varnames", "co_freevars", "co_cellvars", "co_consts"),
)

#: Modules whose objects are around functions (properties, class methods, caches); by these names.
WRAPPERS = frozenset(("builtins", "functools", "abc", "enum"))
WRAPPED = ("__func__", "__wrapped__", "fget", "fset", "fdel", "func")

ADDRESS = re.compile(r"0x[0-9a-f]+")


def definition(cls: type) -> str:
    """The digest of what a class says; empty if it can't be told."""
    digest = hashlib.sha256()
    try:
        for word in Walk().class_words(cls):
            digest.update(word.encode("utf-8", "surrogatepass") + b"\0")
    except Exception:
        # Something of the class raises when it is looked at, or it is too deep.
        return ""
    return digest.hexdigest()[:32]


def named(module: str, qualname: str) -> Any:
    """What this process has under a name; None if that is nothing."""
    found: Any = sys.modules.get(module)
    names = names_in(found)
    for name in qualname.split("."):
        found = names.get(name)
        names = names_of_class(found)
    return found


def comes_along(module: Any) -> bool:
    """Whether pickles bring along what a module of this name has, because no other process can
    import it: the script, or one that ``runpy`` runs under a name of its own."""
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
    """Whether a class or function is in a module that is imported: its name stands for it."""
    module = value.__module__
    return not comes_along(module) and named(module, value.__qualname__) is value


class Walk:
    """One walk over a class. Its words come in an order that the class alone decides."""

    def __init__(self) -> None:
        #: What was met, and its number, by identity: what refers to itself ends there.
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
        """The words of what may refer to itself."""
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
