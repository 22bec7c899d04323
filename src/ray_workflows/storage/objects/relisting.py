"""Rewrites the objects that lead to a workflow: pointers from its id, and index entries.

All they say is in the journal too. If the journal is damaged, nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator

from ray_workflows._model.catalog import CatalogRow
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.objects.index import SETTLED_STATUSES, Index
from ray_workflows.storage.objects.index_keys import OPEN, SETTLED, Entry, sortable_id
from ray_workflows.storage.objects.records import Pointer, encode, new_nonce


class Relisting:
    """Repairs the pointers and index entries of one workflow.

    Args:
        index: the index, and the journals that it is of.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.journals = index.journals
        self.operations = index.operations

    def relist(self, workflow_id: str) -> bool:
        """Rewrite damaged and missing objects. Returns whether there were any.

        Raises:
            StorageCorruptError: the journal is damaged, or ends before what is listed.
        """
        pointers: list[tuple[str, Pointer]] = []
        damaged: list[str] = []
        for key in self.journals.chain_keys(workflow_id):
            try:
                pointers += self.journals.follow([key])
            except StorageCorruptError:
                damaged.append(key)
        current = self.journals.current(pointers)
        unnamed = current is None
        incarnation = self.listed(workflow_id, damaged) if current is None else current[0]
        if incarnation is None:
            return False
        # Raises if it is damaged.
        self.journals.read(incarnation, 0)
        for key in damaged:
            self.operations.put(key, encode(Pointer(new_nonce(), workflow_id, incarnation), key))
        if unnamed and not damaged:
            self.journals.link(workflow_id, incarnation, pointers)
        return self.mend_entries(incarnation) or unnamed or bool(damaged)

    def listed(self, workflow_id: str, damaged: list[str]) -> str | None:
        """The incarnation that the index lists for an id; None if that is none, or several."""
        rows = [self.index.readable(entry.key) for entry in self.entries_of(workflow_id)]
        mine = {
            row.incarnation
            for row in rows
            if isinstance(row, CatalogRow) and row.workflow_id == workflow_id
        }
        # A journal of one entry without a pointer may belong to an incomplete creation.
        least = 1 if damaged else 2
        live = [incarnation for incarnation in mine if self.length(incarnation) >= least]
        return live[0] if len(live) == 1 else None

    def length(self, incarnation: str) -> int:
        """How many entries a journal has; 0 if it is deleted."""
        end = self.journals.end(incarnation)
        return 0 if end is None or end.segment.tombstone else end.seq

    def entries_of(self, workflow_id: str) -> Iterator[Entry]:
        """The entries whose names may be those of a workflow. Lists the whole index, because names
        begin with the time of submission, which is not known."""
        prefixes = [OPEN]
        for status in SETTLED_STATUSES:
            days = self.operations.list_prefixes(f"{SETTLED}/{status}")
            prefixes += [f"{SETTLED}/{status}/{day}" for day in days]
        end = f".{sortable_id(workflow_id)}"
        for prefix in prefixes:
            yield from (each for each in self.index.entries(prefix) if each.place.endswith(end))

    def mend_entries(self, incarnation: str) -> bool:
        """Make a workflow's entries agree with its journal. Returns whether any was wrong."""
        found = self.index.live_end(incarnation)
        if found is None:
            return False
        end, row = found
        self.index.check_end(row)
        entries = self.index.entries_for(row)
        damaged = {
            entry.key
            for entry in entries
            if isinstance(self.index.readable(entry.key), StorageCorruptError)
        }
        intact = [entry.key for entry in entries if entry.key not in damaged]
        if end.segment.listed_as in intact and not damaged:
            return False
        self.index.mend(incarnation, intact)
        self.operations.delete(sorted(damaged - {end.segment.listed_as}))
        return True
