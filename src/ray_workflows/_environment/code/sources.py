"""Reads from source code which modules it imports, and which files beside it it names."""

from __future__ import annotations

import ast
import dis
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from ray.remote_function import RemoteFunction

from ray_workflows._environment.code.loaded import is_module, names_of_class, text_in
from ray_workflows._ray.private import remote_body


class Source(NamedTuple):
    """The analysis of a file. ``imports``: top-level names; ``texts``: all parts of paths and other
    texts in it, if it uses ``__file__``."""

    imports: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()


def read_source(path: str) -> Source:
    """Analyze a file; empty for one that can't be read."""
    try:
        status = os.stat(path)
    except OSError:
        return Source()
    return parsed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def parsed(path: str, mtime: int, size: int) -> Source:
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
        return Source(frozenset(imports_in(tree)), frozenset(texts_in(tree)))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return Source()


def imports_in(tree: ast.AST) -> Iterator[str]:
    """The top-level names that code imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def texts_in(tree: ast.AST) -> Iterator[str]:
    """The parts of paths that code names, if it uses ``__file__``."""
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.Name) and node.id == "__file__" for node in nodes):
        return
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from node.value.replace("\\", "/").split("/")


def imports_typed(names: Mapping[str, Any], cells: Iterable[str]) -> set[str]:
    """The modules imported in a notebook, at a prompt, or by ``python -c``.

    Args:
        names: the globals there.
        cells: the typed source, as far as it is kept.
    """
    found: set[str] = set()
    for cell in cells:
        try:
            found.update(imports_in(ast.parse(cell)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # A cell with IPython magic.
    for value in list(names.values()):
        if is_module(value):
            found.add(text_in(value, "__name__").partition(".")[0])
        kind = type(value)
        body = remote_body(value) if issubclass(kind, RemoteFunction) else value
        for function in names_of_class(body).values() or (body,):
            if type(function) is FunctionType:
                found.update(imports_in_code(function.__code__))
    return found - {""}


def imports_in_code(code: CodeType) -> Iterator[str]:
    """The top-level names that a compiled function imports."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and instruction.argval:
            yield instruction.argval.partition(".")[0]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from imports_in_code(constant)
