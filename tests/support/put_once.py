"""Named objects in memory, and a store that crashes or loses answers at a chosen moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.objects.blobs import ObjectBlobs
from ray_workflows.storage.objects.client import Crew, Found, InTurn, Listed, Operations
from ray_workflows.storage.objects.home import ObjectsHome
from ray_workflows.storage.objects.storage import PutOnceStorage


class Crash(BaseException):
    """The process ended here."""


class MemoryOperations(Operations):
    """Objects in a dict, on a clock that the test moves."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.objects: dict[str, Found] = {}
        self.lock = threading.Lock()

    def create(self, key: str, data: bytes) -> bool:
        with self.lock:
            if key in self.objects:
                return False
            self.objects[key] = Found(data, self.clock())
            return True

    def put(self, key: str, data: bytes) -> None:
        with self.lock:
            self.objects[key] = Found(data, self.clock())

    def get(self, key: str) -> Found | None:
        with self.lock:
            return self.objects.get(key)

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        with self.lock:
            start = len(prefix) + 1
            names = {
                key[start:]: found.modified
                for key, found in self.objects.items()
                if key.startswith(prefix + "/") and "/" not in key[start:]
            }
        return iter([Listed(name, names[name]) for name in sorted(names) if name > after])

    def list_prefixes(self, prefix: str) -> Sequence[str]:
        with self.lock:
            start = len(prefix) + 1
            keys = [key[start:] for key in self.objects if key.startswith(prefix + "/")]
        return sorted({key.split("/")[0] for key in keys if "/" in key})

    def delete(self, keys: Iterable[str]) -> None:
        with self.lock:
            for key in keys:
                self.objects.pop(key, None)


class Interrupted(Operations):
    """Counts the operations on a store, and at one of them does not go on.

    ``at`` counts from 1. ``how``: ``before`` and ``after`` crash around the operation; ``lost``
    does it and raises as if the answer had not come; ``failed`` raises without doing it;
    ``retried`` does it twice, as a client library does that got no answer to the first.
    """

    def __init__(self, inner: Operations, at: int = 0, how: str = "before") -> None:
        self.inner = inner
        self.at = at
        self.how = how
        self.count = 0
        self.dead = False
        #: What the chosen operation was.
        self.met = ""
        #: Called at the chosen operation, for tests that let others go first.
        self.meanwhile: Callable[[], None] | None = None

    def pass_on(self, name: str, *arguments: Any) -> Any:
        self.count += 1
        if self.dead:
            raise Crash
        here = self.count == self.at
        self.met = name if here else self.met
        if here and self.meanwhile is not None:
            self.meanwhile()
        if here and self.how == "before":
            self.dead = True
            raise Crash
        if here and self.how == "failed":
            raise StorageUnavailableError(f"{name} failed")
        result = getattr(self.inner, name)(*arguments)
        if here and self.how == "retried":
            result = getattr(self.inner, name)(*arguments)
        if here and self.how == "after":
            self.dead = True
            raise Crash
        if here and self.how == "lost":
            raise StorageUnavailableError(f"the answer to {name} is lost")
        return result

    def create(self, key: str, data: bytes) -> bool:
        return self.pass_on("create", key, data)

    def put(self, key: str, data: bytes) -> None:
        self.pass_on("put", key, data)

    def get(self, key: str) -> Found | None:
        return self.pass_on("get", key)

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        return self.pass_on("list", prefix, after)

    def list_prefixes(self, prefix: str) -> Sequence[str]:
        return self.pass_on("list_prefixes", prefix)

    def delete(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            self.pass_on("delete", [key])

    def now(self, key: str) -> float:
        return self.pass_on("now", key)


class MemoryObjects(ObjectsHome):
    """A store of objects in memory."""

    def __reduce__(self) -> Any:
        raise TypeError("These objects live in one process.")

    @property
    def url(self) -> str:
        return "memory-objects://test"


class MemoryObjectStorage(PutOnceStorage):
    """The algorithm of object stores on objects in memory."""

    def __init__(
        self, operations: Operations, clock: Callable[[], float], crew: Crew | None = None
    ) -> None:
        # Uploads in parts need a real store; nothing else of it does.
        home = MemoryObjects(operations, crew=crew or InTurn(), clock=clock)
        super().__init__(home, ObjectBlobs(home, whole_bytes=2**40))  # type: ignore[arg-type]
