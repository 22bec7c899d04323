"""Makes ``ray.workflow`` importable in the workers of a job, through the job's runtime_env.

Ray calls one function in each new worker before the worker unpickles anything; a variable in
``env_vars`` names it. The public way to set it, ``worker_process_setup_hook``, can't be combined
with images and is not passed on by Ray Client, so this module sets the variable itself. Another
variable has the user's hook, which ours calls.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import cloudpickle

from ray_workflows._environment.code import capture
from ray_workflows._environment.code.interpreter import name_python
from ray_workflows._ray.private import JOB_CONFIG_VARIABLE as JOB_VARIABLE
from ray_workflows._ray.private import SETUP_HOOK_VARIABLE as HOOK_VARIABLE
from ray_workflows.storage.urls import VARIABLE

#: The function that Ray calls in each new worker.
HOOK = "ray_workflows.compat.set_up_worker"

#: The field of a runtime_env with the user's hook.
HOOK_FIELD = "worker_process_setup_hook"

#: The variable with the data for `HOOK`, as JSON.
PARCEL_VARIABLE = "RAY_WORKFLOWS_COMPAT"

#: Below Linux's limit of 128 KiB for one variable.
MAX_PARCEL_BYTES = 100_000


def comes_too_late() -> bool:
    """Whether this driver is connected already, without our hook in its workers.

    Raises:
        RuntimeError: its workers have another hook, which ours would replace.
    """
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    if context.get_task_id() is not None:
        return False
    hook = variables(context.runtime_env).get(HOOK_VARIABLE)
    if hook not in (None, HOOK):
        raise RuntimeError(
            f"ray_workflows.compat.install() was called after ray.init(), and workers of this "
            f"driver have a {HOOK_FIELD} already. Call install() before ray.init()."
        )
    return hook is None


def variables(runtime_env: Any) -> dict[str, str]:
    """The environment variables of a runtime_env."""
    return dict((runtime_env or {}).get("env_vars") or {})


# -- in the driver -------------------------------------------------------------------------


@contextmanager
def prepared(kwargs: dict[str, Any], storage_url: str | None, address: Any) -> Iterator[None]:
    """Change the arguments of a ``ray.init`` so that workers of the job call `HOOK`."""
    kept = os.environ.get(JOB_VARIABLE)
    job = json.loads(kept) if kept else {}
    given = kwargs.get("runtime_env")
    if not given and not job and kwargs.get("job_config") is not None:
        given = kwargs["job_config"].runtime_env
    if not well_formed(given):
        yield  # Ray reports what is wrong with it.
        return
    runtime_env = dict(given or {})
    hook = take_hook(runtime_env)
    inherited = take_hook(job.get("runtime_env") or {})
    if hook and inherited and hook != inherited:
        raise ValueError(
            f"The job's runtime_env has the {HOOK_FIELD} {inherited!r}, and that of ray.init has "
            f"{hook!r}. Leave out one of them, or call one from the other."
        )
    parcel = pack(storage_url, hook or inherited)
    runtime_env["env_vars"] = {**variables(runtime_env), HOOK_VARIABLE: HOOK, **parcel}
    if not str(address).startswith("ray://"):
        name_python(runtime_env)
    kwargs["runtime_env"] = runtime_env
    try:
        if kept:
            # Ray refuses a field that job and driver both have, even with equal values.
            os.environ[JOB_VARIABLE] = json.dumps(job)
        yield
    finally:
        if kept:
            os.environ[JOB_VARIABLE] = kept


def well_formed(runtime_env: Any) -> bool:
    """Whether we can add to it; if not, Ray refuses it."""
    if runtime_env is None:
        return True
    return isinstance(runtime_env, dict) and isinstance(runtime_env.get("env_vars") or {}, dict)


def take_hook(runtime_env: dict[str, Any]) -> Any:
    """The user's hook in a runtime_env, which has none afterwards."""
    env_vars = variables(runtime_env)
    named = env_vars.pop(HOOK_VARIABLE, None)
    env_vars.pop(PARCEL_VARIABLE, None)
    if "env_vars" in runtime_env:
        runtime_env["env_vars"] = env_vars
    hook = runtime_env.pop(HOOK_FIELD, None)
    return hook or (named if named != HOOK else None)


def pack(storage_url: str | None, hook: Any) -> dict[str, str]:
    """The variables for `unpack`.

    Raises:
        TypeError: the user's hook is neither a function nor the name of one.
        ValueError: the user's hook is too large.
    """
    contents: dict[str, str] = {}
    if storage_url is not None:
        contents["storage"] = storage_url
    if isinstance(hook, str):
        contents["call"] = hook
    elif callable(hook):
        # Ray would keep it in the cluster only. In the variable, it is also there after a
        # resumption elsewhere.
        contents["load"] = base64.b64encode(cloudpickle.dumps(hook)).decode()
    elif hook is not None:
        raise TypeError(f"{HOOK_FIELD} must be a function or its name, not {type(hook).__name__}.")
    if not contents:
        return {}
    text = json.dumps(contents)
    if len(text) > MAX_PARCEL_BYTES:
        raise ValueError(
            f"The {HOOK_FIELD} takes {len(text)} bytes pickled; {MAX_PARCEL_BYTES} can travel "
            f"under ray_workflows.compat. Put it into a module and give its name, 'module.hook'."
        )
    return {PARCEL_VARIABLE: text}


def reach_attempts() -> None:
    """Make attempts of workflows that are submitted here call `HOOK` too."""
    capture.process_env_vars[HOOK_VARIABLE] = HOOK


def leave_attempts() -> None:
    """Undo `reach_attempts`."""
    capture.process_env_vars.pop(HOOK_VARIABLE, None)


# -- in a worker ---------------------------------------------------------------------------


def unpack() -> None:
    """Take over the driver's storage, and call the user's hook."""
    contents = json.loads(os.environ.get(PARCEL_VARIABLE) or "{}")
    if "storage" in contents:
        # Used only if the cluster has no storage yet: a workflow may be resumed with another one.
        os.environ[VARIABLE] = contents["storage"]
    hook: Callable[[], Any] | None = None
    if "call" in contents:
        module, _, name = contents["call"].rpartition(".")
        hook = getattr(importlib.import_module(module), name)
    elif "load" in contents:
        hook = cloudpickle.loads(base64.b64decode(contents["load"]))
    if hook is not None:
        hook()
