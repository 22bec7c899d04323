"""The few operations on named objects that `PutOnceStorage` is built on.

A store has objects under keys like ``a/b/c``. Its one atomic operation creates an object only if
its key is free. Compare-and-swap is not used, because not every store has it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

from ray_workflows.exceptions import StorageUnavailableError

T = TypeVar("T")

#: How often a creation is tried that the store refuses although the key is free.
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

        May be False after a write that succeeded, because a client library that got no answer
        repeats the request. `put_if_absent` detects that.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object durably; replaces an existing one."""

    @abstractmethod
    def get(self, key: str) -> Found | None:
        """An object, or None if there is none."""

    @abstractmethod
    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """The objects directly below a prefix whose names are greater than ``after``, by name.

        An object that exists during the whole listing is in it.
        """

    @abstractmethod
    def list_prefixes(self, prefix: str) -> Sequence[str]:
        """The names directly below a prefix that have objects below them, in order."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. It does not matter whether they exist."""

    def now(self, key: str) -> float:
        """The store's clock, in seconds since 1970, on which `Found.modified` is measured.

        Writes an object under ``key``, which must be the caller's own, because stores have no other
        way to tell their time.
        """
        self.put(key, b"")
        found = self.get(key)
        if found is None:
            raise StorageUnavailableError(f"{key} is gone, which was just written.")
        return found.modified

    def sweep(self, before: float) -> None:
        """Remove temporary files that killed writers left before a time, if the store has any."""
        return

    def close(self) -> None:
        """Close the connections of this process; the next use opens them again."""
        return

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists. Returns whether this call wrote it.

        ``data`` has to be unique to the call. So reading it back distinguishes a rival's object
        from one's own after a lost answer, or after a repeated request that was refused because the
        first one had succeeded.
        """
        for _ in range(ATTEMPTS):
            try:
                if self.create(key, data):
                    return True
            except StorageUnavailableError:
                found = self.get(key)
                if found is None:
                    # The write may still take effect.
                    raise
                return found.data == data
            found = self.get(key)
            if found is not None:
                return found.data == data
            # Refused because of a concurrent request, which then failed.
        raise StorageUnavailableError(
            f"{key} could not be created in {ATTEMPTS} attempts, though it does not exist. The "
            f"operation can be repeated."
        )


class Crew:
    """Runs independent operations at once.

    It has two pools. Work of the outer pool may wait for the inner one, never the other way round,
    so that it can't deadlock.
    """

    def __init__(self, threads: int = 128) -> None:
        self.threads = threads
        self.outer: ThreadPoolExecutor | None = None
        self.inner: ThreadPoolExecutor | None = None

    def groups(self, works: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """Run all of them, each of which may use `together`. Returns results and exceptions."""
        if len(works) == 1:
            return [outcome(works[0])]
        if self.outer is None:
            self.outer = ThreadPoolExecutor(self.threads, "ray-workflows-objects")
        return list(self.outer.map(outcome, works))

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Run single operations. Waits for all, then raises the first error, if any."""
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
    """Runs operations one after the other, for tests that need a fixed order."""

    def groups(self, works: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """Do them in order."""
        return [outcome(work) for work in works]

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do them in order."""
        return [work() for work in works]


def outcome(work: Callable[[], T]) -> T | Exception:
    """The result of a function, or the exception that it raised."""
    try:
        return work()
    except Exception as error:
        return error
