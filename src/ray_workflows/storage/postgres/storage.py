"""`PostgresStorage`: workflows in a schema of a PostgreSQL database, for any number of clusters.
Needs the extra ``postgres``; nothing else in the package imports it before it is asked for.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from psycopg import errors

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
from ray_workflows.exceptions import StorageError
from ray_workflows.storage.access import opening
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.postgres.appends import Ends, Statement, make_statements
from ray_workflows.storage.postgres.blobs import BlobRows
from ray_workflows.storage.postgres.listener import Listener
from ray_workflows.storage.postgres.pool import Connection, Patience, Pool, pool_of
from ray_workflows.storage.postgres.schema import Schema
from ray_workflows.storage.postgres.target import Target, parse_target
from ray_workflows.storage.records import (
    check_appends,
    check_limit,
    decode_cursor,
    decode_row,
    make_page,
)

T = TypeVar("T")

#: How often a transaction that the server gave up, to end a deadlock, is begun again.
ATTEMPTS = 5

#: What says for certain that nothing was committed.
CLASHES = (errors.SerializationFailure, errors.DeadlockDetected)

STATUSES = sorted(status.value for status in WorkflowStatus)

#: Which query lists rows: whether some statuses, or some holders, are asked for, whether the
#: newest come first.
LIST_QUERIES = {
    (False, False, False): "list_catalog",
    (True, False, False): "list_catalog_by_status",
    (False, True, False): "list_catalog_by_holder",
    (True, True, False): "list_catalog_by_holder",
    (False, False, True): "list_catalog_newest",
    (True, False, True): "list_catalog_newest_by_status",
    (False, True, True): "list_catalog_newest_by_holder",
    (True, True, True): "list_catalog_newest_by_holder",
}


class PostgresStorage(Storage):
    """Workflows in a schema of a PostgreSQL database (13 or newer, encoding UTF8).

    Any process that reaches the server may use it at once, of any number of clusters. A commit is
    on the server's disk when it is acknowledged, whatever its ``synchronous_commit``. Each process
    has a few connections, opened on demand and closed when idle. Only `open` creates anything.

    Instances pickle with all that is needed to connect, the password too: they travel to the
    processes of the cluster, and into nothing that is stored. Neither ``url`` nor ``repr`` nor
    any message shows it.

    Args:
        url: ``postgresql://user:password@host:port/database?schema=name``. What is left out comes
            from the PG* variables, the service file and ``~/.pgpass``, as for other programs;
            the schema is ``ray_workflows``. Other parameters are libpq's, such as ``sslmode``.

    Raises:
        StorageConfigError: the URL can't be understood.

    Example:
        >>> PostgresStorage("postgresql://me:secret@db.example.com:5432/work?schema=mine")
        PostgresStorage('postgresql://db.example.com:5432/work?schema=mine')
    """

    def __init__(self, url: str) -> None:
        self.connect_to(parse_target(url))

    def connect_to(self, target: Target) -> None:
        """Set it up for a target; nothing is connected yet."""
        self.target: Target = target
        self.schema: Schema = Schema(target)
        self.queries: dict[str, str] = self.schema.queries
        self.pool: Pool = pool_of(target)
        self.blobs: BlobRows = BlobRows(self.pool, self.schema)
        self.listener: Listener | None = None
        self.ends: Ends = Ends()
        self.patience: Patience = Patience()

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.target)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target.url!r})"

    @property
    def url(self) -> str:
        """Host, port, database and schema; no user and no password."""
        return self.target.url

    def open(self) -> None:
        """Create the schema and its tables if they are missing, and check the user's rights.

        Raises:
            StorageConfigError: wrong password, unknown host or database, no right to create the
                schema, a server that is too old, a schema of a newer release.
            StorageUnavailableError: the server does not answer.
        """
        with opening(), self.pool.use() as connection:
            self.schema.ensure(connection)

    def open_existing(self) -> None:
        """Check that there is a storage here and that it can be read; changes nothing.

        Raises:
            StorageConfigError: as `open`, and if there is none.
            StorageUnavailableError: the server does not answer.
        """
        with opening():
            self.pool.read(self.schema.check_existing)

    def close(self) -> None:
        """Close the connections of this process that are not in use; the next use opens others."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.stop()
        self.pool.drop_idle()

    # -- journal and catalog ---------------------------------------------------------------

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """Append to several journals in one transaction; see `Storage.commit`."""
        # Taken out and encoded here so that what raises does so before the transaction.
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
        """Do something in one transaction; again if the server gave that up.

        One that had a rival's entry in its way begins again at once, and sees it then: that append
        is stale from now on, so that this ends after as many times as there are ``appends``.
        """
        clashes = 0
        while True:
            with self.pool.use() as connection, self.patience.over(connection):
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
        """Tell others that one of their journals has grown.

        Nobody is told of their own commits, which are nearly all: the server passes every word on
        under one lock.
        """
        if self.listener is None:
            return
        others = sorted(set(holders) - {self.listener.holder_id})
        if others:
            values = {"channel": self.listener.channel, "holders": others}
            # The commit stands; they find it themselves within a second.
            with contextlib.suppress(StorageError), self.pool.use() as connection:
                connection.execute(self.queries["tell_holders"], values)

    def execute_commit(self, connection: Connection, statements: list[Statement]) -> list[set[str]]:
        """Run the statements of a commit in one transaction and one trip to the server.

        For each, the incarnations that were appended to.
        """
        queries = self.queries
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
                rows = cursor.execute(self.queries["read_journal"], key).fetchall()
            return [JournalEntry(*row) for row in rows]

        return self.pool.read(work)

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of a workflow, or None."""
        row = self.fetch_one("read_catalog", {"workflow_id": workflow_id})
        return None if row is None else decode_row(row, where=self.url)

    def list_catalog(self, query: CatalogQuery) -> Page:
        """One page of rows, oldest or newest submission first."""
        limit = check_limit(query.limit)
        submitted_at, workflow_id = decode_cursor(query.cursor, newest_first=query.newest_first)
        statuses = sorted({status.value for status in query.statuses})
        parameters = {
            "submitted_at": submitted_at,
            "workflow_id": workflow_id,
            "statuses": statuses or STATUSES,
            "holders": sorted(set(query.holders)),
            # One more shows whether there is a next page.
            "limit": limit + 1,
        }
        name = LIST_QUERIES[bool(statuses), bool(query.holders), query.newest_first]
        found = self.pool.read(
            lambda connection: connection.execute(self.queries[name], parameters).fetchall()
        )
        return make_page(found, limit, self.url)

    def fetch_one(self, name: str, parameters: dict[str, Any]) -> Any:
        """The first row of a query that changes nothing, or None."""
        return self.pool.read(lambda connection: connection.first(self.queries[name], parameters))

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete a workflow and its blobs, if its journal still ends at ``expected_seq``."""
        key = {
            "workflow_id": workflow_id,
            "incarnation": incarnation,
            "expected_seq": expected_seq,
        }

        def work(connection: Connection) -> int:
            with connection.patient(), connection.pipeline(), connection.transaction():
                connection.execute(self.queries["configure_transaction"])
                end = connection.first(self.queries["lock_end"], key)
                locked = {"locked_seq": None if end is None else end[0]}
                found: int = connection.first(self.queries["delete_workflow"], {**key, **locked})[0]
                return found

        found = self.transact(work)
        self.ends.forget(incarnation)
        return CommitOutcome.OK if found else CommitOutcome.STALE

    # -- blobs -----------------------------------------------------------------------------

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob durably unless the key exists; return what is stored."""
        return self.blobs.write(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, checked."""
        return self.blobs.read(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, checked at the end."""
        return self.blobs.stream(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a stored blob, or None. Not read: it was computed when written."""
        return self.blobs.find(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation."""
        self.blobs.delete(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations whose newest blob is older than the grace period."""
        grace = {"grace_seconds": float(grace_seconds)}
        rows = self.pool.read(
            lambda connection: connection.execute(self.queries["old_blobs"], grace).fetchall()
        )
        return [incarnation for (incarnation,) in rows]

    def sweep(self, grace_seconds: float) -> int:
        """Remove old blobs that belong to no workflow.

        Their incarnations get tombstones: a submission that arrives later still is stale, and does
        not become a workflow without its blobs.
        """
        with self.pool.use() as connection, connection.patient():
            grace = {"grace_seconds": float(grace_seconds)}
            connection.execute(self.queries["bury_orphans"], grace)
            if not connection.first(self.queries["has_buried"])[0]:
                connection.execute(self.queries["remove_tombstones"])
                return 0
            with connection.transaction():
                connection.execute(self.queries["configure_transaction"])
                connection.execute(self.queries["lock_catalog"])
                connection.execute(self.queries["spare_created"])
            buried = connection.execute(self.queries["read_buried"]).fetchall()
        for (incarnation,) in buried:
            self.blobs.delete(incarnation)
        return len(buried)

    # -- holders ---------------------------------------------------------------------------

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew the holder's row; the lease runs on the server's clock."""
        row = {**msgspec.structs.asdict(holder), "lease_seconds": float(lease_seconds)}
        with self.pool.use() as connection:
            connection.execute(self.queries["renew_holder"], row)

    def remove_holder(self, holder_id: str) -> None:
        """Remove the holder's row, if there is one."""
        with self.pool.use() as connection:
            connection.execute(self.queries["remove_holder"], {"holder_id": holder_id})

    def read_holders(self) -> list[Holder]:
        """All holders, by id."""
        rows = self.pool.read(
            lambda connection: connection.execute(self.queries["read_holders"]).fetchall()
        )
        return [Holder(*row) for row in rows]

    def listen(self, holder_id: str, on_news: Callable[[], None]) -> None:
        """Call back when another process that listens has appended to a journal of the holder."""
        if self.listener is not None:
            self.listener.stop()
        self.listener = Listener(self.pool, holder_id, on_news)

    def now(self) -> float:
        """The clock of the server."""
        now: float = self.fetch_one("now", {})[0]
        return now


def rebuild(cls: type[PostgresStorage], target: Target) -> PostgresStorage:
    """A pickled storage, in the process it came to."""
    storage = cls.__new__(cls)
    storage.connect_to(target)
    return storage
