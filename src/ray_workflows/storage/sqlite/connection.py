"""One locked connection to the database file of a `SqliteStorage`, opened on first use.
Knows the file, its schema version and SQLite's errors; nothing of workflows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
)
from ray_workflows.storage.files.blobs import TEMPORARY_PREFIX
from ray_workflows.storage.files.fsync import sync, sync_directory
from ray_workflows.storage.queries import read_queries, read_sql

#: Marks a database as ours: 'RWRF'.
APPLICATION_ID = 0x52575246

#: The migration files in their order: number n brings the schema to version n.
MIGRATIONS: tuple[str, ...] = (
    "sqlite/schema_1.sql",
    "sqlite/schema_2.sql",
    "sqlite/schema_3.sql",
)

#: How long to wait for another process's transaction, in seconds. A verb's commit may queue behind
#: one that waits too, and has to fail, with the reason, before the verb's own timeout.
BUSY_SECONDS = 5.0

#: How long to queue for the right to wait for the write lock, and how often to poll, in seconds.
TURN_SECONDS = 2.0
TURN_POLL_SECONDS = 0.0005


QUERIES = read_queries("sqlite/queries.sql")

#: Device and inode of the database file and of its write-ahead log.
Identity = tuple[tuple[int, int] | None, tuple[int, int] | None]


class Database:
    """A connection to an existing database, shared by the threads of this process one at a time.

    One connection with a lock, not one per thread: SQLite admits one writer anyhow, and while a
    lock wakes a thread at once, SQLite waits for another connection by sleeping up to 100 ms.
    """

    def __init__(self, path: str):
        self.path = path
        self.lock: threading.RLock = threading.RLock()
        self.connection: sqlite3.Connection | None = None
        self.turnstile: int | None = None
        #: For short-lived readers: a database that this process can't write may be read without
        #: locks if no process has it open for writing.
        self.may_be_immutable = False
        self.identity: Identity = (None, None)
        with FORK_LOCK:
            DATABASES.add(self)

    def __del__(self) -> None:
        self.disconnect()

    @contextlib.contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """The connection, for single statements. An error closes it; the next use reopens it."""
        with self.lock:
            try:
                yield self.connected()
            except sqlite3.Error as error:
                self.disconnect()
                translated = translate(error, self.path)
                if translated is None:
                    raise
                raise translated from error
            except BaseException:
                self.disconnect()
                raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection inside a write transaction, which is committed unless the body raises.

        Raises:
            StorageUnavailableError: the outcome of the transaction is unknown.
        """
        with self.use() as connection:
            with self.turn():
                connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
            # Only now it is certain that the commit is in the file that other processes open.
            self.check_identity()

    def is_free(self) -> bool:
        """Whether no other thread of this process uses it now."""
        free = self.lock.acquire(blocking=False)
        if free:
            self.lock.release()
        return free

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Queue with the other processes for the right to wait for SQLite's write lock.

        Without the queue, a process that commits without pause keeps the others out for seconds:
        SQLite waits by sleeping, and finds the lock taken whenever it wakes. Only fairness depends
        on the queue, so a wait for a stopped process ends after `TURN_SECONDS`.
        """
        if self.turnstile is None:
            # A descriptor of the directory, so that no further file is needed.
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            with contextlib.suppress(OSError):
                self.turnstile = os.open(os.path.dirname(self.path), flags)
        if self.turnstile is None:
            yield
            return
        deadline = time.monotonic() + TURN_SECONDS
        while not try_lock(self.turnstile) and time.monotonic() < deadline:
            time.sleep(TURN_POLL_SECONDS)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self.turnstile, fcntl.LOCK_UN)

    def connected(self) -> sqlite3.Connection:
        """The connection; the caller has the lock."""
        if self.connection is None:
            self.connection, self.identity = self.connect()
        else:
            self.check_identity()
        return self.connection

    def connect(self) -> tuple[sqlite3.Connection, Identity]:
        """A new connection, and the files that it has open."""
        try:
            return connect(self.path)
        except sqlite3.OperationalError:
            # SQLite needs to write its log beside the database even to read, and here it can't.
            if not self.may_be_immutable or not is_at_rest(self.path):
                raise
            return connect(self.path, "mode=ro&immutable=1")

    def check_identity(self) -> None:
        """Raise if the files are not those that were opened.

        SQLite would go on writing to an unlinked file, and acknowledge commits that no other
        process can read.
        """
        if identify(self.path) != self.identity:
            raise StorageUnavailableError(
                f"{self.path} was deleted or replaced while it was in use. Put it back, with its "
                f"-wal file if there is one; nothing is created in its place."
            )

    def ensure_version(self, *, migrate: bool) -> None:
        """Migrate the schema to the newest version; raise if it is old and ``migrate`` is False.

        Only opening a storage calls this, not reconnecting: so a running process goes on after a
        newer release has migrated the schema.

        Raises:
            StorageConfigError: the schema is a newer release's, or has to be migrated.
        """
        with self.use() as connection:
            version = read_version(connection)
        if version > len(MIGRATIONS):
            self.disconnect()
            raise StorageConfigError(
                f"{self.path} was written by a newer release of ray-workflows (schema {version}; "
                f"this one knows up to {len(MIGRATIONS)}). Upgrade ray-workflows here."
            )
        if version < len(MIGRATIONS):
            if not migrate:
                raise StorageConfigError(
                    f"{self.path} has schema {version}, and this release reads {len(MIGRATIONS)}. "
                    f"Call init() once: it brings the schema up to date."
                )
            with self.transaction() as connection:
                run_migrations(connection)

    def disconnect(self) -> None:
        """Roll back and close. The next use connects again."""
        with self.lock:
            connection, self.connection = self.connection, None
            turnstile, self.turnstile = self.turnstile, None
            if connection is not None:
                close(connection)
            if turnstile is not None:
                os.close(turnstile)


def fetch_all(
    connection: sqlite3.Connection, query: str, values: Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    """All rows of a query. Invalid bytes in a text are replaced, so that a text that is not UTF-8
    damages its own row and no other."""
    try:
        return connection.execute(query, values).fetchall()
    except sqlite3.OperationalError as error:
        # Python has no error code for it.
        if "decode to UTF-8" not in str(error):
            raise
    connection.text_factory = readable
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.text_factory = str


def readable(text: bytes) -> str:
    """Decode any bytes to a text."""
    return text.decode("utf-8", "replace")


def close(connection: sqlite3.Connection) -> None:
    """Close a connection, whatever state it is in."""
    # A cursor that a traceback holds would keep the transaction and its lock after the close.
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    with contextlib.suppress(sqlite3.Error):
        connection.close()


def try_lock(descriptor: int) -> bool:
    """Take an advisory lock if it is free. True also on systems without such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_at_rest(path: str) -> bool:
    """Whether this process can't write a database, and no process has it open for writing.

    Then all commits are in the database file itself, and none in a log.
    """
    try:
        logged = os.path.getsize(f"{path}-wal")
    except FileNotFoundError:
        logged = 0
    return logged == 0 and not os.access(os.path.dirname(path), os.W_OK)


