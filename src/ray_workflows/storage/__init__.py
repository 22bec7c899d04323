"""Where workflows live. Subclass `Storage` to bring your own."""

from ray_workflows.storage.base import CommitOutcome, Storage

__all__ = ["CommitOutcome", "Storage"]
