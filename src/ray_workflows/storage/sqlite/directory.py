"""`SqliteDirectory`: the home of the parts of a `SqliteStorage`, and its two connections.
Only `open` creates anything here.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

from ray_workflows.exceptions import StorageConfigError, StorageUnavailableError
from ray_workflows.storage.files.location import (
    check_existing,
    check_local,
    prepared_directory,
    real_path,
)
from ray_workflows.storage.parts import Home
from ray_workflows.storage.sqlite.connection import QUERIES, Database, create

DATABASE_NAME = "workflows.sqlite"
BLOBS_NAME = "blobs"


class SqliteDirectory(Home):
    """A directory of this machine with ``workflows.sqlite`` and ``blobs/``.

    Args:
        directory: where it is; ``~`` is expanded.

    Raises:
        StorageConfigError: the directory's name can't be a path.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory: str = real_path(directory)
        self.blobs_directory: str = os.path.join(self.directory, BLOBS_NAME)
        path = os.path.join(self.directory, DATABASE_NAME)
        # Two connections, so that readers do not wait for the disk during a commit.
        self.writer: Database = Database(path)
        self.reader: Database = Database(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory,)

    @property
    def url(self) -> str:
        """``file://`` and the real path, percent-encoded."""
        return "file://" + quote(os.fsencode(self.directory))

    @property
    def node_bound(self) -> bool:
        """True: the database is a file of this machine."""
        return True

    def open(self) -> None:
        """Create the directory and the database if they are missing, try a transaction, and bring
        the schema of an older release up to date.

        Raises:
            StorageConfigError: the path can't be written or is no directory, the file system is a
                network's, or the database is not ours or of a newer release.
            StorageCorruptError: the database is damaged.
            StorageUnavailableError: the disk is full or broken, or the database stays locked.
        """
        with prepared_directory(self.directory), prepared_directory(self.blobs_directory):
            # The directory may be local while the database in it is a mount or a link.
            path = self.writer.path
            if os.path.lexists(path):
                check_local(path)
            else:
                create(path)
            self.check_writable()
            self.writer.ensure_version(migrate=True)

    def open_existing(self) -> None:
        """Check that there is a storage here and that it can be read; creates nothing.

        Works also if this user can't write it, or the disk is read-only.

        Raises:
            StorageConfigError: there is none, this user may not read it, the file system is a
                network's, or the database is not ours or of a newer release.
            StorageCorruptError: the database is damaged.
            StorageUnavailableError: the disk is broken, or the database stays locked.
        """
        check_existing(self.writer.path)
        self.reader.may_be_immutable = True
        try:
            self.reader.ensure_version(migrate=False)
            with self.reader.use() as connection:
                connection.execute(QUERIES["read_holders"]).fetchone()
        except StorageUnavailableError as error:
            if "unable to open" not in str(error.__cause__):
                raise
            raise StorageConfigError(
                f"{self.writer.path} can't be read: {error.__cause__}. SQLite needs the right to "
                f"read it and its -wal and -shm files. Run this as the user who owns it."
            ) from error

    def check_writable(self) -> None:
        """Raise `StorageConfigError` if the database can't be written."""
        try:
            with self.writer.transaction():
                pass
        except StorageUnavailableError as error:
            reason = str(error.__cause__)
            if "readonly" not in reason and "unable to open" not in reason:
                raise
            raise StorageConfigError(
                f"{self.writer.path} can't be written: {reason}. Give this user the right to "
                f"write it, or choose another directory with init(storage=...)."
            ) from error

    def close(self) -> None:
        """Close the connections of this process; the next use opens them again."""
        self.reader.disconnect()
        self.writer.disconnect()

    def has_workflows(self) -> bool:
        """Whether the catalog has a row."""
        with self.reader.use() as connection:
            return bool(connection.execute(QUERIES["has_workflows"]).fetchone()[0])
