"""`SqliteStorage`: the embedded default, a directory with an SQLite database and blob files.
For the processes of one machine; it must not be put on a network file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
)
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.files.blobs import BlobFiles, remove_temporaries
from ray_workflows.storage.files.location import check_existing, check_local, prepared_directory
from ray_workflows.storage.records import (
    check_appends,
    check_limit,
    decode_cursor,
    decode_holders,
    decode_row,
    encode_metadata,
    make_page,
    row_digest,
)
from ray_workflows.storage.sqlite.connection import QUERIES, Database, create, fetch_all

DATABASE_NAME = "workflows.sqlite"
BLOBS_NAME = "blobs"

CREATE = QUERIES["create_workflow"]
ADVANCE = QUERIES["advance_workflow"]
TOUCH = QUERIES["touch_workflow"]
APPEND = QUERIES["append_entry"]

#: How much of a journal is deleted in one transaction: entries, and their bytes.
DELETE_ENTRIES = 5_000
DELETE_BYTES = 16 * 1024 * 1024

#: A workflow that comes to one of these by an append was most often in it before.
ACTIVE = WorkflowStatus.non_terminating_status()


#: Which query lists rows: whether some statuses are asked for, whether the newest come first.
LIST_QUERIES = {
    (False, False): "list_catalog",
    (True, False): "list_catalog_by_status",
    (False, True): "list_catalog_newest",
    (True, True): "list_catalog_newest_by_status",
}


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
        >>> storage.list_catalog(CatalogQuery())
        Page(rows=(), cursor=None)
        >>> storage.close()
        >>> directory.cleanup()
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory: str = real_path(directory)
        path = os.path.join(self.directory, DATABASE_NAME)
        # Two connections: nobody who reads waits for the disk while somebody else commits.
        self.writer: Database = Database(path)
        self.reader: Database = Database(path)
        self.blobs: BlobFiles = BlobFiles(os.path.join(self.directory, BLOBS_NAME))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.directory!r})"

    @property
    def url(self) -> str:
        """``file://`` and the real path, percent-encoded."""
        return "file://" + quote(os.fsencode(self.directory))

    @property
    def node_bound(self) -> bool:
        """True: the database is a file of this machine."""
        return True

    @property
    def commits_at_once(self) -> bool:
        """Whether it waits for a disk of this machine alone: nobody in this process writes."""
        return self.writer.is_free()

    def open(self) -> None:
        """Create the directory and the database if they are missing, try a transaction, and bring
        the schema of an older release up to date.

        Raises:
            StorageConfigError: the path can't be written or is no directory, the file system is a
                network's, or the database is not ours or of a newer release.
            StorageCorruptError: the database is damaged.
            StorageUnavailableError: the disk is full or broken, or the database stays locked.
        """
        with prepared_directory(self.directory), prepared_directory(self.blobs.root):
            # The directory may be local and the database in it a mount or a link.
            path = self.writer.path
            if os.path.lexists(path):
                check_local(path)
            else:
                create(path)
            self.check_writable()
            self.writer.ensure_version(migrate=True)

    def open_existing(self) -> None:
        """Check that there is a storage here and that it can be read; creates nothing.

        One that this user can't write, or on a read-only disk, is read nevertheless.

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

    # -- journal and catalog ---------------------------------------------------------------

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """Append to several journals in one transaction; see `Storage.commit`."""
        # Taken out here so that a sequence that raises does so before the transaction.
        appends = list(appends)
        check_appends(appends)
        if not appends:
            return []
        with self.writer.transaction() as connection:
            if append_as_expected(connection, appends):
                return [CommitOutcome.OK] * len(appends)
            return [append_one(connection, append) for append in appends]

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """Entries with ``seq > after``, in order."""
        with self.reader.use() as connection:
            key = {"incarnation": incarnation, "after": after}
            rows = fetch_all(connection, QUERIES["read_journal"], key)
        return [JournalEntry(*row) for row in rows]

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of a workflow, or None."""
        with self.reader.use() as connection:
            key = {"workflow_id": workflow_id}
            rows = fetch_all(connection, QUERIES["read_catalog"], key)
        return decode_row(rows[0], where=self.reader.path) if rows else None

    def list_catalog(self, query: CatalogQuery) -> Page:
        """One page of rows, oldest or newest submission first."""
        limit = check_limit(query.limit)
        submitted_at, workflow_id = decode_cursor(query.cursor, newest_first=query.newest_first)
        parameters = {
            "submitted_at": submitted_at,
            "workflow_id": workflow_id,
            "holders": json.dumps(query.holders) if query.holders else None,
            # One more shows whether there is a next page.
            "limit": limit + 1,
        }
        name = LIST_QUERIES[bool(query.statuses), query.newest_first]
        if query.statuses:
            parameters["statuses"] = json.dumps(sorted({s.value for s in query.statuses}))
        with self.reader.use() as connection:
            found = fetch_all(connection, QUERIES[name], parameters)
        return make_page(found, limit, self.reader.path)

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete a workflow and its blobs, if its journal still ends at ``expected_seq``.

        A long journal goes in several transactions, so that commits get in between.
        """
        buried = False
        with self.writer.transaction() as connection:
            key = {
                "workflow_id": workflow_id,
                "incarnation": incarnation,
                "expected_seq": expected_seq,
            }
            if connection.execute(QUERIES["delete_workflow"], key).rowcount != 1:
                return CommitOutcome.STALE
            more = delete_some(connection, incarnation)
            if more or self.blobs.exists(incarnation):
                grave = {"incarnation": incarnation, "deleted_at": self.now()}
                connection.execute(QUERIES["write_tombstone"], grave)
                buried = True
        if buried:
            # The workflow is gone whatever happens now; the tombstone leads `sweep` to the rest.
            with contextlib.suppress(StorageUnavailableError):
                self.finish_tombstone(incarnation)
        return CommitOutcome.OK

    def finish_tombstone(self, incarnation: str) -> None:
        """Remove what is left of an incarnation that has a tombstone, and then the tombstone."""
        more = True
        while more:
            # Who waits for the connection gets it only while nobody asks for it.
            let_others_in()
            with self.writer.transaction() as connection:
                more = delete_some(connection, incarnation)
        self.blobs.delete(incarnation)
        with self.writer.transaction() as connection:
            connection.execute(QUERIES["remove_tombstone"], {"incarnation": incarnation})

    # -- blobs -----------------------------------------------------------------------------

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob durably unless the key exists; return what is stored."""
        return self.blobs.write(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, checked; large ones are mapped, not read."""
        return self.blobs.read(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, checked at the end."""
        return self.blobs.stream(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a stored blob, or None."""
        return self.blobs.find(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation."""
        self.blobs.delete(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations whose newest blob is older than the grace period."""
        before = self.now() - grace_seconds
        newest = ((name, self.blobs.newest(name)) for name in self.blobs.incarnations())
        return [name for name, time in newest if time is not None and time <= before]

    def sweep(self, grace_seconds: float) -> int:
        """Finish interrupted deletions, and remove old blobs that belong to no workflow.

        A workflow whose blobs were written longer ago than the grace period, and that was not
        created since, can lose them: the grace period has to be longer than a submission takes.
        """
        before = self.now() - grace_seconds
        with self.reader.use() as connection:
            found = connection.execute(QUERIES["read_tombstones"]).fetchall()
        swept = {incarnation for (incarnation,) in found}
        for incarnation in sorted(swept):
            self.finish_tombstone(incarnation)
        for incarnation in self.blobs.incarnations():
            if incarnation in swept:
                continue
            if self.is_known(incarnation):
                self.blobs.remove_temporaries(incarnation, before)
            elif self.bury_orphan(incarnation, before):
                self.finish_tombstone(incarnation)
                swept.add(incarnation)
        # What a process left that was killed while it created the database.
        remove_temporaries(self.directory, before)
        return len(swept)

    def is_known(self, incarnation: str) -> bool:
        """Whether a workflow has this incarnation."""
        with self.reader.use() as connection:
            key = {"incarnation": incarnation}
            found = connection.execute(QUERIES["has_incarnation"], key).fetchone()
        return found is not None

    def bury_orphan(self, incarnation: str, before: float) -> bool:
        """Write a tombstone for blobs older than that time, unless their workflow exists by now.

        From then on the workflow can't be created any more, so that it can't lose its blobs
        between the check and their removal.
        """
        newest = self.blobs.newest(incarnation)
        if newest is None or newest > before:
            return False
        with self.writer.transaction() as connection:
            grave = {"incarnation": incarnation, "deleted_at": self.now()}
            return connection.execute(QUERIES["write_orphan_tombstone"], grave).rowcount == 1

    # -- holders ---------------------------------------------------------------------------

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew the holder's row."""
        with self.writer.transaction() as connection:
            row = msgspec.structs.asdict(holder)
            row["lease_until"] = self.now() + lease_seconds
            connection.execute(QUERIES["renew_holder"], row)

    def remove_holder(self, holder_id: str) -> None:
        """Remove the holder's row, if there is one."""
        with self.writer.transaction() as connection:
            connection.execute(QUERIES["remove_holder"], {"holder_id": holder_id})

    def read_holders(self) -> list[Holder]:
        """All holders, by id. One that can't be read is left out: a live one is renewed soon."""
        with self.reader.use() as connection:
            rows = fetch_all(connection, QUERIES["read_holders"], {})
        return decode_holders(rows, where=self.reader.path)

    def now(self) -> float:
        """The clock of this machine."""
        return time.time()


def delete_some(connection: sqlite3.Connection, incarnation: str) -> bool:
    """Delete the first entries of a journal, as many as take some ten milliseconds; whether there
    may be more. Inside a transaction."""
    key = {"incarnation": incarnation, "limit": DELETE_ENTRIES}
    found = connection.execute(QUERIES["read_sizes"], key).fetchall()
    size = count = 0
    while count < len(found) and (count == 0 or size + found[count][1] <= DELETE_BYTES):
        size += found[count][1]
        count += 1
    if count:
        last = {"incarnation": incarnation, "last": found[count - 1][0]}
        connection.execute(QUERIES["delete_entries"], last)
    return count < len(found) or count == DELETE_ENTRIES


def let_others_in() -> None:
    """Give other threads and processes the time to take a lock that was just released."""
    time.sleep(0.001)


def append_one(connection: sqlite3.Connection, append: Append) -> CommitOutcome:
    """Write one append and its catalog row, or neither, inside a transaction."""
    row = append.catalog
    values = msgspec.structs.asdict(row)
    values["status"] = row.status.value
    values["metadata"] = encode_metadata(row)
    values["error"] = clean(row.error)
    values["digest"] = row_digest(row, values["metadata"], values["error"])
    values["expected_seq"] = append.expected_seq
    query = CREATE if append.expected_seq == 0 else ADVANCE
    if connection.execute(query, values).rowcount != 1:
        return CommitOutcome.STALE
    connection.execute(APPEND, entry_values(append))
    return CommitOutcome.OK


def append_as_expected(connection: sqlite3.Connection, appends: Sequence[Append]) -> bool:
    """Write appends as nearly all groups are: every journal ends where expected, and who runs after
    the append ran before it. Writes nothing and returns False if one is not so.

    A group costs half of what it costs one by one.
    """
    running: list[Append] = []
    others: list[Append] = []
    for append in appends:
        touched = append.expected_seq > 0 and append.catalog.status in ACTIVE
        (running if touched else others).append(append)
    if len(running) < 2:
        return False
    connection.execute(QUERIES["begin_guess"])
    done = connection.executemany(TOUCH, map(touch_values, running)).rowcount == len(running)
    if done:
        connection.executemany(APPEND, map(entry_values, running))
        done = all(append_one(connection, append) is CommitOutcome.OK for append in others)
    if not done:
        connection.execute(QUERIES["undo_guess"])
    connection.execute(QUERIES["end_guess"])
    return done


def touch_values(append: Append) -> tuple[Any, ...]:
    """The parameters of ``touch_workflow``."""
    row = append.catalog
    metadata, error = encode_metadata(row), clean(row.error)
    return (
        *(row.seq, row.holder, row.started_at, row.ended_at, metadata),
        *(row.plan_digest, error, row.released, row_digest(row, metadata, error)),
        *(row.workflow_id, row.incarnation, append.expected_seq),
        *(row.status.value, row.submitted_at),
    )


def entry_values(append: Append) -> tuple[Any, ...]:
    """The parameters of ``append_entry``."""
    return append.incarnation, append.catalog.seq, append.commit_id, append.entry


def clean(text: str | None) -> str | None:
    """The text of an error as UTF-8 can hold it: file names in messages can bring surrogates."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def real_path(directory: str | os.PathLike[str]) -> str:
    """The absolute path of a directory without ``~`` and symbolic links."""
    name = os.fspath(directory)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not name or "\0" in name:
        raise StorageConfigError(
            f"{name!r} is not the path of a directory. Give one with init(storage=...)."
        )
    expanded = os.path.expanduser(name)
    if expanded.startswith("~"):
        raise StorageConfigError(
            f"The home directory in {name!r} is unknown. Give an absolute path; ./{name} is the "
            f"directory of that name."
        )
    return os.path.realpath(expanded)
