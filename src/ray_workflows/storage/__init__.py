"""Where workflows live: a `Storage`, composed of a journal store, a blob store and a lease store.
docs/storage-own.md shows how to write a part of your own.
"""

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Condition,
    Holder,
    JournalEntry,
    Operator,
    Page,
    matches,
)
from ray_workflows._model.values import Blob
from ray_workflows.storage.base import Storage
from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.memory import MemoryStorage
from ray_workflows.storage.parts import BlobStore, CommitOutcome, Home, JournalStore, LeaseStore
from ray_workflows.storage.sqlite import SqliteStorage

__all__ = [
    "Append",
    "Blob",
    "BlobStore",
    "CatalogQuery",
    "CatalogRow",
    "Checksum",
    "CommitOutcome",
    "Condition",
    "Holder",
    "Home",
    "JournalEntry",
    "JournalStore",
    "LeaseStore",
    "MemoryStorage",
    "Operator",
    "Page",
    "SqliteStorage",
    "Storage",
    "matches",
]
