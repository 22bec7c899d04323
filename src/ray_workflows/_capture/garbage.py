"""Collects garbage less often while code makes very many objects that all stay alive."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

#: The threshold of the youngest generation. With Python's default of some hundred objects, a third
#: of a capture's time goes into collections.
YOUNG_OBJECTS = 50_000


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """Scope in which this process collects garbage less often."""
    before = gc.get_threshold()
    if not 0 < before[0] < YOUNG_OBJECTS:
        # Collection is off, or another thread is in here.
        yield
        return
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
