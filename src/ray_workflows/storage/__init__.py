"""Where workflows live. Subclass `Storage` to bring your own."""

from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.memory import MemoryStorage
from ray_workflows.storage.sqlite import SqliteStorage

__all__ = ["Checksum", "CommitOutcome", "MemoryStorage", "SqliteStorage", "Storage"]
