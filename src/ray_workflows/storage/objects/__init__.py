"""Workflows as objects: in a bucket, or as files of a directory that several machines see."""

from ray_workflows.storage.objects.bucket import ObjectStorage
from ray_workflows.storage.objects.directory import SharedStorage

__all__ = ["ObjectStorage", "SharedStorage"]