def connect(path: str, mode: str = "mode=rw") -> tuple[sqlite3.Connection, Identity]:
    """Connect to an existing database of ours; never creates one."""
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        # This module begins and ends transactions, not Python's.
        isolation_level=None,
        # The lock keeps the threads apart.
        check_same_thread=False,
    )
    try:
        verify(connection, path)
        connection.executescript(QUERIES["configure_connection"])
        # The reads above created the log file if there was none.
        return connection, identify(path)
    except BaseException:
        close(connection)
        raise


def verify(connection: sqlite3.Connection, path: str) -> None:
    """Raise if the file is not a database of ours."""
    try:
        application_id = connection.execute(QUERIES["read_application_id"]).fetchone()[0]
    except sqlite3.DatabaseError as error:
        if "not a database" not in str(error):
            raise
        application_id = None
    if application_id != APPLICATION_ID:
        raise StorageConfigError(
            f"{path} is not a database of ray-workflows (or its first page is damaged). Choose "
            f"another directory with init(storage=...), or move the file away."
        )


def read_version(connection: sqlite3.Connection) -> int:
    """The version of the schema: how many migrations were run."""
    version: int = connection.execute(QUERIES["read_schema_version"]).fetchone()[0]
    return version


def run_migrations(connection: sqlite3.Connection) -> None:
    """Run the missing migrations, in the caller's transaction."""
    for number, name in enumerate(MIGRATIONS, 1):
        # Another process may have run it since the caller's check.
        if number > read_version(connection):
            for statement in statements(read_sql(name)):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")


