"""Finds the blobs that a record refers to, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ray_workflows._model.plan import Package
from ray_workflows._model.values import Blob


def stored_parts(record: Any) -> Iterator[Blob | Package]:
    """Every stored blob of the workflow, and every package, in a plan, an event, or a tuple of
    such; with repetitions. A package's own blob does not belong to the workflow."""
    pending = [record]
    while pending:
        current = pending.pop()
        if isinstance(current, Blob):
            if current.stored:
                yield current
        elif isinstance(current, Package):
            yield current
        elif isinstance(current, msgspec.Struct):
            pending += [getattr(current, name) for name in current.__struct_fields__]
        elif isinstance(current, (tuple, list)):
            pending += current
        elif isinstance(current, dict):
            pending += current.values()


def blobs_in(record: Any) -> Iterator[Blob]:
    """The blobs among `stored_parts`."""
    return (part for part in stored_parts(record) if isinstance(part, Blob))
