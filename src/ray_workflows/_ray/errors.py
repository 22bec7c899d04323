"""Errors that Ray brings, read without running anything of a user's.

`tests/unit/ray/test_foreign_errors.py` fails when Ray changes how it brings them.
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
