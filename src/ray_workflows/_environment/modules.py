"""The user's own modules that tasks reach: those that are imported here, and what they import.

Found without running anything: from ``sys.modules``, and from the import statements of the user's
files, of the script, and of what was typed into a notebook.
"""

from __future__ import annotations

import ast
import dis
import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ray.remote_function import RemoteFunction

from ray_workflows._environment.archive import walk
from ray_workflows._environment.capture import PACKAGE_NAME, is_unpacked, own_file
from ray_workflows._environment.ray_private import remote_body


class Reached:
    """Modules by their top-level names, as files and as what has to be installed."""

    def __init__(self, directories: Iterable[str]) -> None:
        self.directories = tuple(directories)
        #: Files by their names in an archive.
        self.files: dict[str, str] = {}
        #: Top-level names that are the user's own, and versions of those that are installed.
        self.own: set[str] = set()
        self.installed: dict[str, str] = {}

    def follow(self, names: Iterable[str]) -> None:
        """Add modules and all that they import."""
        pending = sorted(set(names))
        seen = set(pending)
        while pending:
            name = pending.pop()
            place = self.place_of(name)
            if place is None:
                continue
            found = files_at(name, place, is_own)
            if found:
                self.own.add(name)
                self.files.update(found)
            else:
                # Those in packages of the runtime_env are stored with these.
                found = files_at(name, place, is_unpacked)
            if not found:
                self.installed[name] = version_of(name)
            for path in found.values():
                if path.endswith(".py"):
                    new = imports_of(path, *stat_of(path)) - seen
                    seen |= new
                    pending += sorted(new)

    def place_of(self, name: str) -> Place | None:
        """Where a top-level module is; None if there is none, or all Pythons of workers have it."""
        if name in sys.builtin_module_names or name in EVERYWHERE:
            return None
        module = sys.modules.get(name)
        if module is not None:
            path = getattr(module, "__file__", None)
            standard = name in sys.stdlib_module_names and not (path and is_own(path))
            return None if standard else (path, tuple(getattr(module, "__path__", ())))
        if name in sys.stdlib_module_names:
            return None
        spec = find_spec(name, self.directories)
        if spec is None:
            return None
        parts = tuple(spec.submodule_search_locations or ())
        return spec.origin if spec.has_location else None, parts


#: The file of a module, or without one the directories of a namespace package.
Place = tuple[str | None, tuple[str, ...]]

#: What every worker has.
EVERYWHERE = (PACKAGE_NAME, "ray", "__main__", "__mp_main__")


def is_own(path: str) -> bool:
    """Whether a file or directory is the user's own."""
    return own_file(path) is not None


def find_spec(name: str, directories: Iterable[str]) -> ModuleSpec | None:
    """Where a top-level module would be imported from, with these directories first."""
    spec = PathFinder.find_spec(name, [*directories, *sys.path])
    if spec is not None:
        return spec
    try:
        return importlib.util.find_spec(name)  # By hooks of those that are installed as editable.
    except (ImportError, ValueError):
        return None


def files_at(name: str, place: Place, belongs: Callable[[str], bool]) -> dict[str, str]:
    """The files of a module; none if they do not belong, or are not there: in an archive, say."""
    path, parts = place
    if path is None:
        found: dict[str, str] = {}
        for part in reversed(parts):
            if belongs(part) and os.path.isdir(part):
                found.update(files_below(name, part))
        return found
    if not belongs(path) or not os.path.isfile(path):
        return {}
    if os.path.basename(path) == "__init__.py":
        return files_below(name, os.path.dirname(path))
    return {os.path.basename(path): path}


def files_below(name: str, directory: str) -> dict[str, str]:
    """The files of a package: with an ``__init__`` also its data, else modules alone.

    What is imported belongs to it, whatever ignore files say: generated modules are often ignored.
    """
    is_package = is_package_directory(directory)
    top = repository(directory)
    found = {
        f"{name}/{inner}": path
        for inner, path in walk(
            top, inside=os.path.relpath(directory, top), follows=is_package_directory
        )
        if is_package or path.endswith(".py")
    }
    for path in imported_below(name, directory):
        found.setdefault(f"{name}/{os.path.relpath(path, directory)}", path)
    return found


def is_package_directory(directory: str) -> bool:
    return os.path.exists(os.path.join(directory, "__init__.py"))


def repository(directory: str) -> str:
    """The working tree of git that a directory is in, or else the directory above it."""
    parent = above = os.path.dirname(os.path.abspath(directory))
    while not os.path.exists(os.path.join(above, ".git")):
        above, below = os.path.dirname(above), above
        if above == below:
            return parent
    return above


def imported_below(name: str, directory: str) -> Iterator[str]:
    """Files in a directory that a top-level module, and those in it, were imported from."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == name:
            path = getattr(module, "__file__", None)
            if path and path.startswith(directory + os.sep) and os.path.isfile(path):
                yield path


def stat_of(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=4096)
def imports_of(path: str, mtime: int, size: int) -> frozenset[str]:
    """The top-level names that a file imports, anywhere in it."""
    try:
        with open(path, "rb") as file:
            return frozenset(imports_in(ast.parse(file.read())))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()


def imports_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def roots(main: ModuleType | None) -> set[str]:
    """Top-level names that tasks may import: all that this process has of the user's, and what
    its script or notebook imports."""
    found = {
        name.partition(".")[0]
        for name, module in list(sys.modules.items())
        if is_own_module(module)
    }
    found.discard("__main__")
    package = getattr(main, "__package__", None)
    if package:
        found.add(package.partition(".")[0])  # python -m package.module
    if main is not None:
        path = getattr(main, "__file__", None)
        if path and os.path.isfile(path):
            found |= imports_of(path, *stat_of(path))
        else:
            found |= imports_typed(vars(main))
    return found


def is_own_module(module: Any) -> bool:
    """Whether a module is the user's own; also if it is in a package of the runtime_env."""
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or not path.endswith(".py"):
        return False
    return is_own(path) or is_unpacked(path)


def imports_typed(names: Mapping[str, Any]) -> set[str]:
    """What was imported in a notebook, at a prompt, or by ``python -c``."""
    found: set[str] = set()
    for cell in names.get("In") or ():
        try:
            found.update(imports_in(ast.parse(cell)))
        except (SyntaxError, TypeError, ValueError):
            continue  # One with magic in it.
    for value in list(names.values()):
        if isinstance(value, ModuleType):
            found.add(value.__name__.partition(".")[0])
        body = remote_body(value) if isinstance(value, RemoteFunction) else value
        for function in vars(body).values() if isinstance(body, type) else (body,):
            if isinstance(function, FunctionType):
                found.update(imports_in_code(function.__code__))
    return found


def imports_in_code(code: CodeType) -> Iterator[str]:
    """The top-level names that a compiled function imports."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and instruction.argval:
            yield instruction.argval.partition(".")[0]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from imports_in_code(constant)


def is_importable(name: str) -> bool:
    """Whether there is a module of this name."""
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def version_of(name: str) -> str:
    """The version of what a top-level module belongs to; empty if it does not say."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = getattr(sys.modules.get(name), "__version__", "")
        return version if isinstance(version, str) else ""
