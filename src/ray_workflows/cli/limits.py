"""A storage with a time limit for each call: a command may take hours, but ends when a call makes
no progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ray_workflows._client.reader import Reader
from ray_workflows._model.values import Blob
from ray_workflows.cli.waiting import CALL_SECONDS, Progress, within
from ray_workflows.storage import Storage


class LimitedCalls:
    """The methods of a storage, each with a time limit. It is all three parts of a storage, and
    their home."""

    def __init__(self, storage: Storage) -> None:
        self.unlimited = storage
        self.home = self
        self.what = f"the storage {storage.url}"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.unlimited, name)
        return self.limited(found) if callable(found) else found

    def limited(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call with a time limit."""
        return lambda *args: within(CALL_SECONDS, self.what, call, *args)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """Each piece has its own limit."""
        pieces = self.unlimited.stream_blob(incarnation, blob)
        following = self.limited(lambda: next(pieces, None))
        while (piece := following()) is not None:
            yield piece

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Each chunk taken counts as progress."""
        progress = Progress()
        write = self.unlimited.write_blob
        return within(
            *(CALL_SECONDS, self.what, write, incarnation, key, progress.over(chunks)),
            progress=progress,
        )


class LimitedStorage(Storage):
    """A storage with a time limit for each call.

    Raises:
        NoAnswerError: from every method, if it takes too long.
    """

    def __init__(self, storage: Storage) -> None:
        calls: Any = LimitedCalls(storage)
        super().__init__(journals=calls, blobs=calls, leases=calls, codecs=storage.codecs)
        self.unlimited = storage

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as the storage itself: in another process no command waits for it."""
        return unlimited, (self.unlimited,)


def limited(reader: Reader) -> Reader:
    """A reader of the same storage, with a time limit for each call."""
    if isinstance(reader.storage, LimitedStorage):
        return reader
    return Reader(LimitedStorage(reader.storage), cluster=reader.cluster)


def unlimited(storage: Storage) -> Storage:
    """The storage itself, for checks of its kind."""
    return storage.unlimited if isinstance(storage, LimitedStorage) else storage
