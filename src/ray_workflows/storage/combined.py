"""`CombinedStorage`: journals and catalog in one storage, blobs in another.
Knows both by their public methods only; what is atomic stays so in the one with the journals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from ray_workflows._codec.journal import encode_entry
from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
)
from ray_workflows._model.ids import RESERVED_PREFIX
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.forwarding import ForwardingStorage

#: The blob that says whose blobs these are: its contents are the URL of the storage.
MARK_INCARNATION = "combined-storage"
MARK_KEY = "owner"

#: The holder of rows that stand for incarnations whose blobs are being swept.
SWEEPER = "sweep"


class CombinedStorage(ForwardingStorage):
    """A storage whose blobs are in another one, as ``init(storage, blobs=...)`` makes it.

    Values that do not fit into the journal go to ``blobs``, all else to ``storage``. Blobs that
    ``storage`` has from before, when it stood alone, are still read from it.

    Args:
        storage: has the journals, the catalog and the holders.
        blobs: has the blobs, and those of nobody else: whatever no workflow of ``storage`` has is
            swept. `open` marks it, and refuses one that is marked by another storage or has
            workflows of its own.

    Example:
        >>> from ray_workflows.storage import MemoryStorage
        >>> combined = CombinedStorage(MemoryStorage(name="db"), MemoryStorage(name="bucket"))
        >>> combined.url
        'memory://db#blobs=memory%3A%2F%2Fbucket'
    """

    def __init__(self, storage: Storage, blobs: Storage) -> None:
        super().__init__(storage)
        self.blobs = blobs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.storage!r}, {self.blobs!r})"

    @property
    def url(self) -> str:
        """The storage's, and behind a ``#`` that of the blobs: elsewhere, it is another storage."""
        return f"{self.storage.url}#blobs={quote(self.blobs.url, safe='')}"

    @property
    def node_bound(self) -> bool:
        """Whether one of them is."""
        return self.storage.node_bound or self.blobs.node_bound

    def open(self) -> None:
        """Open both.

        Raises:
            StorageConfigError: one of them can't be used, or ``blobs`` can't hold the blobs of
                another storage.
        """
        if type(self.blobs).old_blobs is Storage.old_blobs:
            raise StorageConfigError(
                f"{self.blobs!r} can't hold the blobs of another storage: "
                f"{type(self.blobs).__name__} lacks the method old_blobs. Add it, or leave out "
                f"blobs=."
            )
        self.storage.open()
        self.blobs.open()
        if self.blobs.list_catalog(CatalogQuery(limit=1)).rows:
            raise StorageConfigError(
                f"{self.blobs.url} has workflows of its own, whose values and ours would be taken "
                f"for rubbish of each other. Give another directory or prefix as blobs=."
            )
        me = [self.storage.url.encode()]
        self.check_owner(self.blobs.write_blob(MARK_INCARNATION, MARK_KEY, me))

    def open_existing(self) -> None:
        """Check that both are there, and belong together."""
        self.storage.open_existing()
        self.blobs.open_existing()
        self.check_owner(self.blobs.find_blob(MARK_INCARNATION, MARK_KEY))

    def check_owner(self, mark: Blob | None) -> None:
        """Raise unless the blobs are those of the storage."""
        owner = None
        if mark is not None:
            owner = bytes(self.blobs.read_blob(MARK_INCARNATION, mark)).decode()
        if owner != self.storage.url:
            raise StorageConfigError(
                f"{self.blobs.url} has the blobs of {owner or 'nobody yet'}, not of "
                f"{self.storage.url}. Give a directory or prefix of its own as blobs=. If that is "
                f"the same storage under a new name, delete {MARK_KEY!r} of {MARK_INCARNATION!r} "
                f"there, and call init()."
            )

    def close(self) -> None:
        """Close both."""
        self.storage.close()
        self.blobs.close()

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete the workflow, and then its blobs; `sweep` finds those if this is interrupted."""
        outcome = self.storage.delete(workflow_id, incarnation, expected_seq)
        if outcome is CommitOutcome.OK:
            # It is gone whatever happens now.
            with contextlib.suppress(StorageUnavailableError):
                self.blobs.delete_blobs(incarnation)
        return outcome

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob where the blobs are."""
        return self.blobs.write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, wherever it is."""
        try:
            return self.blobs.read_blob(incarnation, blob)
        except StorageCorruptError:
            # It may be from before this storage was a combined one.
            if self.storage.find_blob(incarnation, blob.key) is None:
                raise
        return self.storage.read_blob(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, wherever it is."""
        pieces = self.blobs.stream_blob(incarnation, blob)
        try:
            first = next(pieces, None)
        except StorageCorruptError:
            if self.storage.find_blob(incarnation, blob.key) is None:
                raise
            yield from self.storage.stream_blob(incarnation, blob)
            return
        if first is not None:
            yield first
            yield from pieces

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a blob, wherever it is."""
        return self.blobs.find_blob(incarnation, key) or self.storage.find_blob(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation in both."""
        self.blobs.delete_blobs(incarnation)
        self.storage.delete_blobs(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations with old blobs, in either."""
        found = {*self.blobs.old_blobs(grace_seconds), *self.storage.old_blobs(grace_seconds)}
        return sorted(found - {MARK_INCARNATION})

    def sweep(self, grace_seconds: float) -> int:
        """Remove old blobs that belong to no workflow.

        While that is done, their incarnation is taken by a row of its own in the catalog: the
        commit that every storage has keeps sweep and submission apart.
        """
        swept = set()
        # What an interrupted sweep left; a canceled row is of a release before 0.2.0.
        statuses = (WorkflowStatus.NONE, WorkflowStatus.CANCELED)
        taken = CatalogQuery(holders=(SWEEPER,), statuses=statuses)
        for row in self.storage.list_catalog(taken).rows:
            self.finish_sweep(row.workflow_id, row.incarnation)
            swept.add(row.incarnation)
        old = self.blobs.old_blobs(grace_seconds)
        for incarnation in [name for name in old if name != MARK_INCARNATION]:
            if self.storage.commit([take(incarnation, self.now())]) == [CommitOutcome.OK]:
                self.finish_sweep(sweep_id(incarnation), incarnation)
                swept.add(incarnation)
        return len(swept) + self.storage.sweep(grace_seconds)

    def finish_sweep(self, workflow_id: str, incarnation: str) -> None:
        """Remove the blobs of an incarnation that is taken, and then the row that takes it."""
        self.blobs.delete_blobs(incarnation)
        self.storage.delete(workflow_id, incarnation, 1)


def sweep_id(incarnation: str) -> str:
    """The id of the row that takes an incarnation. It is there for a moment, and never listed."""
    return f"{RESERVED_PREFIX}swept-blobs/{incarnation}"


def take(incarnation: str, now: float) -> Append:
    """An append that succeeds only if no workflow has this incarnation, and keeps it so."""
    row = CatalogRow(
        workflow_id=sweep_id(incarnation),
        incarnation=incarnation,
        seq=1,
        status=WorkflowStatus.NONE,
        holder=SWEEPER,
        submitted_at=now,
        ended_at=now,
    )
    return Append(
        workflow_id=row.workflow_id,
        incarnation=incarnation,
        expected_seq=0,
        commit_id=f"sweep-{incarnation}",
        entry=encode_entry([], row.workflow_id, incarnation, 1),
        catalog=row,
    )
