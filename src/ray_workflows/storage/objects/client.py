"""The few operations on named objects that `PutOnceStorage` is built on.

A store has objects under keys like ``a/b/c``. All it must do atomically is to create an object
only if there is none of that name. There is no compare-and-swap: not every store has one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

from ray_workflows.exceptions import StorageUnavailableError

T = TypeVar("T")

#: How often a creation that was refused, though nothing is there, is tried again.
ATTEMPTS = 5


class Found(NamedTuple):
    """An object's bytes, and when it was written: seconds since 1970 on the store's clock."""

    data: bytes
    modified: float


class Listed(NamedTuple):
    """An object as a listing shows it, by its name below the listed prefix."""

    name: str
    modified: float


class Operations(ABC):
    """A store of named objects. Called from several threads.

    All may raise `StorageUnavailableError`; a write may then have happened, or happen later.
    """

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write an object durably unless the key exists; False if it does.

        May be False after a write that succeeded: a client library that got no answer asks again.
        `put_if_absent` tells these apart.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object durably, in place of what is there."""

    @abstractmethod
    def get(self, key: str) -> Found | None:
        """An object, or None if there is none."""

    @abstractmethod
    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """The objects directly below a prefix whose names are greater than ``after``, by name.

        What is there from before the listing to its end is in it.
        """

    @abstractmethod
    def list_prefixes(self, prefix: str) -> Sequence[str]:
        """The names directly below a prefix that have objects below them, in order."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. It does not matter whether they exist."""

    def now(self, key: str) -> float:
        """The store's clock, in seconds since 1970: the one that `Found.modified` is read from.

        There is no other way to learn it than to write an object: ``key`` is the caller's own.
        """
        self.put(key, b"")
        found = self.get(key)
        if found is None:
            raise StorageUnavailableError(f"{key} is gone, which was just written.")
        return found.modified

    def sweep(self, before: float) -> None:
        """Remove what killed writers left before that time beside the objects, if anything."""
        return

    def close(self) -> None:
        """Give back what this process holds; the next use takes it anew."""
        return

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists; whether these bytes are there by this call.

        ``data`` has to be unique to the call, which is how an answer that was lost, and a
        creation that was refused because its own first try had succeeded, are told from a rival.
        """
        for _ in range(ATTEMPTS):
            try:
                if self.create(key, data):
                    return True
            except StorageUnavailableError:
                found = self.get(key)
                if found is None:
                    # It may still be on its way.
                    raise
                return found.data == data
            found = self.get(key)
            if found is not None:
                return found.data == data
            # Refused because of another request at the same time, which came to nothing.
        raise StorageUnavailableError(
            f"{key} could not be created in {ATTEMPTS} attempts, though it does not exist. The "
            f"operation can be repeated."
        )


class Crew:
    """Runs independent operations at once.

    Two pools: what runs in the first may wait for the second, never the other way round, so that
    no thread waits for itself.
    """

    def __init__(self, threads: int = 128) -> None:
        self.threads = threads
        self.outer: ThreadPoolExecutor | None = None
        self.inner: ThreadPoolExecutor | None = None

    def groups(self, works: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """Do all of them, each of which may use `together`; what they returned or raised."""
        if len(works) == 1:
            return [outcome(works[0])]
        if self.outer is None:
            self.outer = ThreadPoolExecutor(self.threads, "ray-workflows-objects")
        return list(self.outer.map(outcome, works))

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do all of them, which must be single operations; raises the first error, at the end."""
        if len(works) == 1:
            return [works[0]()]
        if self.inner is None:
            self.inner = ThreadPoolExecutor(self.threads, "ray-workflows-object")
        futures = [self.inner.submit(work) for work in works]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads."""
        for pool in (self.outer, self.inner):
            if pool is not None:
                pool.shutdown()
        self.outer = self.inner = None


class InTurn(Crew):
    """Does one after the other: for tests that must know the order."""

    def groups(self, works: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """Do them in order."""
        return [outcome(work) for work in works]

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do them in order."""
        return [work() for work in works]


def outcome(work: Callable[[], T]) -> T | Exception:
    """What it returned or raised."""
    try:
        return work()
    except Exception as error:
        return error
