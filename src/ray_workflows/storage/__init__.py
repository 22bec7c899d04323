"""Where workflows live. Subclass `Storage` to bring your own."""

from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.memory import MemoryStorage
from ray_workflows.storage.sqlite import SqliteStorage

__all__ = ["CommitOutcome", "MemoryStorage", "SqliteStorage", "Storage"]
