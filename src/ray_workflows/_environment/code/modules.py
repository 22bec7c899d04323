"""Finds the user's own modules that tasks can reach: imported ones, and the modules that they
import.

It runs no user code: it reads ``sys.modules``, and the import statements of the user's files, of
the script, and of notebook cells. Unreadable files are left out, and listed in `Reached.skipped`.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder

from ray_workflows._environment.code.archive import walk
from ray_workflows._environment.code.beside import data_beside
from ray_workflows._environment.code.capture import PACKAGE_NAME, is_unpacked, own_file
from ray_workflows._environment.code.loaded import (
    all_modules,
    cells,
    file_of,
    names_in,
    parts_of,
    text_in,
)
from ray_workflows._environment.code.sources import imports_typed, read_source
from ray_workflows._environment.code.zipped import unzipped


class Reached:
    """The modules found: files of the user's own, and versions of installed ones."""

    def __init__(self, directories: Iterable[str]) -> None:
        self.directories = tuple(directories)
        #: Files by their names in an archive.
        self.files: dict[str, str] = {}
        #: Top-level names of the user's own modules, and versions of installed ones.
        self.own: set[str] = set()
        self.installed: dict[str, str] = {}
        #: Why a module or file was left out, by name.
        self.skipped: dict[str, str] = {}

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
                self.keep(found)
            else:
                # Modules in packages of the runtime_env are stored with these packages.
                found = files_at(name, place, is_unpacked)
            if not found:
                self.installed[name] = version_of(name)
            for path in found.values():
                if path.endswith(".py"):
                    new = read_source(path).imports - seen
                    seen |= new
                    pending += sorted(new)

    def keep(self, found: dict[str, str]) -> None:
        """Add the files of a module that can be read; a single module's with the data beside it."""
        if len(found) == 1 and "/" not in next(iter(found)):
            (path,) = found.values()
            data, skipped = data_beside(path)
            found = {**data, **found}
            self.skipped.update(skipped)
        for name, path in found.items():
            if os.access(path, os.R_OK):
                self.files.setdefault(name, path)
            else:
                self.skipped[name] = f"{path} can't be read by this process"

    def place_of(self, name: str) -> Place | None:
        """The place of a top-level module; None if there is none, or every worker has it."""
        if name in sys.builtin_module_names or name in EVERYWHERE:
            return None
        module = sys.modules.get(name)
        path, parts = file_of(module), parts_of(module)
        if name in sys.stdlib_module_names and not (path and is_own(path)):
            return None
        if not path and not parts:
            # Not imported, or another object has its name: a lazy loader, None.
            spec = find_spec(name, self.directories)
            if spec is None:
                if name in sys.modules:
                    self.skipped[name] = "no file is found for what has its name in this process"
                return None
            path = spec.origin or "" if spec.has_location else ""
            parts = tuple(spec.submodule_search_locations or ())
        if is_own(path or next(iter(parts), "")):
            path, parts = unzipped(path), tuple(map(unzipped, parts))
            if path and not os.path.exists(path):
                self.skipped[name] = f"{path} is gone, or in an archive that is not taken"
                return None
        return path, parts


#: The file of a module, or (empty) without one the directories of a namespace package.
Place = tuple[str, tuple[str, ...]]

#: Modules that every worker has.
EVERYWHERE = (PACKAGE_NAME, "ray", "__main__", "__mp_main__")


def is_own(path: str) -> bool:
    """Whether a file or directory is the user's own."""
    return own_file(path) is not None


def find_spec(name: str, directories: Iterable[str] = ()) -> ModuleSpec | None:
    """The spec of a top-level module, with these directories first."""
    spec = PathFinder.find_spec(name, [*directories, *sys.path])
    if spec is not None:
        return spec
    for finder in sys.meta_path:
        # Finders of editable installs, and any others.
        try:
            spec = finder.find_spec(name, None)
        except Exception:
            continue
        if spec is not None:
            return spec
    return None


def files_at(name: str, place: Place, belongs: Callable[[str], bool]) -> dict[str, str]:
    """The files of a module; none if ``belongs`` says no, or they don't exist, as in an archive."""
    path, parts = place
    if not path:
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

    Imported files belong to it whatever ignore files say: generated modules are often ignored.
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
    """The git working tree of a directory, or else its parent directory."""
    parent = above = os.path.dirname(os.path.abspath(directory))
    while not os.path.exists(os.path.join(above, ".git")):
        above, below = os.path.dirname(above), above
        if above == below:
            return parent
    return above


def imported_below(name: str, directory: str) -> Iterator[str]:
    """Files in a directory that a top-level module, and those in it, were imported from."""
    for module_name, module in all_modules():
        if module_name.partition(".")[0] == name:
            path = file_of(module)
            if path.startswith(directory + os.sep) and os.path.isfile(path):
                yield path


def roots(main: object) -> set[str]:
    """Top-level names that tasks may import: the user's modules in this process, and the imports of
    its script or notebook."""
    found = {name.partition(".")[0] for name, module in all_modules() if is_own_module(module)}
    found.discard("__main__")
    package = text_in(main, "__package__")
    if package:
        found.add(package.partition(".")[0])  # python -m package.module
    path = unzipped(file_of(main))
    if os.path.isfile(path):
        return found | read_source(path).imports
    return found | imports_typed(names_in(main), cells())


def is_own_module(module: object) -> bool:
    """Whether a module is the user's own; also if it is in a package of the runtime_env."""
    path = file_of(module)
    return path.endswith(".py") and (is_own(path) or is_unpacked(path))


def is_importable(name: str) -> bool:
    """Whether there is a module of this name."""
    return name in sys.modules or find_spec(name) is not None


def version_of(name: str) -> str:
    """The version of a top-level module's distribution; empty if unknown."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return text_in(sys.modules.get(name), "__version__")
