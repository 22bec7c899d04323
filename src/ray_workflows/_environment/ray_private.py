"""Names of Ray that Ray calls private, and that an environment needs: as `_capture/ray_private.py`.

A package of a runtime_env is a key in the cluster's own store, under its ``gcs://`` URI.
`tests/unit/test_ray_private.py` fails when Ray changes a name.
"""

from __future__ import annotations

import base64
import io
import logging
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray._private.thirdparty.pathspec import PathSpec
from ray._raylet import BaseID
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_exists,
    _internal_kv_get,
    _internal_kv_put,
)
from ray.remote_function import RemoteFunction

from ray_workflows.exceptions import rebuild_error

logger = logging.getLogger(__name__)

#: The directory of a node, below that of the session, in which Ray unpacks packages.
UNPACKED = "runtime_resources"

#: What Ray adds to a runtime_env that installs packages: which Ray it was.
RAY_COMMIT = "_ray_commit"

#: Tells workers what to call when they start: a function by its path, or by its key in the cluster.
SETUP_HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
FUNCTION_PREFIX = "ray_runtime_env_func::"


#: Modules of which an error of Ray's own is made, beside Python's own exceptions.
ERROR_MODULES = ("ray.exceptions", "ray_workflows.exceptions")


class ErrorUnpickler(pickle.Unpickler):
    """Unpickles errors that Ray and this package have made, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """A type of exceptions, or an id that one has."""
        if module in (*ERROR_MODULES, "builtins", "ray._raylet") and "." not in name:
            found = super().find_class(module, name)
            types = BaseID if module == "ray._raylet" else BaseException
            if found is rebuild_error or (isinstance(found, type) and issubclass(found, types)):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is none of Ray's errors")


def error_without_user_code(message: Any) -> Exception:
    """The error in a message of Ray's; one that has anything of a user's in it as text only."""
    try:
        error: Exception
        error = ErrorUnpickler(io.BytesIO(message.serialized_exception)).load()
        if isinstance(error, Exception):
            return error
    except Exception:
        logger.debug("An error of user code is read as text.", exc_info=True)
    text = str(message.formatted_exception_string) or "An error that can't be read here."
    error = ray.exceptions.RayTaskError("attempt", text, ray.exceptions.RayError(text))
    return error


def unpickle_no_user_errors() -> None:
    """From now on, this process runs nothing of a user's when Ray brings it an error."""
    ray.exceptions.RayError.from_ray_exception = staticmethod(error_without_user_code)


def registered_function(key: str) -> bytes:
    """The pickled function that a driver has given as ``worker_process_setup_hook``."""
    from ray._private.worker import global_worker

    registered = base64.b64decode(key.removeprefix(FUNCTION_PREFIX))
    found = global_worker.function_actor_manager.fetch_registered_method(registered, timeout=30)
    function: bytes = found.function
    return function


def put_key(key: str, data: bytes, *, overwrite: bool = True) -> None:
    """Keep bytes in the cluster, in place of what is there, unless that is to stay."""
    _internal_kv_put(key, data, overwrite=overwrite)


def get_key(key: str) -> bytes | None:
    """The bytes that the cluster has under a key."""
    data: bytes | None = _internal_kv_get(key)
    return data


def has_key(key: str) -> bool:
    """Whether the cluster has something under a key."""
    return bool(_internal_kv_exists(key))


def delete_key(key: str) -> None:
    """Remove what the cluster has under a key."""
    _internal_kv_del(key)


def largest_package() -> int:
    """How many bytes a package may have, as Ray limits it."""
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return int(GCS_STORAGE_MAX_SIZE)


def default_excludes() -> list[str]:
    """What Ray leaves out of every package."""
    try:
        from ray._private.ray_constants import get_runtime_env_default_excludes
    except ImportError:  # Older ones leave out nothing.
        return []
    return list(get_runtime_env_default_excludes())


def git_matcher(lines: Iterable[str]) -> Callable[[str], bool]:
    """Whether a relative path is meant by lines of a ``.gitignore``."""
    spec = PathSpec.from_lines("gitwildmatch", list(lines))
    return lambda path: bool(spec.match_file(path))


def remote_body(function: RemoteFunction) -> Callable[..., Any]:
    """The function behind ``@ray.remote``."""
    body: Callable[..., Any] = function._function
    return body
