"""Events per second, against bare batched inserts or bare puts of the same bytes."""

from __future__ import annotations

import os
import sqlite3
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from benchmarks.storage_parts import Context, Part, Turns, percent, rate, seconds
from ray_workflows._model.catalog import Append
from ray_workflows.storage.base import Storage
from ray_workflows.storage.objects import ObjectStorage
from ray_workflows.storage.put_once import PutOnceStorage
from ray_workflows.storage.segments import encode
from ray_workflows.storage.shared import SharedStorage
from ray_workflows.storage.sqlite import SqliteStorage
from ray_workflows.testing.builders import OK, make_append, make_holder
from tests.fast_s3 import fast_s3
from tests.moto import storage_url

#: What an event of a finished task with a small result takes in the journal, in bytes.
EVENT_BYTES = 200

TARGET = 0.7

#: Workflows in a group commit, and events of each.
SHAPES = ((1, 1), (1, 1000), (100, 1), (100, 10), (1000, 1), (1000, 10))

ROW_COLUMNS = """workflow_id text, incarnation text, seq bigint, status text, holder text,
    submitted_at double precision, started_at double precision, ended_at double precision,
    metadata text, plan_digest text, error text, released boolean"""
JOURNAL = "incarnation text, seq bigint, commit_id text, entry {bytes}"

#: All that every append stores, in the encoding that proved the fastest, and no more: no fence,
#: nothing that could be listed or updated.
POSTGRES_INSERT = """
    WITH wanted AS MATERIALIZED (
        SELECT * FROM ROWS FROM (
            json_to_recordset(%(rows)b::json) AS (
                i text, n text, s bigint, t text, h text, b double precision, a double precision,
                e double precision, m text, p text, x text, r boolean, c text
            ),
            unnest(%(entries)b::bytea[])
        ) AS given (
            workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
            metadata, plan_digest, error, released, commit_id, entry
        )
    ),
    listed AS (
        INSERT INTO bare_catalog
        SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
            metadata, plan_digest, error, released
        FROM wanted
    )
    INSERT INTO bare_journal SELECT incarnation, seq, commit_id, entry FROM wanted
"""


class Row(msgspec.Struct, omit_defaults=True):
    """A catalog row and the commit id of its entry, as `POSTGRES_INSERT` reads them."""

    i: str
    n: str
    s: int
    t: str
    h: str
    b: float
    c: str
    a: float | None = None
    e: float | None = None
    m: str = "{}"
    p: str = ""
    x: str | None = None
    r: bool = False


def encode_rows(appends: Sequence[Append]) -> dict[str, Any]:
    """The parameters of `POSTGRES_INSERT`."""
    rows = [
        Row(
            i=append.workflow_id,
            n=append.incarnation,
            s=append.catalog.seq,
            t=append.catalog.status.value,
            h=append.catalog.holder,
            b=append.catalog.submitted_at,
            c=append.commit_id,
            a=append.catalog.started_at,
            e=append.catalog.ended_at,
            p=append.catalog.plan_digest,
            x=append.catalog.error,
            r=append.catalog.released,
        )
        for append in appends
    ]
    return {
        "rows": msgspec.json.encode(rows).decode(),
        "entries": [append.entry for append in appends],
    }


