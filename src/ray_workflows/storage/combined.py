"""Journals in one storage and blobs in another, as ``init(storage, blobs=...)`` composes them.
Blobs that the first storage has from before ``blobs=`` was given are still read from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.parts import BlobStore


class MovedBlobs(BlobStore):
    """Blobs in one store, and earlier ones in another.

    Args:
        blobs: where blobs are written, and read first.
        before: where earlier blobs are.
    """

    def __init__(self, blobs: BlobStore, before: BlobStore) -> None:
        self.blobs = blobs
        self.before = before
        self.home = blobs.home

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob to the new store."""
        return self.blobs.write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, wherever it is."""
        try:
            return self.blobs.read_blob(incarnation, blob)
        except StorageCorruptError:
            if self.before.find_blob(incarnation, blob.key) is None:
                raise
        return self.before.read_blob(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, wherever it is."""
        pieces = self.blobs.stream_blob(incarnation, blob)
        try:
            first = next(pieces, None)
        except StorageCorruptError:
            if self.before.find_blob(incarnation, blob.key) is None:
                raise
            yield from self.before.stream_blob(incarnation, blob)
            return
        if first is not None:
            yield first
            yield from pieces

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a blob, wherever it is."""
        return self.blobs.find_blob(incarnation, key) or self.before.find_blob(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation in both."""
        self.blobs.delete_blobs(incarnation)
        self.before.delete_blobs(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations with old blobs in the new store. The earlier storage sweeps its own."""
        return self.blobs.old_blobs(grace_seconds)


def combine(storage: Storage, blobs: Storage) -> Storage:
    """A storage whose blobs are in another one.

    Args:
        storage: has the journals, the catalog and the holders.
        blobs: has the blobs of this storage, and of no other.
    """
    return Storage(
        journals=storage.journals,
        blobs=MovedBlobs(blobs.blobs, before=storage.blobs),
        leases=storage.leases,
        codecs=storage.codecs,
    )
