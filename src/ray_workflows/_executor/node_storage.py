"""A storage as processes reach it that can't use it directly: by small Ray tasks where it is.

The embedded default lives on one machine's disk. What runs there uses it directly; a worker
elsewhere, or a Ray Client, must not write to its own disk of the same path, where nobody would
find it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import ray

from ray_workflows._environment.cluster import call_on, is_outside
from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
)
from ray_workflows._model.values import Blob
from ray_workflows.codec import PayloadCodec
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.base import CommitOutcome, Storage


def call_storage(storage: Storage, method: str, *args: Any) -> Any:
    """Call a method of a storage where it can be used."""
    result = getattr(storage, method)(*args)
    # Large blobs go into the object store without a copy in a pickle.
    return BufferList([result]) if isinstance(result, memoryview) else result


class NodeStorage(Storage):
    """A storage that not every process can use directly.

    Args:
        storage: the storage, usable directly on its node.
        node_id: Ray's hex id of that node. None: on any node of the cluster, but not in a Ray
            Client.
    """

    def __init__(self, storage: Storage, node_id: str | None) -> None:
        self.storage = storage
        self.node_id = node_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.storage, self.node_id)

    @cached_property
    def is_here(self) -> bool:
        """Whether this process can use the storage directly."""
        if is_outside():
            return False
        return self.node_id in (None, ray.get_runtime_context().get_node_id())

    def call(self, method: str, *args: Any) -> Any:
        if self.is_here:
            return getattr(self.storage, method)(*args)
        try:
            return call_on(self.node_id, call_storage, self.storage, method, *args)
        except ray.exceptions.RayError as error:
            place = f"on node {self.node_id}" if self.node_id else "in the cluster"
            raise StorageUnavailableError(
                f"The storage {self.url} is {place}, which can't be reached: {error}. For storage "
                f"that outlives a node use a shared one."
            ) from error

    @property
    def url(self) -> str:
        """As the storage's own."""
        return self.storage.url

    @property
    def node_bound(self) -> bool:
        """Whether it is on one node."""
        return self.node_id is not None

    @property
    def commits_at_once(self) -> bool:
        """Whether the storage does, where it is."""
        return self.is_here and self.storage.commits_at_once

    @property
    def codecs(self) -> tuple[PayloadCodec, ...]:
        """As the storage's own: values are encoded where they are made."""
        return self.storage.codecs

    def open(self) -> None:
        self.call("open")

    def open_existing(self) -> None:
        self.call("open_existing")

    def close(self) -> None:
        self.storage.close()

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        outcomes: list[CommitOutcome] = self.call("commit", appends)
        return outcomes

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        entries: list[JournalEntry] = self.call("read_journal", incarnation, after)
        return entries

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        row: CatalogRow | None = self.call("read_catalog", workflow_id)
        return row

    def list_catalog(self, query: CatalogQuery) -> Page:
        page: Page = self.call("list_catalog", query)
        return page

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        outcome: CommitOutcome = self.call("delete", workflow_id, incarnation, expected_seq)
        return outcome

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        blob: Blob = self.call("write_blob", incarnation, key, BufferList(list(chunks)))
        return blob

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        result = self.call("read_blob", incarnation, blob)
        (view,) = result if isinstance(result, BufferList) else (result,)
        return memoryview(view).cast("B")

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        if self.is_here:
            return self.storage.stream_blob(incarnation, blob)
        # Elsewhere it comes through the object store, where it is whole for a while.
        return super().stream_blob(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        blob: Blob | None = self.call("find_blob", incarnation, key)
        return blob

    def delete_blobs(self, incarnation: str) -> None:
        self.call("delete_blobs", incarnation)

    def sweep(self, grace_seconds: float) -> int:
        count: int = self.call("sweep", grace_seconds)
        return count

    def old_blobs(self, grace_seconds: float) -> list[str]:
        incarnations: list[str] = self.call("old_blobs", grace_seconds)
        return incarnations

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        self.call("renew_holder", holder, lease_seconds)

    def remove_holder(self, holder_id: str) -> None:
        self.call("remove_holder", holder_id)

    def read_holders(self) -> list[Holder]:
        holders: list[Holder] = self.call("read_holders")
        return holders

    def listen(self, holder_id: str, on_news: Callable[[], None]) -> None:
        # Nobody elsewhere could call back here.
        if self.is_here:
            self.storage.listen(holder_id, on_news)

    def now(self) -> float:
        now: float = self.call("now")
        return now


class BufferList:
    """Chunks of a blob on their way: pickled out of band, iterated as memoryviews.

    Pickled again by every process it comes through: the server of a Ray Client is one more.
    """

    def __init__(self, buffers: list[Any]) -> None:
        self.buffers = buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferList, ([pickle.PickleBuffer(buffer) for buffer in self.buffers],)

    def __iter__(self) -> Any:
        return (memoryview(buffer).cast("B") for buffer in self.buffers)
