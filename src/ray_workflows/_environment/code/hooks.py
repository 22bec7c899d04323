"""The ``worker_process_setup_hook`` of a driver, which Ray calls in each new worker.

Ray keeps a hook that is a function in the cluster, under a key that is in a variable. This module
turns it into a module of the stored code, and puts its name into the variable, which Ray accepts
too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from ray_workflows._ray import private
from ray_workflows._ray.cluster import call_inside

#: The field in which users give it. Ray reads only the variable.
FIELD = "worker_process_setup_hook"

#: The prefix of the names of such modules, before a digest.
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
    """Turn the hook of a runtime_env into a module, which is written to the directory. Returns the
    runtime_env, and the module's file by its name in an archive."""
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
    """Replace a stored hook by this driver's, if it has one."""
    env_vars = dict(runtime_env.get("env_vars") or {})
    variable = private.SETUP_HOOK_VARIABLE
    own = (mine.get("env_vars") or {}).get(variable)
    if own:
        env_vars[variable] = own
    elif env_vars.get(variable, "").startswith(PREFIX):
        del env_vars[variable]
    runtime_env["env_vars"] = env_vars
