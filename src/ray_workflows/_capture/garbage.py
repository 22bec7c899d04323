"""Looking for garbage less often while very many objects are made, none of which is garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

#: How many more objects than now there must be before the young ones are looked at. By default it
#: is some hundred, with which a third of the time of a capture goes into looking.
YOUNG_OBJECTS = 50_000


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """Scope in which it is looked for less often in this process, if it is at all."""
    before = gc.get_threshold()
    if not 0 < before[0] < YOUNG_OBJECTS:
        # Nobody looks, or another thread is in here.
        yield
        return
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
