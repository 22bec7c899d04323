"""Compares the code of two versions of a function.

The digest of a function (`functions`) would not do: it changes when a comment moves its lines. This
module compares the bytecode with its names and constants, default arguments, and the values in
closures and globals, of all that is stored as code: the function, its helpers, the methods of its
classes.
"""

from __future__ import annotations

import bisect
import dis
import hashlib
import pickle
from collections.abc import Iterable
from types import CodeType
from typing import Any, NamedTuple

from ray_workflows._capture.inert import Inert, load_inert
from ray_workflows._capture.pickling import (
    ATOMS,
    FunctionPickler,
    Pickled,
    pickle_value,
    refuse_node_in_function,
)
from ray_workflows._ray.private import (
    ARGUMENTS_OF_CLASS,
    MAKES_FUNCTION,
    OF_PROCESS,
    REMOTE_FUNCTION_PARTS,
)

#: Modules of random number generators. Their state, which is in the pickle of a function that uses
#: `random.random`, differs between processes.
RANDOM = ("random.", "numpy.random.")

#: Flag of code objects of functions; bodies of classes and modules don't have it.
CO_OPTIMIZED = 1

#: Instructions without effect.
WITHOUT_EFFECT = frozenset(("NOP", "CACHE", "EXTENDED_ARG"))

#: Names that Python adds to class bodies, whose values depend on lines or have no order.
LINE_OF_CLASS, ATTRIBUTES_OF_CLASS = "__firstlineno__", "__static_attributes__"

#: Attributes of a class that are not from its code, or are compared elsewhere.
NOT_COMPARED = frozenset(
    (
        LINE_OF_CLASS,
        ATTRIBUTES_OF_CLASS,
        "__annotations__",
        "__annotations_cache__",
        "__annotate__",
        "__annotate_func__",
        *OF_PROCESS,
    )
)


class Part(NamedTuple):
    """A function or class that is stored as code. ``code`` is the digest of its code alone, empty
    for a class."""

    digest: bytes
    code: bytes
    file: str
    line: int


#: By qualified name. Several may share a name: a decorator's wrapper has that of its function.
Parts = dict[str, list[Part]]


class FunctionCode(NamedTuple):
    """The parts of a function, and its own module and qualified name: empty for one that is not
    stored as code."""

    module: str
    qualname: str
    parts: Parts


def code_of_pickle(data: bytes | memoryview, buffers: Iterable[memoryview]) -> FunctionCode:
    """The code in the pickle of a function. Runs and imports nothing of it.

    Raises:
        Exception: the pickle can't be analyzed.
    """
    root = load_inert(data, list(buffers))
    walk = Walk()
    walk.value(root)
    walk.finish()
    about = slots(root) if is_function(root) else {}
    return FunctionCode(about.get("__module__") or "", about.get("__qualname__", ""), walk.parts)


def code_of_function(function: Any, where: str) -> FunctionCode:
    """As `code_of_pickle`, of a function of this process.

    Raises:
        Exception: it can't be pickled.
    """
    pickled: Pickled = pickle_value(
        function, where=where, node_hook=refuse_node_in_function, kind=FunctionPickler
    )
    return code_of_pickle(pickled.data, pickled.buffers)


def differing(then: Parts, now: Parts) -> dict[str, Part | None]:
    """The parts that differ, by qualified name: the present one, or None if it is gone."""
    found: dict[str, Part | None] = {}
    for name in (*now, *(name for name in then if name not in now)):
        old, new = then.get(name, []), now.get(name, [])
        if sorted(part.digest for part in old) != sorted(part.digest for part in new):
            known = {part.digest for part in old}
            fresh = [part for part in new if part.digest not in known]
            found[name] = next(iter((*fresh, *new)), None)
    return found


