"""The journals and the catalog of a directory with an SQLite database, and their deletion."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    JournalEntry,
    Page,
)
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.files.blobs import BlobFiles, remove_temporaries
from ray_workflows.storage.parts import CommitOutcome, JournalStore
from ray_workflows.storage.rows import STORED, decode_row, encode_row, make_page
from ray_workflows.storage.sqlite.connection import QUERIES, fetch_all
from ray_workflows.storage.sqlite.directory import SqliteDirectory
from ray_workflows.storage.sqlite.listing import compose_count, compose_listing
from ray_workflows.storage.validation import (
    check_appends,
    check_limit,
)

#: The parameters of the queries that write rows, in their order.
GIVEN = (*STORED, "expected_seq")


def by_number(query: str) -> str:
    """A query with the parameters of `GIVEN` by number. By name, they would take SQLite twice as
    long as everything else."""
    return re.sub(r":(\w+)", lambda match: f"?{GIVEN.index(match[1]) + 1}", QUERIES[query])


CREATE = by_number("create_workflow")
ADVANCE = by_number("advance_workflow")
TOUCH = by_number("touch_workflow")
APPEND = QUERIES["append_entry"]

#: How much of a journal one transaction deletes: the number of entries, and their bytes.
DELETE_ENTRIES = 5_000
DELETE_BYTES = 16 * 1024 * 1024

#: An append that leaves a workflow in one of these mostly found it in the same one.
ACTIVE = WorkflowStatus.non_terminating_status()


class SqliteJournals(JournalStore):
    """Journals and catalog in the database of a directory. Deletes a workflow's blobs with it.

    Args:
        home: the directory.
        blobs: the blobs in it.
    """

    home: SqliteDirectory

    def __init__(self, home: SqliteDirectory, blobs: BlobFiles) -> None:
        self.home = home
        self.blobs = blobs

    @property
    def commits_at_once(self) -> bool:
        """Whether a commit waits for the local disk only: no other thread of this process
        writes."""
        return self.home.writer.is_free()

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """Append to several journals in one transaction; see `Storage.commit`."""
        # Read completely before the transaction: a sequence that raises does so here.
        appends = list(appends)
        check_appends(appends)
        if not appends:
            return []
        with self.home.writer.transaction() as connection:
            if append_as_expected(connection, appends):
                return [CommitOutcome.OK] * len(appends)
            return [append_one(connection, append) for append in appends]

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """Entries with ``seq > after``, in order."""
        with self.home.reader.use() as connection:
            key = {"incarnation": incarnation, "after": after}
            rows = fetch_all(connection, QUERIES["read_journal"], key)
        return [JournalEntry(*row) for row in rows]

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of a workflow, or None."""
        with self.home.reader.use() as connection:
            key = {"workflow_id": workflow_id}
            rows = fetch_all(connection, QUERIES["read_catalog"], key)
        return decode_row(rows[0], where=self.home.reader.path) if rows else None

    def list_catalog(self, query: CatalogQuery) -> Page:
        """One page of rows, oldest or newest submission first."""
        limit = check_limit(query.limit)
        text, parameters = compose_listing(query, self.count)
        with self.home.reader.use() as connection:
            found = fetch_all(connection, text, parameters)
        return make_page(found, limit, self.home.reader.path)

    def count_catalog(self, query: CatalogQuery) -> int:
        """How many rows a query finds."""
        return self.count(*compose_count(query))

    def count(self, text: str, parameters: dict[str, Any]) -> int:
        """The number that a query returns."""
        with self.home.reader.use() as connection:
            found: int = fetch_all(connection, text, parameters)[0][0]
        return found

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete a workflow and its blobs, if its journal still ends at ``expected_seq``.

        A long journal takes several transactions, so that commits get in between.
        """
        buried = False
        with self.home.writer.transaction() as connection:
            key = {
                "workflow_id": workflow_id,
                "incarnation": incarnation,
                "expected_seq": expected_seq,
            }
            if connection.execute(QUERIES["delete_workflow"], key).rowcount != 1:
                return CommitOutcome.STALE
            more = delete_some(connection, incarnation)
            if more or self.blobs.exists(incarnation):
                grave = {"incarnation": incarnation, "deleted_at": time.time()}
                connection.execute(QUERIES["write_tombstone"], grave)
                buried = True
        if buried:
            # The workflow is deleted, whatever happens now; the tombstone leads `sweep` to the
            # rest.
            with contextlib.suppress(StorageUnavailableError):
                self.finish_tombstone(incarnation)
        return CommitOutcome.OK

    def finish_tombstone(self, incarnation: str) -> None:
        """Remove what is left of an incarnation that has a tombstone, and then the tombstone."""
        more = True
        while more:
            # Yield the connection: a waiting thread gets it only if this one pauses.
            let_others_in()
            with self.home.writer.transaction() as connection:
                more = delete_some(connection, incarnation)
        self.blobs.delete_blobs(incarnation)
        with self.home.writer.transaction() as connection:
            connection.execute(QUERIES["remove_tombstone"], {"incarnation": incarnation})

    def sweep(self, grace_seconds: float) -> int:
        """Finish interrupted deletions, and remove old blobs that belong to no workflow.

        A workflow whose blobs were written longer ago than the grace period, and that was not
        created since, can lose them: the grace period has to be longer than a submission takes.
        """
        before = time.time() - grace_seconds
        with self.home.reader.use() as connection:
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
        # Files of processes that were killed while they created the database.
        remove_temporaries(self.home.directory, before)
        return len(swept)

    def is_known(self, incarnation: str) -> bool:
        """Whether a workflow has this incarnation."""
        with self.home.reader.use() as connection:
            key = {"incarnation": incarnation}
            found = connection.execute(QUERIES["has_incarnation"], key).fetchone()
        return found is not None

    def bury_orphan(self, incarnation: str, before: float) -> bool:
        """Write a tombstone for blobs older than a time, unless their workflow exists by now.

        The tombstone prevents the workflow's creation, so that it can't lose its blobs between the
        check and their removal.
        """
        newest = self.blobs.newest(incarnation)
        if newest is None or newest > before:
            return False
        with self.home.writer.transaction() as connection:
            grave = {"incarnation": incarnation, "deleted_at": time.time()}
            return connection.execute(QUERIES["write_orphan_tombstone"], grave).rowcount == 1


def delete_some(connection: sqlite3.Connection, incarnation: str) -> bool:
    """Delete the first entries of a journal, as many as take about ten milliseconds, inside a
    transaction. Returns whether there may be more."""
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
    """Pause, so that another thread or process can take the lock that was just released."""
    time.sleep(0.001)


def append_one(connection: sqlite3.Connection, append: Append) -> CommitOutcome:
    """Write one append and its catalog row, or neither, inside a transaction."""
    values = row_values(append)
    if append.expected_seq == 0:
        # The query of a creation does not take ``expected_seq``.
        changed = connection.execute(CREATE, values[:-1]).rowcount
    else:
        changed = connection.execute(ADVANCE, values).rowcount
    if changed != 1:
        return CommitOutcome.STALE
    connection.execute(APPEND, entry_values(append))
    return CommitOutcome.OK


def append_as_expected(connection: sqlite3.Connection, appends: Sequence[Append]) -> bool:
    """Write a group on the guess that nearly always holds: every journal ends where expected, and
    appends that leave a workflow running found it running. If the guess is wrong, writes nothing
    and returns False.

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
    done = connection.executemany(TOUCH, map(row_values, running)).rowcount == len(running)
    if done:
        connection.executemany(APPEND, map(entry_values, running))
        done = all(append_one(connection, append) is CommitOutcome.OK for append in others)
    if not done:
        connection.execute(QUERIES["undo_guess"])
    connection.execute(QUERIES["end_guess"])
    return done


def row_values(append: Append) -> list[Any]:
    """The values of `GIVEN` for an append."""
    values = encode_row(append.catalog, clean)
    values.append(append.expected_seq)
    return values


def entry_values(append: Append) -> tuple[Any, ...]:
    """The parameters of ``append_entry``."""
    return append.incarnation, append.catalog.seq, append.commit_id, append.entry


def clean(text: str) -> str:
    """A text without surrogates, which UTF-8 can't encode; file names in messages may have them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
