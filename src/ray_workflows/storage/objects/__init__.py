"""Workflows as objects: in a bucket, or as files of a directory that several machines see."""

from ray_workflows.storage.objects.storage import ObjectStorage, SharedStorage

__all__ = ["ObjectStorage", "SharedStorage"]
