"""Events per second, against bare batched inserts or bare puts of the same bytes."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.storage_parts import Context, Part, Turns, percent, rate
from benchmarks.storage_postgres import (
    EVENT_BYTES,
    JOURNAL,
    ROW_COLUMNS,
    BarePostgres,
    by_what_is_stored,
    profile,
)
from ray_workflows._model.catalog import Append
from ray_workflows.storage.base import Storage
from ray_workflows.storage.objects import ObjectStorage, SharedStorage
from ray_workflows.storage.objects.records import encode
from ray_workflows.storage.objects.storage import PutOnceStorage
from ray_workflows.storage.sqlite import SqliteStorage
from ray_workflows.testing.builders import OK, make_append, make_holder
from tests.support.fast_s3 import fast_s3
from tests.support.moto import storage_url

TARGET = 0.7

#: Workflows in a group commit, and events of each.
SHAPES = ((1, 1), (1, 1000), (100, 1), (100, 10), (1000, 1), (1000, 10))


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
            end = storage.journals.home.journals.ends.get(append.incarnation.removeprefix("bare-"))
            about = len(encode(end.segment)) - len(end.segment.entry) if end else 300
            key = f"bare/{append.incarnation}/{append.catalog.seq}"
            data = append.entry + os.urandom(about)
            works.append(partial(storage.journals.home.operations.create, key, data))
        for outcome in storage.journals.home.crew.groups(works):
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
            f"workflows that exist. *Bare* writes an entry and a catalog row for each in the same "
            f"batches: inserts into tables without fence, listing indexes or updates; puts in "
            f"parallel. PostgreSQL leaves out rows that do not change (see below). Target: "
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
    yield by_what_is_stored(context)
    yield profile(context)