def statements(text: str) -> Iterator[str]:
    """The statements of a file. (``executescript`` would end the transaction.)"""
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def create(path: str) -> None:
    """Create the database, unless another process does so first. A failure leaves nothing
    behind."""
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, TEMPORARY_PREFIX + uuid.uuid4().hex)
    try:
        # SQLite gives its other files the permissions of this one.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.execute("BEGIN")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            run_migrations(connection)
            connection.execute("COMMIT")
            # Stored in the file's header. Not possible inside the transaction.
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        finally:
            close(connection)
        if mode != "wal":
            raise StorageConfigError(
                f"{directory} is on a file system where SQLite can't keep a write-ahead log. "
                f"Choose a directory on a local disk."
            )
        sync_file(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except sqlite3.Error as error:
        raise translate(error, path) or error from error
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(temporary + suffix)
    sync_directory(directory)


def sync_file(path: str) -> None:
    """Sync a file to the disk. Not for a database in use: closing the file drops its locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def identify(path: str) -> Identity:
    """The current database file and log."""
    return inode(path), inode(f"{path}-wal")


def inode(path: str) -> tuple[int, int] | None:
    """Device and inode of a file, or None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def translate(error: sqlite3.Error, path: str) -> StorageError | None:
    """Our error for one of SQLite's; None for a mistake in our own use of it."""
    reason = str(error)
    # Python 3.10 has no error codes; the classes and SQLite's fixed texts tell them apart.
    if isinstance(error, sqlite3.OperationalError):
        if "no such" in reason or "no column" in reason:
            return StorageCorruptError(f"The schema of {path} is damaged: {reason}.")
        if "locked" in reason:
            return StorageUnavailableError(
                f"{path} is locked: another process has been writing for more than "
                f"{BUSY_SECONDS:.0f} s. The operation can be repeated."
            )
        if "full" in reason:
            reason = f"{reason}. Free some space"
        elif "unable to open" in reason and not os.access(os.path.dirname(path), os.W_OK):
            reason = f"{reason}. Its file system is read-only, or this user may not write there"
        return StorageUnavailableError(
            f"{path} can't be used now: {reason}. The operation can be repeated when the cause "
            f"is mended."
        )
    if isinstance(error, sqlite3.DataError):
        return StorageError(f"{path} can't take a value this large: {reason}.")
    if isinstance(error, sqlite3.IntegrityError) or type(error) is sqlite3.DatabaseError:
        return StorageCorruptError(
            f"{path} is damaged: {reason}. Restore it from a backup, or recover what is readable "
            f"with the .recover command of sqlite3."
        )
    return None


# -- fork ------------------------------------------------------------------------------------

# SQLite's locks belong to the process. A child that inherits a connection believes that it has
# them, and even its new connections would be unprotected. So none is open while the process forks.
# (subprocess does not run these hooks, and need not: exec discards everything.)

DATABASES: weakref.WeakSet[Database] = weakref.WeakSet()
FORK_LOCK = threading.RLock()
AT_FORK: list[Database] = []


def before_fork() -> None:
    """Wait for running transactions, close all connections, and block new ones."""
    FORK_LOCK.acquire()
    AT_FORK.extend(DATABASES)
    for database in AT_FORK:
        database.lock.acquire()
        database.disconnect()


def after_fork_in_parent() -> None:
    """Release the threads; they reconnect."""
    for database in AT_FORK:
        database.lock.release()
    AT_FORK.clear()
    FORK_LOCK.release()


def after_fork_in_child() -> None:
    """Replace the locks: the threads that held the old ones do not exist here."""
    global FORK_LOCK
    for database in AT_FORK:
        database.lock = threading.RLock()
    AT_FORK.clear()
    FORK_LOCK = threading.RLock()


os.register_at_fork(
    before=before_fork,
    after_in_parent=after_fork_in_parent,
    after_in_child=after_fork_in_child,
)
