"""The part of a storage that capture and workers need: blobs, no journals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ray_workflows._model.values import Blob
from ray_workflows.codec import PayloadCodec


class BlobStore(Protocol):
    """Blobs of workflows by incarnation and key; `storage.Storage` is one."""

    @property
    def codecs(self) -> tuple[PayloadCodec, ...]:
        """The codecs of values: the first encodes, all decode."""

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write durably unless the key exists; the description of the stored blob."""

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes, checked against size and checksum."""

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The same piece by piece. The bytes are intact if the iteration ends without an error."""

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of the stored blob, or None."""
