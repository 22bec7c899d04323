"""All journals of a storage, and the values in them, read for the checker."""

from __future__ import annotations

import pickle
from typing import Any

from ray_workflows._codec.envelope import unseal
from ray_workflows._model.catalog import CatalogQuery, CatalogRow
from ray_workflows._model.status import WORKFLOWS
from ray_workflows._model.values import Value
from ray_workflows.storage import Storage
from ray_workflows.storage.histories import History
from tests.chaos.checker import Journal

Journals = dict[str, tuple[CatalogRow, Journal]]


def read_journals(storage: Storage) -> tuple[Journals, list[tuple[str, str]]]:
    """Rows and journals by workflow; and what can't be read: workflow and error."""
    found: Journals = {}
    damage: list[tuple[str, str]] = []
    cursor = None
    while True:
        # Without the rows of what workflows share.
        page = storage.list_catalog(CatalogQuery(statuses=WORKFLOWS, cursor=cursor))
        for row in page.rows:
            name = row.workflow_id
            try:
                read = list(History(storage, row).read())
                numbers = [entry.seq for entry, _ in read]
                if numbers != list(range(1, row.seq + 1)):
                    damage.append((name, f"the row {row}, and entries {numbers}"))
                events = [event for _, events in read for event in events]
            except Exception as error:
                damage.append((name, f"{type(error).__name__}: {error}"))
            else:
                found[name] = row, Journal(str(row.status), list(events))
        cursor = page.cursor
        if cursor is None:
            return found, damage


def read_value(storage: Storage, incarnation: str, value: Value) -> Any:
    """A stored value, or None if it is a plain one of the library's own."""
    data = value.data
    if not isinstance(data, bytes):
        data = storage.read_blob(incarnation, data)
    envelope = unseal(data, where=incarnation)
    try:
        return pickle.loads(envelope.pickle, buffers=envelope.buffers)
    except pickle.UnpicklingError:
        # With persistent ids: ObjectRefs, which no result of a run has.
        return None
