"""Stores functions of tasks, and identifies them by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from ray_workflows._capture.pickling import (
    FunctionPickler,
    Pickled,
    pickle_value,
    refuse_node_in_function,
)
from ray_workflows._capture.values import ValueWriter
from ray_workflows._model.plan import Function
from ray_workflows._model.values import Blob


def function_digest(pickled: Pickled, objects: Iterable[Blob]) -> str:
    """The digest of a pickled function: functions with equal digests do the same.

    Args:
        pickled: the function.
        objects: the blobs of its ObjectRefs. A pickle has only placeholders for them, so that
            functions over different ObjectRefs have equal pickles.
    """
    sha = hashlib.sha256(pickled.data)
    for buffer in pickled.buffers:
        # With its size: the same bytes can be split into other buffers.
        sha.update(buffer.nbytes.to_bytes(8, "big"))
        sha.update(buffer)
    for blob in objects:
        sha.update(f"{blob.key}\0".encode())
    return sha.hexdigest()


def write_function(
    writer: ValueWriter, body: Callable[..., Any], *, name: str, where: str
) -> Function:
    """Store a function.

    Args:
        writer: that of the workflow.
        body: the function.
        name: the name of the function in listings.
        where: names it in errors.

    Raises:
        SerializationError: it can't be stored; names the part at fault.
    """
    pickled = pickle_value(
        body, where=where, node_hook=refuse_node_in_function, kind=FunctionPickler
    )
    digest = function_digest(pickled, writer.write_objects(pickled, where=where))
    value = writer.write_pickled(pickled, key=f"function-{digest}", where=where)
    return Function(digest, name, value.data, value.objects)
