"""A user's own storage: the embedded one, that writes down on which node it was called."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import ray

from ray_workflows._model.values import Blob
from ray_workflows.storage import SqliteStorage


class RecordingStorage(SqliteStorage):
    def __init__(self, directory: str, record: str) -> None:
        super().__init__(directory)
        self.record = record

    def __reduce__(self):
        return RecordingStorage, (str(self.directory), self.record)

    def note(self, method: str) -> None:
        with Path(self.record).open("a") as file:
            file.write(f"{method} {ray.get_runtime_context().get_node_id()}\n")

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        self.note("write_blob")
        return super().write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        self.note("read_blob")
        return super().read_blob(incarnation, blob)
