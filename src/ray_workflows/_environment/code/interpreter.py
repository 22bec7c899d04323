"""The Python that workers run. Ray writes its path into a line of a shell as it is, and never says
that this could not be started: from a virtual environment in a directory whose name has a space, no
worker with a runtime_env ever comes. So a runtime_env names the path itself, quoted.
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
    """This Python as a shell has to read it; None if its path needs no quotes."""
    text = shlex.quote(sys.executable)
    return None if text == sys.executable else text


def name_python(runtime_env: dict[str, Any]) -> None:
    """Let a runtime_env name the Python of this process, which is that of the cluster, where Ray
    could not start it by itself."""
    command = quoted()
    if command and runtime_env and not any(map(runtime_env.get, (FIELD, *OTHERS))):
        runtime_env[FIELD] = command


def unname_python(runtime_env: dict[str, Any]) -> None:
    """Take out what `name_python` has put in: it is about this machine."""
    if runtime_env.get(FIELD) == quoted():
        runtime_env.pop(FIELD, None)


def check_python(runtime_env: Mapping[str, Any]) -> None:
    """Refuse the runtime_env of a driver with which Ray starts no worker.

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
