"""Reads a workflow's journal with every check: each entry is the right one, and none is missing. If
the workflow was deleted meanwhile, the reader reports that and no damage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray_workflows._codec.journal import Chain
from ray_workflows._model.catalog import CatalogRow, JournalEntry
from ray_workflows._model.events import AnyEvent
from ray_workflows.exceptions import (
    StorageCorruptError,
    StorageUnavailableError,
    WorkflowNotFoundError,
)
from ray_workflows.storage.base import Storage


class History:
    """The journal of a workflow, read from the storage once or in several steps.

    Args:
        storage: where the workflow is.
        row: its catalog row. The journal ends where the row says, or later.
        after: read only entries with greater numbers.
        link: the checksum of the entry before the first of these; None if it is not known.
    """

    def __init__(
        self, storage: Storage, row: CatalogRow, after: int = 0, link: bytes | None = None
    ) -> None:
        self.storage = storage
        self.row = row
        self.chain = Chain(row.workflow_id, row.incarnation, after)
        if link is not None:
            self.chain.link = link

    def read(self) -> Iterator[tuple[JournalEntry, list[AnyEvent]]]:
        """The entries that were appended since the last reading, with their events.

        Raises:
            StorageCorruptError: an entry is damaged, replaced or missing; names it.
            WorkflowNotFoundError: the workflow was deleted.
        """
        chain, row = self.chain, self.row
        with unless_deleted(self.storage, row):
            for entry in self.storage.read_journal(row.incarnation, chain.seq):
                yield entry, chain.decode(entry)
            if chain.seq < row.seq:
                end = f"ends with entry {chain.seq}" if chain.seq else "is missing"
                raise StorageCorruptError(
                    f"The journal of workflow '{row.workflow_id}' (incarnation {row.incarnation}) "
                    f"{end}, but the catalog knows of {row.seq} entries. Restore it from a backup."
                )

    def events(self) -> list[AnyEvent]:
        """The events of all entries that `read` gives; errors as there."""
        return [event for _, events in self.read() for event in events]


@contextlib.contextmanager
def unless_deleted(storage: Storage, row: CatalogRow) -> Iterator[None]:
    """Scope that reads or writes parts of a workflow. If these are missing, or can't be written,
    because the workflow of this row was deleted meanwhile, the error says so.

    Raises:
        WorkflowNotFoundError: the workflow was deleted meanwhile.
    """
    try:
        yield
    except (StorageCorruptError, StorageUnavailableError):
        now = storage.read_catalog(row.workflow_id)
        if now is None or now.incarnation != row.incarnation:
            raise WorkflowNotFoundError(row.workflow_id, replaced=now is not None) from None
        raise
