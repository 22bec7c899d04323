"""A worker's cache of unpickled functions: least recently used ones leave first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from ray_workflows._capture.classes import Classes
from ray_workflows._model.plan import Function
from ray_workflows._model.values import Blob

#: The most cached functions, and their most stored bytes. A larger function is kept until the next
#: one comes, so that a fan-out of it does not read it for each task.
MAX_FUNCTIONS = 256
MAX_BYTES = 64 * 1024 * 1024


class Loaded(NamedTuple):
    """A function in this process."""

    call: Callable[..., Any]
    #: Replaces classes in the pickles of values.
    classes: Classes
    #: Its stored size.
    nbytes: int


def size_of(function: Function) -> int:
    """The stored bytes of a function."""
    data = function.data
    return data.size if isinstance(data, Blob) else len(data)


class FunctionCache:
    """Functions by key; the least recently used leave first."""

    def __init__(self, max_functions: int = MAX_FUNCTIONS, max_bytes: int = MAX_BYTES) -> None:
        self.max_functions = max_functions
        self.max_bytes = max_bytes
        self.kept: OrderedDict[Hashable, Loaded] = OrderedDict()
        self.nbytes = 0
        #: Listeners load their functions on threads.
        self.lock = threading.Lock()

    def get(self, key: Hashable) -> Loaded | None:
        """The function, if it is cached."""
        with self.lock:
            found = self.kept.get(key)
            if found is not None:
                self.kept.move_to_end(key)
            return found

    def put(self, key: Hashable, loaded: Loaded) -> None:
        """Cache a function, and drop others over the limits."""
        with self.lock:
            self.remove(key)
            self.kept[key] = loaded
            self.nbytes += loaded.nbytes
            while len(self.kept) > 1 and self.is_full():
                self.remove(next(iter(self.kept)))

    def drop(self, key: Hashable) -> None:
        """Drop a function."""
        with self.lock:
            self.remove(key)

    def is_full(self) -> bool:
        return len(self.kept) > self.max_functions or self.nbytes > self.max_bytes

    def remove(self, key: Hashable) -> None:
        gone = self.kept.pop(key, None)
        if gone is not None:
            self.nbytes -= gone.nbytes
