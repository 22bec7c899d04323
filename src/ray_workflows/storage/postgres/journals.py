"""The journals and the catalog of a schema of a PostgreSQL database, and their deletion."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from psycopg import errors

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    JournalEntry,
    Page,
)
from ray_workflows.exceptions import StorageError
from ray_workflows.storage.parts import CommitOutcome, JournalStore
from ray_workflows.storage.postgres.appends import Ends, Statement, make_statements
from ray_workflows.storage.postgres.blobs import BlobRows
from ray_workflows.storage.postgres.home import PostgresHome
from ray_workflows.storage.postgres.listener import Listener
from ray_workflows.storage.postgres.listing import compose_count, compose_listing
from ray_workflows.storage.postgres.pool import Connection, Patience
from ray_workflows.storage.rows import decode_row, make_page
from ray_workflows.storage.validation import (
    check_appends,
    check_limit,
)

T = TypeVar("T")

#: How often a transaction is tried that the server aborts to end a deadlock.
ATTEMPTS = 5

#: Errors after which certainly nothing is committed.
CLASHES = (errors.SerializationFailure, errors.DeadlockDetected)


class PostgresJournals(JournalStore):
    """Journals and catalog in a schema. Deletes a workflow's blobs with it.

    Args:
        home: the schema.
        blobs: the blobs in it.
    """

    home: PostgresHome

    def __init__(self, home: PostgresHome, blobs: BlobRows) -> None:
        self.home = home
        self.blobs = blobs
        self.ends: Ends = Ends()
        self.patience: Patience = Patience()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.home, self.blobs)

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """Append to several journals in one transaction; see `Storage.commit`."""
        # Read and encode all before the transaction: errors are raised here.
        appends = list(appends)
        check_appends(appends)
        statements = make_statements(appends, self.ends)
        outcomes = [CommitOutcome.STALE] * len(appends)
        if not statements:
            return outcomes
        found = self.transact(lambda c: self.execute_commit(c, statements), len(appends))
        if sum(map(len, found)) == len(appends):
            outcomes = [CommitOutcome.OK] * len(appends)
        else:
            for statement, appended in zip(statements, found, strict=True):
                for number in statement.numbers:
                    if appends[number].incarnation in appended:
                        outcomes[number] = CommitOutcome.OK
        self.ends.learn(appends, outcomes)
        pairs = zip(appends, outcomes, strict=True)
        self.tell(append.catalog.holder for append, outcome in pairs if outcome is CommitOutcome.OK)
        return outcomes

    def transact(self, work: Callable[[Connection], T], appends: int = 0) -> T:
        """Run work in one transaction, and again if the server aborts it.

        If a rival's entry got in the way, the transaction begins again at once and sees that entry:
        the append is then stale for good. So there are at most as many repetitions as ``appends``.
        """
        clashes = 0
        while True:
            with self.home.pool.use() as connection, self.patience.over(connection):
                try:
                    return work(connection)
                except errors.UniqueViolation:
                    if appends == 0:
                        raise
                    appends -= 1
                    continue
                except CLASHES:
                    clashes += 1
                    if clashes == ATTEMPTS:
                        raise
            time.sleep(random.uniform(0.0, 0.01 * 2**clashes))

    def tell(self, holders: Iterable[str]) -> None:
        """Notify other holders that one of their journals has grown.

        A holder's own commits, which are nearly all, send no notification: the server delivers
        all notifications under one lock.
        """
        if self.home.listener is None:
            return
        others = sorted(set(holders) - {self.home.listener.holder_id})
        if others:
            values = {"channel": self.home.listener.channel, "holders": others}
            # If this fails, the commit stands, and the others find it by a scan within a second.
            with contextlib.suppress(StorageError), self.home.pool.use() as connection:
                connection.execute(self.home.queries["tell_holders"], values)

    def execute_commit(self, connection: Connection, statements: list[Statement]) -> list[set[str]]:
        """Run the statements of a commit in one transaction and one trip to the server.

        Returns, for each, the incarnations that were appended to.
        """
        queries = self.home.queries
        if len(statements) == 1:
            (only,) = statements
            cursors = [connection.execute(queries[only.query], only.parameters)]
        else:
            with connection.pipeline(), connection.transaction():
                connection.execute(queries["configure_transaction"])
                cursors = [
                    connection.execute(queries[statement.query], statement.parameters)
                    for statement in statements
                ]
        return [set((cursor.fetchone() or [None])[0] or ()) for cursor in cursors]

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """Entries with ``seq > after``, in order."""
        key = {"incarnation": incarnation, "after": after}

        def work(connection: Connection) -> list[JournalEntry]:
            with connection.cursor(binary=True) as cursor:
                rows = cursor.execute(self.home.queries["read_journal"], key).fetchall()
            return [JournalEntry(*row) for row in rows]

        return self.home.pool.read(work)

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of a workflow, or None."""
        row = self.home.fetch_one("read_catalog", {"workflow_id": workflow_id})
        return None if row is None else decode_row(row, where=self.home.url)

    def list_catalog(self, query: CatalogQuery) -> Page:
        """One page of rows, oldest or newest submission first."""
        limit = check_limit(query.limit)
        text, parameters = compose_listing(self.home.queries, query)
        found = self.home.pool.read(
            lambda connection: connection.execute(text, parameters).fetchall()
        )
        return make_page(found, limit, self.home.url)

    def count_catalog(self, query: CatalogQuery) -> int:
        """How many rows a query finds."""
        text, parameters = compose_count(self.home.queries, query)
        count: int = self.home.pool.read(lambda connection: connection.first(text, parameters))[0]
        return count

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete a workflow and its blobs, if its journal still ends at ``expected_seq``."""
        key = {
            "workflow_id": workflow_id,
            "incarnation": incarnation,
            "expected_seq": expected_seq,
        }

        def work(connection: Connection) -> int:
            with connection.patient(), connection.pipeline(), connection.transaction():
                connection.execute(self.home.queries["configure_transaction"])
                end = connection.first(self.home.queries["lock_end"], key)
                locked = {"locked_seq": None if end is None else end[0]}
                found: int = connection.first(
                    self.home.queries["delete_workflow"], {**key, **locked}
                )[0]
                return found

        found = self.transact(work)
        self.ends.forget(incarnation)
        return CommitOutcome.OK if found else CommitOutcome.STALE

    def sweep(self, grace_seconds: float) -> int:
        """Remove old blobs that belong to no workflow.

        Their incarnations get tombstones: a submission that arrives even later is stale, and does
        not become a workflow without its blobs.
        """
        with self.home.pool.use() as connection, connection.patient():
            grace = {"grace_seconds": float(grace_seconds)}
            connection.execute(self.home.queries["bury_orphans"], grace)
            if not connection.first(self.home.queries["has_buried"])[0]:
                connection.execute(self.home.queries["remove_tombstones"])
                return 0
            with connection.transaction():
                connection.execute(self.home.queries["configure_transaction"])
                connection.execute(self.home.queries["lock_catalog"])
                connection.execute(self.home.queries["spare_created"])
            buried = connection.execute(self.home.queries["read_buried"]).fetchall()
        for (incarnation,) in buried:
            self.blobs.delete_blobs(incarnation)
        return len(buried)

    def listen(
        self, holder_id: str, on_news: Callable[[], None], lives: Sequence[str] = ()
    ) -> None:
        """Call back when another process that listens has appended to a journal of the holder."""
        if self.home.listener is not None:
            self.home.listener.stop()
        self.home.listener = Listener(self.home.pool, holder_id, on_news, lives)
