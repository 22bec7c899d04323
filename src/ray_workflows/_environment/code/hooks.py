"""The ``worker_process_setup_hook`` of a driver, which Ray calls in each new worker.

Ray keeps one that is a function in the cluster, under a key that is in a variable. Here it becomes
a module of the code that is stored, and the variable names that, which Ray takes as well.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from ray_workflows._ray import private
from ray_workflows._ray.cluster import call_inside

#: The field in which users name it. What counts is the variable.
FIELD = "worker_process_setup_hook"

#: What such modules are called, before a digest.
PREFIX = "ray_workflows_hook_"

SOURCE = '''"""What Ray calls in each new worker, as the driver gave it."""

import pickle

FUNCTION = {function!r}


def set_up() -> None:
    pickle.loads(FUNCTION)()
'''


def localize(
    runtime_env: Mapping[str, Any], directory: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """A runtime_env whose hook is a module, and that by its name in an archive: it is written to
    the directory."""
    changed = {key: value for key, value in runtime_env.items() if key != FIELD}
    env_vars = changed.get("env_vars") or {}
    key = env_vars.get(private.SETUP_HOOK_VARIABLE) or ""
    if not key.startswith(private.FUNCTION_PREFIX):
        return changed, {}
    function: bytes = call_inside(private.registered_function, key)
    name = PREFIX + hashlib.sha256(function).hexdigest()[:16]
    path = os.path.join(directory, f"{name}.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(SOURCE.format(function=function))
    changed["env_vars"] = {**env_vars, private.SETUP_HOOK_VARIABLE: f"{name}.set_up"}
    return changed, {os.path.basename(path): path}


def exchange(runtime_env: dict[str, Any], mine: Mapping[str, Any]) -> None:
    """Take this driver's hook, if it has one, instead of one that was stored with other code."""
    env_vars = dict(runtime_env.get("env_vars") or {})
    variable = private.SETUP_HOOK_VARIABLE
    own = (mine.get("env_vars") or {}).get(variable)
    if own:
        env_vars[variable] = own
    elif env_vars.get(variable, "").startswith(PREFIX):
        del env_vars[variable]
    runtime_env["env_vars"] = env_vars
