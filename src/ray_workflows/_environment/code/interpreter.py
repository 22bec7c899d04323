"""The Python of workers. Ray writes its path unquoted into a shell command, and does not report the
failure: for a virtual environment in a directory with a space in its name, no worker with a
runtime_env ever starts. So a runtime_env names the path itself, quoted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

#: The field of a runtime_env with the command that starts Python.
FIELD = "py_executable"

#: Fields with which Ray runs another Python than that of the cluster.
OTHERS = ("pip", "uv", "conda", "image_uri", "container")


def quoted() -> str | None:
    """The path of this Python, quoted for a shell; None if it needs no quotes."""
    text = shlex.quote(sys.executable)
    return None if text == sys.executable else text


def name_python(runtime_env: dict[str, Any]) -> None:
    """Name the Python of this process, which is the cluster's, in a runtime_env, if Ray could not
    start it otherwise."""
    command = quoted()
    if command and runtime_env and not any(map(runtime_env.get, (FIELD, *OTHERS))):
        runtime_env[FIELD] = command


def unname_python(runtime_env: dict[str, Any]) -> None:
    """Undo `name_python`: the path is valid on this machine alone."""
    if runtime_env.get(FIELD) == quoted():
        runtime_env.pop(FIELD, None)


def check_python(runtime_env: Mapping[str, Any]) -> None:
    """Refuse a driver's runtime_env with which Ray would start no worker.

    Raises:
        ValueError: says what to add to it.
    """
    named = dict(runtime_env)
    name_python(named)
    if named != runtime_env:
        raise ValueError(
            f"Ray starts no worker for this driver, and would not say so: the path of its Python, "
            f"{sys.executable!r}, has characters that mean something to a shell, and Ray does not "
            f"quote it where there is a runtime_env. Add the field {FIELD!r} with the value "
            f"{named[FIELD]!r} to the runtime_env of ray.init(), or use a Python in a path without "
            f"such characters."
        )
