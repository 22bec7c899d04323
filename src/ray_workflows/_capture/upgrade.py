"""Replaces stored functions of a workflow by their present versions in the script.

A function of a module is stored by name, and comes with the module. A function of the script
itself, or of a notebook, is stored by value.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import ray
from ray.remote_function import RemoteFunction

from ray_workflows._capture.classes import Bringing
from ray_workflows._capture.functions import write_function
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._model.plan import Function
from ray_workflows._model.values import Value
from ray_workflows._ray.private import remote_body


def present_version(module: str, qualname: str) -> Any:
    """The function of this process's script with the name of a recorded one, or None."""
    if module != "__main__":
        return None
    found: Any = sys.modules.get("__main__")
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if isinstance(found, RemoteFunction):
        found = remote_body(found)
    return found if callable(found) else None


def upgraded(
    reader: ValueReader, writer: ValueWriter, functions: Mapping[str, Function]
) -> dict[str, Function]:
    """The script's versions of functions, where they differ.

    Args:
        reader: of the workflow that has the functions.
        writer: of the workflow that gets those of the script.
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
            # A function of a module, which comes with the module, or one that refers to a dead
            # actor.
            continue
        present = present_version(
            getattr(body, "__module__", None) or "", getattr(body, "__qualname__", "")
        )
        if present is None:
            continue
        stored = write_function(writer, present, name=function.name, where=where)
        if stored.digest != function.digest:
            found[digest] = msgspec.structs.replace(stored, present=True)
    return found
