"""`SqliteStorage`: the embedded default, a directory with an SQLite database and blob files.
For the processes of one machine; it must not be put on a network file system.
"""

from __future__ import annotations

import os
from typing import Any

from ray_workflows.storage.base import Storage
from ray_workflows.storage.files.blobs import BlobFiles
from ray_workflows.storage.sqlite.directory import SqliteDirectory
from ray_workflows.storage.sqlite.journals import SqliteJournals
from ray_workflows.storage.sqlite.leases import SqliteLeases


class SqliteStorage(Storage):
    """Workflows in a directory of this machine: ``workflows.sqlite`` and ``blobs/``.

    Any number of processes of the machine may use it at once. A commit is on the disk when it is
    acknowledged. Instances pickle as their directory and connect on first use; only `open` ever
    creates anything.

    Args:
        directory: where it is; ``~`` is expanded. Created by `open`, with mode 0700.

    Raises:
        StorageConfigError: the directory's name can't be a path.

    Example:
        >>> import tempfile
        >>> directory = tempfile.TemporaryDirectory()
        >>> storage = SqliteStorage(directory.name)
        >>> storage.open()
        >>> storage.read_catalog("none") is None
        True
        >>> storage.close()
        >>> directory.cleanup()
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        home = SqliteDirectory(directory)
        self.directory: str = home.directory
        blobs = BlobFiles(home.blobs_directory, home)
        super().__init__(
            journals=SqliteJournals(home, blobs), blobs=blobs, leases=SqliteLeases(home)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.directory!r})"
