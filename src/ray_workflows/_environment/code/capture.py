"""The import directories of this process, and when the user's code in them changes.

A task that the coordinator submits does not see them by itself, because the coordinator belongs to
another driver, or to one that is gone.
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

#: Directories of installed packages have these names, also those of another environment that this
#: one is laid over.
INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: Variables that this process wants in the attempts of all workflows it submits; see `compat`.
process_env_vars: dict[str, str] = {}


@functools.cache
def library_directories() -> tuple[str, ...]:
    """Where installed packages and the standard library live, and Ray, which workers have."""
    found = {*sysconfig.get_paths().values(), site.getusersitepackages(), sys.prefix}
    found.update(site.getsitepackages())
    found.update((os.path.dirname(ray.__file__), PACKAGE_DIRECTORY))
    return tuple(os.path.realpath(path) for path in found if path)


@functools.cache
def standard_directories() -> tuple[str, ...]:
    """Where the modules lie that come with Python, as they are imported and as they are."""
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
    """The real path of a module of the user's; None for one of an installed package, or of one of
    the packages of a runtime_env, which are known as such."""
    real = os.path.realpath(path)
    if is_unpacked(real) or is_installed(real):
        return None
    there = os.path.abspath(path)
    if is_below(there, standard_directories()) and not is_installed(there):
        return None  # A link to elsewhere: Debian's sitecustomize lies in /etc.
    return None if is_below(real, library_directories()) else real


def current_directory() -> str:
    """Where this process is; the root if that is there no more."""
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
    """Files of the user's modules in this process, of which there are so many in all."""
    files = set()
    for _, module in all_modules():
        path = file_of(module)
        real = own_file(path) if path.endswith(".py") else None
        if real and is_below(real, directories):
            files.add(real)
    return frozenset(files)


def code_files(directories: tuple[str, ...]) -> list[str]:
    """The modules that were imported from, or lie in, the directories."""
    files = set(imported_files(directories, len(sys.modules)))
    for directory in directories:
        # One that can't be read has modules for those who know their names.
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            some = itertools.islice(entries, MAX_SCANNED_FILES)
            files.update(entry.path for entry in some if entry.name.endswith(".py"))
    return sorted(files)


def code_digest(files: Iterable[str]) -> str:
    """Changes when one of the files does, or when they are others."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            continue
        digest.update(f"{path}:{status.st_mtime_ns}:{status.st_size};".encode())
    return digest.hexdigest()[:16]
