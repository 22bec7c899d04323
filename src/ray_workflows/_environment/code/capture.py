"""The import directories of this process, and a digest of the user's code in them.

A task that the coordinator submits does not see these directories by itself, because the
coordinator belongs to another driver, maybe a dead one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import site
import sys
import sysconfig
from collections.abc import Iterable

import ray

from ray_workflows._environment.code.loaded import all_modules, file_of
from ray_workflows._ray.private import UNPACKED

#: Directories larger than this are not searched for modules that were not imported yet.
MAX_SCANNED_FILES = 1000

#: This package, which every worker has: never code of the user's, wherever it is imported from.
PACKAGE_NAME = __name__.partition(".")[0]
PACKAGE_DIRECTORY = os.path.realpath(__file__).rpartition(f"{os.sep}{PACKAGE_NAME}{os.sep}")[0]
PACKAGE_DIRECTORY = os.path.join(PACKAGE_DIRECTORY, PACKAGE_NAME)

#: Parts of paths of installed packages, also those of an underlying environment.
INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: Variables for the attempts of all workflows that this process submits; see `compat`.
process_env_vars: dict[str, str] = {}


@functools.cache
def library_directories() -> tuple[str, ...]:
    """The directories of installed packages, the standard library and Ray, which workers have."""
    found = {*sysconfig.get_paths().values(), site.getusersitepackages(), sys.prefix}
    found.update(site.getsitepackages())
    found.update((os.path.dirname(ray.__file__), PACKAGE_DIRECTORY))
    return tuple(os.path.realpath(path) for path in found if path)


@functools.cache
def standard_directories() -> tuple[str, ...]:
    """The directories of Python's own modules, as on the path and with links resolved."""
    paths = sysconfig.get_paths()
    found = [paths["stdlib"], paths["platstdlib"]]
    return tuple(dict.fromkeys([*found, *map(os.path.realpath, found)]))


def is_below(path: str, directories: Iterable[str]) -> bool:
    return any(path == top or path.startswith(top + os.sep) for top in directories)


def is_unpacked(path: str) -> bool:
    """Whether a path is in one of the packages of a runtime_env."""
    return f"{os.sep}{UNPACKED}{os.sep}" in path


def is_installed(path: str) -> bool:
    """Whether a path is in a directory of installed packages, by its name."""
    return any(part in f"{path}{os.sep}" for part in INSTALLED)


@functools.lru_cache(maxsize=65536)
def own_file(path: str) -> str | None:
    """The real path of a user's module; None for a module of an installed package or of a package
    of the runtime_env."""
    real = os.path.realpath(path)
    if is_unpacked(real) or is_installed(real):
        return None
    there = os.path.abspath(path)
    if is_below(there, standard_directories()) and not is_installed(there):
        return None  # A link out of the library: Debian's sitecustomize is in /etc.
    return None if is_below(real, library_directories()) else real


def current_directory() -> str:
    """The working directory; the root if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.sep


def import_directories() -> tuple[str, ...]:
    """The entries of ``sys.path`` that hold the user's own modules, in order."""
    paths = (own_file(entry or current_directory()) for entry in sys.path)
    found = [path for path in paths if path and os.path.isdir(path)]
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=4)
def imported_files(directories: tuple[str, ...], modules: int) -> frozenset[str]:
    """The files of the user's imported modules. ``modules``: the number of all imported modules, as
    part of the cache key."""
    files = set()
    for _, module in all_modules():
        path = file_of(module)
        real = own_file(path) if path.endswith(".py") else None
        if real and is_below(real, directories):
            files.add(real)
    return frozenset(files)


def code_files(directories: tuple[str, ...]) -> list[str]:
    """The modules that were imported from the directories, or are in them."""
    files = set(imported_files(directories, len(sys.modules)))
    for directory in directories:
        # A directory that can't be listed may still be imported from.
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            some = itertools.islice(entries, MAX_SCANNED_FILES)
            files.update(entry.path for entry in some if entry.name.endswith(".py"))
    return sorted(files)


def code_digest(files: Iterable[str]) -> str:
    """A digest that changes with the files' contents and their list."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            continue
        digest.update(f"{path}:{status.st_mtime_ns}:{status.st_size};".encode())
    return digest.hexdigest()[:16]
