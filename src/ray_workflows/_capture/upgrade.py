"""Replaces stored functions of a workflow by their present versions.

The function of a task is stored by value: its name in the script, or in a module, stands for the
remote function, not for the function in it. What it calls in modules comes with the modules.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import ray
from ray.remote_function import RemoteFunction

from ray_workflows._capture.classes import Bringing
from ray_workflows._capture.functions import write_function
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._environment.code.capture import current_directory
from ray_workflows._model.plan import Function
from ray_workflows._model.values import Value
from ray_workflows._ray.private import remote_body

logger = logging.getLogger(__name__)


def present_version(module: str, qualname: str) -> Any:
    """The function of this process's script with the name of a recorded one, or None."""
    if module != "__main__":
        return None
    return named(sys.modules.get("__main__"), qualname)


def current_version(module: str, qualname: str) -> Any:
    """The function here with the name of a recorded one: of this process's script, or of a module,
    which is imported. None if there is none."""
    if module == "__main__":
        return present_version(module, qualname)
    try:
        found: Any = import_here(module)
    except Exception as error:
        logger.warning(
            "The module %s can't be imported here (%s: %s), so its function %s stays as it is "
            "recorded.",
            *(module, type(error).__name__, error, qualname),
        )
        return None
    return named(found, qualname)


def import_here(module: str) -> Any:
    """Import a module, also one in the working directory, which a command of the shell has not in
    its ``sys.path``."""
    if module in sys.modules:
        return sys.modules[module]
    directory = current_directory()
    added = directory not in sys.path
    if added:
        sys.path.append(directory)
    try:
        return importlib.import_module(module)
    finally:
        if added:
            sys.path.remove(directory)


def named(found: Any, qualname: str) -> Any:
    """The function of this name in a module; None if there is none."""
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if isinstance(found, RemoteFunction):
        found = remote_body(found)
    return found if callable(found) else None


def upgraded(
    reader: ValueReader, writer: ValueWriter, functions: Mapping[str, Function]
) -> dict[str, Function]:
    """The present versions of functions, where they differ.

    Args:
        reader: of the workflow that has the functions.
        writer: of the workflow that gets the present ones.
        functions: the functions in use, by the digests of the submitted ones.
    """
    # Only the names are needed: don't warn about classes that differ.
    reader.classes = Bringing()
    found: dict[str, Function] = {}
    for digest, function in functions.items():
        where = f"function of task '{function.name}'"
        try:
            body = reader.read(Value(function.data, function.objects), where=where)
        except (ImportError, ray.exceptions.RayActorError):
            # A function without a decorator is stored by name, and comes with its module. Or it
            # refers to a dead actor.
            continue
        present = current_version(
            getattr(body, "__module__", None) or "", getattr(body, "__qualname__", "")
        )
        if present is None:
            continue
        stored = write_function(writer, present, name=function.name, where=where)
        if stored.digest != function.digest:
            found[digest] = msgspec.structs.replace(stored, present=True)
    return found
