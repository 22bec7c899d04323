"""Reads the errors in Ray's messages without running user code.

`tests/unit/ray/test_foreign_errors.py` fails when Ray changes the format of these messages.
"""

from __future__ import annotations

import io
import logging
import pickle
from typing import Any

import ray
from ray._raylet import BaseID

from ray_workflows.exceptions import rebuild_error

logger = logging.getLogger(__name__)

#: Modules whose types an error of Ray's own may contain, besides Python's own exceptions.
ERROR_MODULES = ("ray.exceptions", "ray_workflows.exceptions")


class ErrorUnpickler(pickle.Unpickler):
    """Unpickles errors of Ray, Python and this package, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """Find an exception type, or the type of an id in an exception; refuse all others."""
        if module in (*ERROR_MODULES, "builtins", "ray._raylet") and "." not in name:
            found = super().find_class(module, name)
            types = BaseID if module == "ray._raylet" else BaseException
            if found is rebuild_error or (isinstance(found, type) and issubclass(found, types)):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is none of Ray's errors")


def error_without_user_code(message: Any) -> Exception:
    """The error in a message of Ray. If it contains types of a user, only its text is kept."""
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
    """Make Ray read errors in this process by `error_without_user_code` from now on."""
    ray.exceptions.RayError.from_ray_exception = staticmethod(error_without_user_code)
