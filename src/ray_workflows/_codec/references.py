"""Which blobs a record refers to, wherever in it they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ray_workflows._model.values import Blob


def blobs_in(record: Any) -> Iterator[Blob]:
    """Every stored blob in a plan, an event, or a tuple of such; one may come up again."""
    pending = [record]
    while pending:
        current = pending.pop()
        if isinstance(current, Blob):
            if current.stored:
                yield current
        elif isinstance(current, msgspec.Struct):
            pending += [getattr(current, name) for name in current.__struct_fields__]
        elif isinstance(current, (tuple, list)):
            pending += current
