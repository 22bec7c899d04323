"""Functions that a worker keeps unpickled: the ones used last, within a bound in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from ray_workflows._capture.classes import Classes
from ray_workflows._model.plan import Function
from ray_workflows._model.values import Blob

#: How many are kept, and how many bytes they may have been stored as. One that is larger is kept
#: until the next one comes: a fan-out of it would read it anew for each task.
MAX_FUNCTIONS = 256
MAX_BYTES = 64 * 1024 * 1024


class Loaded(NamedTuple):
    """A function in this process."""

    call: Callable[..., Any]
    #: What takes the place of classes that values bring along.
    classes: Classes
    #: What it was stored as.
    nbytes: int


def size_of(function: Function) -> int:
    """How many bytes a function was stored as."""
    data = function.data
    return data.size if isinstance(data, Blob) else len(data)


class FunctionCache:
    """Functions by what tells them apart; the least recently used leave first."""

    def __init__(self, max_functions: int = MAX_FUNCTIONS, max_bytes: int = MAX_BYTES) -> None:
        self.max_functions = max_functions
        self.max_bytes = max_bytes
        self.kept: OrderedDict[Hashable, Loaded] = OrderedDict()
        self.nbytes = 0
        #: Listeners of a host load theirs on threads.
        self.lock = threading.Lock()

    def get(self, key: Hashable) -> Loaded | None:
        """The function, if it is kept."""
        with self.lock:
            found = self.kept.get(key)
            if found is not None:
                self.kept.move_to_end(key)
            return found

    def put(self, key: Hashable, loaded: Loaded) -> None:
        """Keep a function, and let go of those for which there is no room any more."""
        with self.lock:
            self.remove(key)
            self.kept[key] = loaded
            self.nbytes += loaded.nbytes
            while len(self.kept) > 1 and self.is_full():
                self.remove(next(iter(self.kept)))

    def drop(self, key: Hashable) -> None:
        """Let go of a function."""
        with self.lock:
            self.remove(key)

    def is_full(self) -> bool:
        return len(self.kept) > self.max_functions or self.nbytes > self.max_bytes

    def remove(self, key: Hashable) -> None:
        gone = self.kept.pop(key, None)
        if gone is not None:
            self.nbytes -= gone.nbytes
