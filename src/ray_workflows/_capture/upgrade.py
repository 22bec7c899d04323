"""Functions that are stored with a workflow, in their present version: those of the script.

A function of a module is stored as its name, and comes with the module. One of the script itself,
or of a notebook, is stored as code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import ray
from ray.remote_function import RemoteFunction

from ray_workflows._capture.functions import write_function
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._environment.ray_private import remote_body
from ray_workflows._model.blobs import BlobStore
from ray_workflows._model.plan import Function
from ray_workflows._model.values import Value


def present_version(function: Any) -> Any:
    """What the script of this process has under the name of a function of a script, or None."""
    if getattr(function, "__module__", None) != "__main__":
        return None
    found: Any = sys.modules.get("__main__")
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    if isinstance(found, RemoteFunction):
        found = remote_body(found)
    return found if callable(found) else None


def upgraded(
    storage: BlobStore, incarnation: str, functions: Iterable[Function]
) -> dict[str, Function]:
    """By the digests of functions, what the script has under their names, where it differs."""
    reader, writer = ValueReader(storage, incarnation), ValueWriter(storage, incarnation)
    found: dict[str, Function] = {}
    for function in functions:
        where = f"function of task '{function.name}'"
        try:
            body = reader.read(Value(function.data, function.objects), where=where)
        except (ImportError, ray.exceptions.RayActorError):
            # One of a module, which comes with the module; or one over an actor that is gone.
            continue
        present = present_version(body)
        if present is None:
            continue
        stored = write_function(writer, present, name=function.name, where=where)
        if stored.digest != function.digest:
            found[function.digest] = stored
    return found