class BarePostgres:
    """Batched inserts by a connection that prepares its statements."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        journal = JOURNAL.format(bytes="bytea")
        connection.execute(f"CREATE TABLE bare_catalog ({ROW_COLUMNS})")
        connection.execute(f"CREATE TABLE bare_journal ({journal}, PRIMARY KEY (incarnation, seq))")

    def insert(self, appends: Sequence[Append]) -> None:
        self.connection.execute(POSTGRES_INSERT, encode_rows(appends))


class BareSqlite:
    """Batched inserts into a database with the same settings."""

    def __init__(self, path: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        journal = JOURNAL.format(bytes="blob")
        self.connection.executescript(
            f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            f"CREATE TABLE bare_catalog ({ROW_COLUMNS});"
            f"CREATE TABLE bare_journal ({journal}, UNIQUE (incarnation, seq));"
        )

    def insert(self, appends: Sequence[Append]) -> None:
        run = self.connection.execute
        many = self.connection.executemany
        run("BEGIN IMMEDIATE")
        rows = (a.catalog for a in appends)
        many(
            f"INSERT INTO bare_catalog VALUES ({', '.join('?' * 12)})",
            (
                (
                    *(r.workflow_id, r.incarnation, r.seq, r.status.value, r.holder),
                    *(r.submitted_at, r.started_at, r.ended_at, "{}", r.plan_digest, r.error),
                    r.released,
                )
                for r in rows
            ),
        )
        many(
            "INSERT INTO bare_journal VALUES (?, ?, ?, ?)",
            ((a.incarnation, a.catalog.seq, a.commit_id, a.entry) for a in appends),
        )
        run("COMMIT")


class BarePuts:
    """Objects put under names that are free, as many at once as ours."""

    def __init__(self, storage: PutOnceStorage) -> None:
        self.storage = storage

    def insert(self, appends: Sequence[Append]) -> None:
        storage = self.storage
        works = []
        for append in appends:
            # As many bytes as a segment has.
            end = storage.journals.ends.get(append.incarnation.removeprefix("bare-"))
            about = len(encode(end.segment)) - len(end.segment.entry) if end else 300
            key = f"bare/{append.incarnation}/{append.catalog.seq}"
            data = append.entry + os.urandom(about)
            works.append(partial(storage.operations.create, key, data))
        for outcome in storage.crew.groups(works):
            assert outcome is True, outcome


def groups(shape: tuple[int, int], seq: int) -> tuple[list[Append], list[Append]]:
    """What is committed next: by ours, and bare."""
    appends, events = shape

    def make(name: str) -> list[Append]:
        return [
            make_append(
                f"{name}{appends}-{events}-{number}", seq, entry=os.urandom(events * EVENT_BYTES)
            )
            for number in range(appends)
        ]

    return make("w"), make("bare")


def commit(storage: Storage, appends: list[Append]) -> None:
    """A commit in which every append has to succeed."""
    assert storage.commit(appends) == [OK] * len(appends)


def stores(context: Context) -> Iterator[tuple[str, Storage, Any]]:
    """Each storage with its bare store."""
    sqlite = SqliteStorage(context.directory / "commits")
    sqlite.open()
    yield "SQLite", sqlite, BareSqlite(str(context.directory / "commits" / "bare.sqlite"))
    sqlite.close()
    with context.schema() as (postgres, connection):
        yield "PostgreSQL", postgres, BarePostgres(connection)
    shared = SharedStorage(context.directory / "shared-commits")
    with fast_s3() as endpoint:
        for name, storage in (
            ("shared directory", shared),
            ("S3", ObjectStorage(storage_url(endpoint))),
        ):
            storage.open()
            # A workflow's own coordinator, as nearly always.
            storage.renew_holder(make_holder("h1"), 3600.0)
            yield name, storage, BarePuts(storage)
            storage.close()


def measure(context: Context) -> Iterator[Part]:
    part = Part(
        "Commits",
        ["storage", "workflows x events", "ms", "bare ms", "events/s", "bare events/s", "of bare"],
        before=(
            f"A group commit appends so many events of {EVENT_BYTES} bytes to each of so many "
            f"workflows that exist. *Bare* writes the same bytes in the same batches: inserts "
            f"into tables without fence, listing indexes or updates; puts in parallel. Target: "
            f"70 % of bare; below it in bold. S3 answers at once here, so that groups on it "
            f"compare the Python of both sides; at 50 ms a group takes as long as its puts."
        ),
    )
    for name, storage, bare in stores(context):
        for shape in SHAPES:
            if isinstance(storage, PutOnceStorage) and shape[0] == 1000 and shape[1] == 10:
                continue
            # Large groups of directories take a second.
            rounds = context.options.rounds // (4 if isinstance(storage, PutOnceStorage) else 1)
            turns = Turns()
            for seq in range(max(rounds, 3) + 3):
                ours, plain = groups(shape, seq)
                turns.add(partial(commit, storage, ours), partial(bare.insert, plain))
            # The first creates the workflows.
            mine, base, ratio = turns.medians(3)
            events = shape[0] * shape[1]
            part.rows.append(
                [
                    *(name, f"{shape[0]} x {shape[1]}", f"{1e3 * mine:.2f}", f"{1e3 * base:.2f}"),
                    *(rate(events, mine), rate(events, base), percent(ratio, TARGET)),
                ]
            )
            print(*part.rows[-1], flush=True)
    yield part
    yield profile(context)


def profile(context: Context) -> Part:
    """Where the time of a large group of small appends goes on PostgreSQL."""
    part = Part(
        "Where a commit of 1000 x 1 goes on PostgreSQL",
        ["step", "ms", "has bare inserts"],
        before=(
            "From EXPLAIN (ANALYZE), medians of 15. The rest is the encoding in Python, the way to "
            "the server and back, and the sync of its log."
        ),
    )
    found: list[dict[str, float]] = []
    with context.schema() as (storage, _):
        for seq in range(16):
            group = [
                make_append(f"w{number:04d}", seq, entry=os.urandom(EVENT_BYTES))
                for number in range(1000)
            ]
            whole = 1e3 * seconds(lambda group=group: storage.commit(group))
            if seq:
                found.append({"whole": whole})
            again = [
                make_append(f"x{number:04d}", seq, entry=os.urandom(EVENT_BYTES))
                for number in range(1000)
            ]
            if not seq:
                storage.commit(again)
                continue
            query = "EXPLAIN (ANALYZE, BUFFERS OFF, FORMAT JSON) " + "\n".join(
                line
                for line in storage.queries["advance_appends"].splitlines()
                if not line.startswith("--")
            )
            with storage.pool.use() as connection:
                ((answer,),) = connection.execute(query, encode_appends(again)).fetchall()
            ends = {
                node["Subplan Name"].removeprefix("CTE "): node["Actual Total Time"]
                for node in answer[0]["Plan"]["Plans"]
                if "Subplan Name" in node
            }
            found[-1].update(ends, plan=answer[0]["Planning Time"], all=answer[0]["Execution Time"])
    middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
    steps = (
        ("plan", middle["plan"], "prepared once"),
        ("read rows and entries from what was sent", middle["wanted"], "yes"),
        ("find and lock the catalog rows, in order", middle["locked"] - middle["wanted"], "no"),
        ("update them", middle["advanced"] - middle["locked"], "inserts without indexes"),
        ("insert the entries", middle["all"] - middle["advanced"], "yes"),
        ("the rest", middle["whole"] - middle["all"] - middle["plan"], "yes"),
        ("**all**", middle["whole"], ""),
    )
    part.rows = [[name, f"{took:.1f}", bare] for name, took, bare in steps]
    return part
