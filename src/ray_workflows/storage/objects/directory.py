"""`SharedDirectory`: objects in a directory that several machines see, such as an NFS mount.
This module knows its path, and checks what can be wrong with the directory.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.files.location import prepared_directory, real_path
from ray_workflows.storage.objects.directory_client import DirectoryOperations
from ray_workflows.storage.objects.home import LAYOUT_KEY, ObjectsHome
from ray_workflows.storage.sqlite.directory import DATABASE_NAME

BLOBS_NAME = "blobs"


class SharedDirectory(ObjectsHome):
    """A directory that every node of every cluster sees under the same path.

    Args:
        directory: as `SharedStorage` takes it.

    Raises:
        StorageConfigError: the directory's name can't be a path.
    """

    operations: DirectoryOperations

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory: str = real_path(directory)
        self.blobs_directory: str = os.path.join(self.directory, BLOBS_NAME)
        super().__init__(DirectoryOperations(self.directory))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory,)

    @property
    def url(self) -> str:
        """``shared://`` and the real path, percent-encoded."""
        return "shared://" + quote(os.fsencode(self.directory))

    def open(self) -> None:
        """Create the directory if it is missing, and check that files can be linked there.

        Raises:
            StorageConfigError: the path can't be written or is no directory, has another kind of
                storage, or is on a file system without hard links.
            StorageUnavailableError: the disk is full or broken.
        """
        self.check_kind()
        with prepared_directory(self.directory, shared=True):
            self.operations.prepare()
            os.makedirs(self.blobs_directory, mode=0o700, exist_ok=True)
            # If everything exists already, nothing else would try to write.
            os.unlink(self.operations.write_temporary(b"try"))
        super().open()

    def open_existing(self) -> None:
        """Check that there is a storage here and that it can be read; creates nothing.

        Raises:
            StorageConfigError: there is none, or this user may not read it.
        """
        self.check_kind()
        path = os.path.join(self.directory, LAYOUT_KEY)
        if not os.path.exists(path):
            raise StorageConfigError(
                f"{self.directory} is not a shared storage of workflows: it has no {LAYOUT_KEY}, "
                f"or can't be read. Nothing was created. Mount it, or name the directory that was "
                f"given to init(storage='shared://...')."
            )
        super().open_existing()

    def check_kind(self) -> None:
        """Raise if the directory has a storage of another kind."""
        if os.path.exists(os.path.join(self.directory, DATABASE_NAME)):
            raise StorageConfigError(
                f"{self.directory} has an embedded storage ({DATABASE_NAME}), which one machine "
                f"alone can use. Give it as a plain path on that machine, or choose another "
                f"directory for shared://."
            )
