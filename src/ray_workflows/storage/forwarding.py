"""`ForwardingStorage`: a storage around another one, which does all that is asked of it.
Subclasses say what is different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

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
from ray_workflows.storage.base import CommitOutcome, Storage


class ForwardingStorage(Storage):
    """A storage around another one.

    Args:
        storage: what does all that a subclass does not do itself.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @property
    def url(self) -> str:
        """The inner storage's."""
        return self.storage.url

    @property
    def node_bound(self) -> bool:
        """Whether the inner storage is."""
        return self.storage.node_bound

    @property
    def commits_at_once(self) -> bool:
        """Whether the inner storage does."""
        return self.storage.commits_at_once

    @property
    def codecs(self) -> tuple[PayloadCodec, ...]:
        """The inner storage's."""
        return self.storage.codecs

    def open(self) -> None:
        """As the inner storage does it."""
        self.storage.open()

    def open_existing(self) -> None:
        """As the inner storage does it."""
        self.storage.open_existing()

    def close(self) -> None:
        """As the inner storage does it."""
        self.storage.close()

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """As the inner storage does it."""
        return self.storage.commit(appends)

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """As the inner storage does it."""
        return self.storage.read_journal(incarnation, after)

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """As the inner storage does it."""
        return self.storage.read_catalog(workflow_id)

    def list_catalog(self, query: CatalogQuery) -> Page:
        """As the inner storage does it."""
        return self.storage.list_catalog(query)

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """As the inner storage does it."""
        return self.storage.delete(workflow_id, incarnation, expected_seq)

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """As the inner storage does it."""
        return self.storage.write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """As the inner storage does it."""
        return self.storage.read_blob(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """As the inner storage does it."""
        return self.storage.stream_blob(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """As the inner storage does it."""
        return self.storage.find_blob(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        """As the inner storage does it."""
        self.storage.delete_blobs(incarnation)

    def sweep(self, grace_seconds: float) -> int:
        """As the inner storage does it."""
        return self.storage.sweep(grace_seconds)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """As the inner storage does it."""
        return self.storage.old_blobs(grace_seconds)

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """As the inner storage does it."""
        self.storage.renew_holder(holder, lease_seconds)

    def remove_holder(self, holder_id: str) -> None:
        """As the inner storage does it."""
        self.storage.remove_holder(holder_id)

    def read_holders(self) -> list[Holder]:
        """As the inner storage does it."""
        return self.storage.read_holders()

    def listen(self, holder_id: str, on_news: Callable[[], None]) -> None:
        """As the inner storage does it."""
        self.storage.listen(holder_id, on_news)

    def now(self) -> float:
        """As the inner storage does it."""
        return self.storage.now()
