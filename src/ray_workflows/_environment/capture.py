"""The environment of the driver that submits: its runtime_env and its import directories.

A task that the coordinator submits sees neither by itself, because the coordinator belongs to
another driver, or to one that is gone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from typing import Any

import ray

from ray_workflows._model.plan import Environment

#: Directories larger than this are not searched for modules that were not imported yet.
MAX_SCANNED_FILES = 1000

#: Variables that this process wants in the attempts of all workflows it submits; see `compat`.
process_env_vars: dict[str, str] = {}


@functools.cache
def library_directories() -> tuple[str, ...]:
    """Where installed packages and the standard library live, and Ray, which workers have."""
    found = {*sysconfig.get_paths().values(), site.getusersitepackages(), sys.prefix}
    found.update(site.getsitepackages())
    found.add(os.path.dirname(ray.__file__))
    return tuple(os.path.realpath(path) for path in found if path)


def is_below(path: str, directories: Iterable[str]) -> bool:
    return any(path == top or path.startswith(top + os.sep) for top in directories)


@functools.lru_cache(maxsize=65536)
def own_file(path: str) -> str | None:
    """The real path of a module of the user's; None for one of an installed package."""
    real = os.path.realpath(path)
    return None if is_below(real, library_directories()) else real


def import_directories() -> tuple[str, ...]:
    """The entries of ``sys.path`` that hold the user's own modules, in order."""
    paths = (own_file(entry or os.getcwd()) for entry in sys.path)
    found = [path for path in paths if path and os.path.isdir(path)]
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=4)
def imported_files(directories: tuple[str, ...], modules: int) -> frozenset[str]:
    """Files of the user's modules in this process, of which there are so many in all."""
    files = set()
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        real = own_file(path) if path and path.endswith(".py") else None
        if real and is_below(real, directories):
            files.add(real)
    return frozenset(files)


def code_digest(directories: tuple[str, ...]) -> str:
    """Changes when a module changes that was imported from, or lies in, the directories."""
    files = set(imported_files(directories, len(sys.modules)))
    for directory in directories:
        files.update(
            entry.path
            for entry, _ in zip(os.scandir(directory), range(MAX_SCANNED_FILES), strict=False)
            if entry.name.endswith(".py")
        )
    digest = hashlib.sha256()
    for path in sorted(files):
        try:
            status = os.stat(path)
        except OSError:
            continue
        digest.update(f"{path}:{status.st_mtime_ns}:{status.st_size};".encode())
    return digest.hexdigest()[:16]


def capture_environment() -> Environment:
    """The environment of this process: a driver, or a worker that submits a workflow."""
    directories = import_directories()
    runtime_env = dict(ray.get_runtime_context().runtime_env)
    if process_env_vars:
        runtime_env["env_vars"] = {**process_env_vars, **(runtime_env.get("env_vars") or {})}
    return Environment(
        runtime_env=json.loads(json.dumps(runtime_env, default=str)),
        python_path=directories,
        code_digest=code_digest(directories),
    )


def runtime_env_for(environment: Environment, task_env: dict[str, Any] | None) -> dict[str, Any]:
    """The Ray runtime_env of an attempt: the driver's, and over it the task's own.

    The code digest makes Ray use other worker processes for other code: a worker that has
    imported a module would go on using the old one after an edit.
    """
    merged = {key: value for key, value in environment.runtime_env.items() if key[:1] != "_"}
    env_vars = dict(merged.pop("env_vars", None) or {})
    if task_env:
        merged.update({key: value for key, value in task_env.items() if key != "env_vars"})
        env_vars.update(task_env.get("env_vars") or {})
    if environment.python_path:
        inherited = env_vars.get("PYTHONPATH")
        paths = [*environment.python_path, *([inherited] if inherited else [])]
        env_vars["PYTHONPATH"] = os.pathsep.join(paths)
    if environment.code_digest:
        env_vars["RAY_WORKFLOWS_CODE"] = environment.code_digest
    if env_vars:
        merged["env_vars"] = env_vars
    return merged
