"""A user's own storage: the embedded one, whose blobs write down on which node they were used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import ray

from ray_workflows._model.values import Blob
from ray_workflows.storage import BlobStore, SqliteStorage, Storage


class RecordingBlobs(BlobStore):
    def __init__(self, blobs: BlobStore, record: str) -> None:
        self.blobs = blobs
        self.home = blobs.home
        self.record = record

    def note(self, method: str) -> None:
        with Path(self.record).open("a") as file:
            file.write(f"{method} {ray.get_runtime_context().get_node_id()}\n")

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        self.note("write_blob")
        return self.blobs.write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        self.note("read_blob")
        return self.blobs.read_blob(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        return self.blobs.stream_blob(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        return self.blobs.find_blob(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        self.blobs.delete_blobs(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        return self.blobs.old_blobs(grace_seconds)


def recording_storage(directory: str, record: str) -> Storage:
    """The embedded storage of a directory, with blobs that write into the file ``record``."""
    mine = SqliteStorage(directory)
    blobs = RecordingBlobs(mine.blobs, record)
    return Storage(journals=mine.journals, blobs=blobs, leases=mine.leases)
