"""The environment of an attempt: its runtime_env, and the packages that the cluster needs for
it."""

from __future__ import annotations

import os
import sys
from typing import Any

from ray_workflows._environment import secrets
from ray_workflows._environment.code import capture, images, interpreter, packages
from ray_workflows._model.plan import Environment, Package
from ray_workflows._ray.private import UNPACKED


def runtime_env_for(environment: Environment, task_env: dict[str, Any] | None) -> dict[str, Any]:
    """The Ray runtime_env of an attempt: the driver's, updated with the task's own.

    The code digest makes Ray use other worker processes for other code: a worker that has
    imported a module would go on using the old one after an edit. If only the functions have code,
    attempts share workers with plain tasks of the same job.

    Call it in the coordinator, whose import directories are those of its job's workers.
    """
    merged = {key: value for key, value in environment.runtime_env.items() if key[:1] != "_"}
    env_vars = dict(merged.pop("env_vars", None) or {})
    if task_env:
        merged.update({key: value for key, value in task_env.items() if key != "env_vars"})
        env_vars.update(task_env.get("env_vars") or {})
    merged = secrets.reveal({**merged, "env_vars": env_vars})
    env_vars = merged.pop("env_vars")
    if environment.code:
        merged["py_modules"] = [*(merged.get("py_modules") or ()), environment.code]
    bare = not environment.code and is_importable_here(environment.python_path)
    if environment.python_path and not bare:
        inherited = env_vars.get("PYTHONPATH")
        paths = [*environment.python_path, *([inherited] if inherited else [])]
        env_vars["PYTHONPATH"] = os.pathsep.join(paths)
    if environment.code_digest and not bare:
        env_vars["RAY_WORKFLOWS_CODE"] = environment.code_digest
    if env_vars:
        merged["env_vars"] = env_vars
    images.carry(merged)
    interpreter.name_python(merged)
    return merged


def is_importable_here(directories: tuple[str, ...]) -> bool:
    """Whether this process imports from all of these directories."""
    return set(directories) <= set(capture.import_directories())


def packages_for(environment: Environment, runtime_env: dict[str, Any]) -> tuple[Package, ...]:
    """The packages that a runtime_env needs in the cluster."""
    named = {*packages.names(runtime_env), *images.carried_by(runtime_env)}
    return tuple(package for package in environment.packages if package.uri in named)


def prefer_packages() -> None:
    """Put the packages of this worker first on the import path.

    Ray puts the directories of the driver that started the coordinator before them, which may have
    newer code, or another project's.
    """
    images.unpack_carried()
    ours = [path for path in sys.path if f"{os.sep}{UNPACKED}{os.sep}" in path]
    if ours and sys.path[: len(ours)] != ours:
        sys.path[:] = [*ours, *(path for path in sys.path if path not in ours)]