def differing_in_source(parts: Parts, source: dict[str, list[bytes]], file: str) -> list[str]:
    """The functions from a file, by qualified name, whose code is not in its present source
    (``source``, from `code_in_source`)."""
    there = {digest for digests in source.values() for digest in digests}
    return [
        name
        for name, found in parts.items()
        if any(part.file == file and part.code not in there for part in found)
    ]


def code_in_source(text: str) -> dict[str, list[bytes]]:
    """Digests of the code in a source text, by qualified names: of its functions, of the bodies of
    its classes, and under an empty name of the code that runs on import.

    Raises:
        SyntaxError: it is not Python source.
        ValueError: it has null bytes.
    """
    walk = Walk()
    found: dict[str, list[bytes]] = {}
    pending = [("", compile(text, "", "exec", dont_inherit=True))]
    while pending:
        name, code = pending.pop()
        is_body = not code.co_flags & CO_OPTIMIZED
        found.setdefault(name, []).append(walk.code(code, alone=is_body))
        before = f"{name}." if name and is_body else f"{name}.<locals>." if name else ""
        inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        pending += [(before + each.co_name, each) for each in inner]
    return found


# -- digests -------------------------------------------------------------------------------


def digest_of(kind: str, *parts: bytes) -> bytes:
    """A digest of digests."""
    sha = hashlib.sha256(kind.encode())
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.digest()


def instructions(code: CodeType) -> list[Any]:
    """The instructions of a code object, and the range of each ``try``, without instructions that
    exist for line numbers alone."""
    found = dis.Bytecode(code)
    kept = [each for each in found if each.opname not in WITHOUT_EFFECT]
    offsets = [each.offset for each in kept]
    jumps = {*dis.hasjrel, *dis.hasjabs}

    def number(offset: int) -> int:
        return bisect.bisect_left(offsets, offset)

    listed: list[Any] = [
        (each.opname, number(each.argval) if each.opcode in jumps else each.arg) for each in kept
    ]
    for entry in getattr(found, "exception_entries", ()):  # Python 3.11
        covered = map(number, (entry.start, entry.end, entry.target))
        listed.append((*covered, entry.depth, entry.lasti))
    return listed


def symbol_of(called: Any) -> str:
    """The name of an object that a pickle called; empty without a name."""
    return called if isinstance(called, str) else getattr(called, "symbol", "")


def is_function(value: Any) -> bool:
    """Whether this part of a pickle makes a function from code."""
    return isinstance(value, Inert) and symbol_of(value.called).endswith(f".{MAKES_FUNCTION}")


def slots(function: Inert) -> dict[str, Any]:
    """The attributes of a function that cloudpickle sets by name."""
    found: dict[str, Any] = {}
    for _, named in function.states:
        found.update(named)
    return found


