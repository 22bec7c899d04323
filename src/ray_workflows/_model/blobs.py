"""What capture and workers need of a storage: blobs, and nothing of journals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ray_workflows._model.values import Blob
from ray_workflows.codec import PayloadCodec


class BlobStore(Protocol):
    """Blobs of workflows by incarnation and key; `storage.Storage` is one."""

    @property
    def codecs(self) -> tuple[PayloadCodec, ...]:
        """What values are encoded with (the first) and decoded with (all)."""

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write durably unless the key exists; the description of what is stored."""

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes, checked against size and checksum."""

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The same piece by piece; they are right if the iteration ends without an error."""

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of what is stored, or None."""
