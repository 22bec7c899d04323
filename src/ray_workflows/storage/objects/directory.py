"""`SharedStorage`: workflows in a directory that several machines see, such as an NFS mount.
The algorithm is `PutOnceStorage`; here is where it is and what can be wrong with it.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.files.blobs import BlobFiles
from ray_workflows.storage.files.location import prepared_directory
from ray_workflows.storage.objects.directory_client import DirectoryOperations
from ray_workflows.storage.objects.storage import LAYOUT_KEY, PutOnceStorage
from ray_workflows.storage.sqlite.storage import DATABASE_NAME, real_path

BLOBS_NAME = "blobs"


class SharedStorage(PutOnceStorage):
    """Workflows in a directory that every node of every cluster sees under the same path.

    Args:
        directory: where it is; ``~`` is expanded. Created by `open`, with mode 0700.

    Raises:
        StorageConfigError: the directory's name can't be a path.

    Example:
        >>> import tempfile
        >>> directory = tempfile.TemporaryDirectory()
        >>> storage = SharedStorage(directory.name)
        >>> storage.open()
        >>> storage.read_catalog("none") is None
        True
        >>> storage.close()
        >>> directory.cleanup()
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory: str = real_path(directory)
        self.files: DirectoryOperations = DirectoryOperations(self.directory)
        # Not mapped: a file that another machine deletes is gone under its readers.
        blobs = BlobFiles(os.path.join(self.directory, BLOBS_NAME), mapped=False)
        super().__init__(self.files, blobs)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.directory!r})"

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
            self.files.prepare()
            os.makedirs(os.path.join(self.directory, BLOBS_NAME), mode=0o700, exist_ok=True)
            # Where all that is needed exists, nothing else would try.
            os.unlink(self.files.write_temporary(b"try"))
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
