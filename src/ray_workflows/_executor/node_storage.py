"""A node-bound storage as other nodes of the cluster reach it: by small Ray tasks on its node.

The embedded default lives on one machine's disk. What runs there uses it directly; a worker
elsewhere must not write to its own disk of the same path, where nobody would find it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
)
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.base import CommitOutcome, Storage


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def call_storage(storage: Storage, method: str, args: tuple[Any, ...]) -> Any:
    """Call a method of a storage on its own node. Errors are returned: Ray would wrap them."""
    try:
        result = getattr(storage, method)(*args)
    except Exception as error:
        return error
    # Out of band: large blobs go into the object store without a copy in a pickle.
    return pickle.PickleBuffer(result) if isinstance(result, memoryview) else result


class NodeStorage(Storage):
    """A storage that lives on one node, usable from all nodes of the cluster.

    Args:
        storage: the storage, usable directly on its node.
        node_id: Ray's hex id of that node.
    """

    def __init__(self, storage: Storage, node_id: str) -> None:
        self.storage = storage
        self.node_id = node_id

    def call(self, method: str, *args: Any) -> Any:
        if ray.get_runtime_context().get_node_id() == self.node_id:
            return getattr(self.storage, method)(*args)
        strategy = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        ref = call_storage.options(scheduling_strategy=strategy).remote(self.storage, method, args)
        try:
            result = ray.get(ref)
        except ray.exceptions.RayError as error:
            raise StorageUnavailableError(
                f"The storage {self.url} is on node {self.node_id}, which can't be reached: "
                f"{error}. For storage that outlives a node use a shared one."
            ) from error
        if isinstance(result, Exception):
            raise result
        return result

    @property
    def url(self) -> str:
        """As the storage's own."""
        return self.storage.url

    @property
    def node_bound(self) -> bool:
        """True: it is what this class is for."""
        return True

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
        buffers = [pickle.PickleBuffer(chunk) for chunk in chunks]
        blob: Blob = self.call("write_blob", incarnation, key, BufferList(buffers))
        return blob

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        return memoryview(self.call("read_blob", incarnation, blob)).cast("B")

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        blob: Blob | None = self.call("find_blob", incarnation, key)
        return blob

    def delete_blobs(self, incarnation: str) -> None:
        self.call("delete_blobs", incarnation)

    def sweep(self, grace_seconds: float) -> int:
        count: int = self.call("sweep", grace_seconds)
        return count

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        self.call("renew_holder", holder, lease_seconds)

    def remove_holder(self, holder_id: str) -> None:
        self.call("remove_holder", holder_id)

    def read_holders(self) -> list[Holder]:
        holders: list[Holder] = self.call("read_holders")
        return holders

    def now(self) -> float:
        now: float = self.call("now")
        return now


class BufferList:
    """Chunks of a blob on their way: pickled out of band, iterated as memoryviews."""

    def __init__(self, buffers: list[Any]) -> None:
        self.buffers = buffers

    def __iter__(self) -> Any:
        return (memoryview(buffer).cast("B") for buffer in self.buffers)