class Walk:
    """Computes digests of values in pickles. A function or class counts by its name there, and is a
    part of its own, so that only changed parts differ."""

    def __init__(self) -> None:
        self.parts: Parts = {}
        #: Functions, and calls that make classes, whose parts are not made yet; and the ids of all
        #: seen so far.
        self.pending: list[Inert] = []
        self.met: set[int] = set()
        #: Digests by identity, with the value, which keeps its identity from being reused.
        self.known: dict[int, tuple[bytes, Any]] = {}
        #: The identities of the values around the current one.
        self.around: set[int] = set()

    def finish(self) -> None:
        """Make the parts of all functions and classes seen."""
        while self.pending:
            made = self.pending.pop()
            name, part = self.function(made) if is_function(made) else self.made_class(made)
            self.parts.setdefault(name, []).append(part)

    def meet(self, made: Inert) -> None:
        if id(made) not in self.met:
            self.met.add(id(made))
            self.pending.append(made)

    def function(self, made: Inert) -> tuple[str, Part]:
        code: CodeType = made.args[0]
        about = slots(made)
        own = [value for state, _ in made.states for value in (state or {}).items()]
        compared = ("__defaults__", "__kwdefaults__", "__closure__", "__globals__")
        digest = self.code(code)
        whole = digest_of(
            "function",
            digest,
            self.value(dict(own)),
            *(self.value(about.get(name)) for name in compared),
        )
        name = about.get("__qualname__") or code.co_name
        return name, Part(whole, digest, code.co_filename, code.co_firstlineno)

    def made_class(self, call: Inert) -> tuple[str, Part]:
        names = {k: v for state, _ in call.states for k, v in state.items()}
        compared = {name: value for name, value in names.items() if name not in NOT_COMPARED}
        number = ARGUMENTS_OF_CLASS[symbol_of(call.called).rpartition(".")[2]]
        whole = digest_of("class", self.value(call.args[:number]), self.value(compared))
        return call.args[1], Part(whole, b"", "", 0)

    def code(self, code: CodeType, alone: bool = False) -> bytes:
        """The digest of a code object, without its place. ``alone``: inner code objects count by
        their names only."""
        constants: Iterable[Any] = code.co_consts
        if LINE_OF_CLASS in code.co_names:
            constants = [each for each in constants if each != code.co_firstlineno]
        if ATTRIBUTES_OF_CLASS in code.co_names:
            constants = [frozenset(each) if type(each) is tuple else each for each in constants]
        if alone:
            constants = [each.co_name if type(each) is CodeType else each for each in constants]
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        texts = repr((counts, names, instructions(code)))
        return digest_of("code", texts.encode(), *map(self.value, constants))

    def value(self, value: Any) -> bytes:
        """The digest of a value in a pickle."""
        if type(value) in ATOMS:
            return digest_of(type(value).__name__, repr(value).encode(errors="backslashreplace"))
        key = id(value)
        if key in self.known:
            return self.known[key][0]
        if key in self.around:
            return digest_of("around")
        self.around.add(key)
        found = self.made(value)
        self.around.discard(key)
        self.known[key] = (found, value)
        return found

    def made(self, value: Any) -> bytes:
        """As `value`, for one that is no atom and was not seen before."""
        if isinstance(value, CodeType):
            return self.code(value)
        if isinstance(value, (tuple, list)):
            return digest_of(type(value).__name__, *map(self.value, value))
        if isinstance(value, (set, frozenset)):
            return digest_of(type(value).__name__, *sorted(map(self.value, value)))
        if isinstance(value, dict):
            pairs = sorted(self.value(k) + self.value(v) for k, v in value.items())
            return digest_of("dict", *pairs)
        if isinstance(value, (bytearray, memoryview, pickle.PickleBuffer)):
            return digest_of("bytes", bytes(memoryview(value)))
        if isinstance(value, type) and issubclass(value, Inert):
            if value.made_by is None:
                return digest_of("name", value.symbol.encode())
            self.meet(value.made_by)
            return digest_of("class", str(value.made_by.args[1]).encode())
        if isinstance(value, Inert):
            return self.call(value)
        return digest_of(type(value).__name__, repr(value).encode())

    def call(self, value: Inert) -> bytes:
        """The digest of an object that a pickle makes by a call."""
        symbol = symbol_of(value.called)
        if is_function(value):
            self.meet(value)
            name = slots(value).get("__qualname__") or value.args[0].co_name
            return digest_of("function", str(name).encode())
        if symbol.startswith(RANDOM):
            return digest_of(symbol)
        if symbol in REMOTE_FUNCTION_PARTS:
            # The rest of its state belongs to the process that made it.
            state = value.states[0]
            return digest_of(
                symbol, *(self.value(state.get(k)) for k in REMOTE_FUNCTION_PARTS[symbol])
            )
        args = value.args[: ARGUMENTS_OF_CLASS.get(symbol.rpartition(".")[2])]
        states = [
            {k: v for k, v in state.items() if k not in NOT_COMPARED}
            if isinstance(state, dict)
            else state
            for state in value.states
        ]
        what: Any = symbol or value.called
        parts = (what, args, value.kwargs, states, value.items, value.pairs)
        return digest_of("call", *map(self.value, parts))
