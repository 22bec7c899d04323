"""Which blobs a record refers to, wherever in it they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ray_workflows._model.plan import Package
from ray_workflows._model.values import Blob


def stored_parts(record: Any) -> Iterator[Blob | Package]:
    """Every stored blob of the workflow, and every package, in a plan, an event, or a tuple of
    such; one may come up again. A package's own blob is none of the workflow's."""
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
    """Of `stored_parts`, the blobs."""
    return (part for part in stored_parts(record) if isinstance(part, Blob))
