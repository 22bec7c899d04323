"""Access to a storage of another node, by small Ray tasks on that node.

The embedded storage is on one machine's disk. Processes there use it directly. A worker
elsewhere, or a Ray Client, must not write to the same path on its own disk, where no other process
would find it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import ray

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
)
from ray_workflows._model.values import Blob
from ray_workflows._ray.cluster import call_on, is_outside
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.parts import (
    BlobStore,
    CommitOutcome,
    Home,
    JournalStore,
    LeaseStore,
    Part,
)

T = TypeVar("T")


def call_method(method: Callable[..., Any], *args: Any) -> Any:
    """Call a method of a storage, or of a part of it, in a Ray task on its node."""
    result = method(*args)
    # So that a large blob goes into the object store without a copy in a pickle.
    return BufferList([result]) if isinstance(result, memoryview) else result


class NodeHome(Home):
    """A storage on a node, or on any node of a cluster.

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

    def call(self, method: Callable[..., T], *args: Any) -> T:
        """Call a method of the storage, or of a part of it: directly, or on its node."""
        if self.is_here:
            return method(*args)
        try:
            result: T = call_on(self.node_id, call_method, method, *args)
            return result
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

    def open(self) -> None:
        self.call(self.storage.open)

    def open_existing(self) -> None:
        self.call(self.storage.open_existing)

    def close(self) -> None:
        self.storage.close()

    def has_workflows(self) -> bool:
        return self.call(self.storage.has_workflows)


class NodePart(Part):
    """A part of a storage on a node."""

    home: NodeHome

    def __init__(self, home: NodeHome) -> None:
        self.home = home
        self.storage = home.storage

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.home,)


class NodeJournals(NodePart, JournalStore):
    """The journals of a storage on a node. Deletion and sweep are those of the whole storage."""

    @property
    def commits_at_once(self) -> bool:
        """Whether the storage does, and it is here."""
        return self.home.is_here and self.storage.journals.commits_at_once

    @property
    def lists_current_rows(self) -> bool:
        return self.storage.journals.lists_current_rows

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        return self.home.call(self.storage.journals.commit, appends)

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        return self.home.call(self.storage.journals.read_journal, incarnation, after)

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        return self.home.call(self.storage.journals.read_catalog, workflow_id)

    def list_catalog(self, query: CatalogQuery) -> Page:
        return self.home.call(self.storage.journals.list_catalog, query)

    def count_catalog(self, query: CatalogQuery) -> int:
        return self.home.call(self.storage.journals.count_catalog, query)

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        return self.home.call(self.storage.delete, workflow_id, incarnation, expected_seq)

    def relist(self, workflow_id: str) -> bool:
        return self.home.call(self.storage.journals.relist, workflow_id)

    def sweep(self, grace_seconds: float) -> int:
        return self.home.call(self.storage.sweep, grace_seconds)

    def listen(
        self, holder_id: str, on_news: Callable[[], None], lives: Sequence[str] = ()
    ) -> None:
        # A process elsewhere could not call back here.
        if self.home.is_here:
            self.storage.journals.listen(holder_id, on_news, lives)


class NodeBlobs(NodePart, BlobStore):
    """The blobs of a storage on a node."""

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        given = BufferList(list(chunks))
        return self.home.call(self.storage.blobs.write_blob, incarnation, key, given)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        result = self.home.call(self.storage.blobs.read_blob, incarnation, blob)
        (view,) = result if isinstance(result, BufferList) else (result,)
        return memoryview(view).cast("B")

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        if self.home.is_here:
            return self.storage.blobs.stream_blob(incarnation, blob)
        # From elsewhere it comes through the object store, which holds all of it for a while.
        return super().stream_blob(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        return self.home.call(self.storage.blobs.find_blob, incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        self.home.call(self.storage.blobs.delete_blobs, incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        return self.home.call(self.storage.blobs.old_blobs, grace_seconds)


class NodeLeases(NodePart, LeaseStore):
    """The leases of a storage on a node."""

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        self.home.call(self.storage.leases.renew_holder, holder, lease_seconds)

    def remove_holder(self, holder_id: str) -> None:
        self.home.call(self.storage.leases.remove_holder, holder_id)

    def read_holders(self) -> list[Holder]:
        return self.home.call(self.storage.leases.read_holders)

    def now(self) -> float:
        return self.home.call(self.storage.leases.now)


class NodeStorage(Storage):
    """A storage that not every process can use directly. The process that makes a value encodes it.

    Args:
        storage: as `NodeHome` takes it.
        node_id: as `NodeHome` takes it.
    """

    def __init__(self, storage: Storage, node_id: str | None) -> None:
        self.node = NodeHome(storage, node_id)
        super().__init__(
            journals=NodeJournals(self.node),
            blobs=NodeBlobs(self.node),
            leases=NodeLeases(self.node),
            codecs=storage.codecs,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.node.storage, self.node.node_id)

    @property
    def is_here(self) -> bool:
        """Whether this process can use the storage directly."""
        return self.node.is_here


class BufferList:
    """Chunks of a blob in transit: pickled out of band, iterated as memoryviews.

    It can be pickled repeatedly, because it may pass through the server of a Ray Client too.
    """

    def __init__(self, buffers: list[Any]) -> None:
        self.buffers = buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferList, ([pickle.PickleBuffer(buffer) for buffer in self.buffers],)

    def __iter__(self) -> Any:
        return (memoryview(buffer).cast("B") for buffer in self.buffers)
