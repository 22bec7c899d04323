"""Where workflows live: a `Storage`, composed of a journal store, a blob store and a lease store.
docs/storage-own.md shows how to write a part of your own.
"""

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
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
    "Holder",
    "Home",
    "JournalEntry",
    "JournalStore",
    "LeaseStore",
    "MemoryStorage",
    "Page",
    "SqliteStorage",
    "Storage",
]
