"""The blobs of a `PostgresStorage`, what is swept, and pages from indexes."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import psycopg
import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageCorruptError,
)
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres import blobs as postgres_blobs
from ray_workflows.storage.postgres.appends import Ends, make_statements
from ray_workflows.storage.postgres.listing import compose_listing
from ray_workflows.storage.validation import encode_cursor
from ray_workflows.testing.builders import (
    OK,
    STALE,
    make_append,
)
from tests.contract.schemas import count, schema_of, with_parameter
from tests.ray.marks import wait_until
from tests.support.children import HANG_SECONDS, child, receive


@pytest.fixture
def storage(schema_url):
    storage = PostgresStorage(schema_url)
    storage.open()
    yield storage
    storage.close()


# -- blobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("chunks", [1, 3])
def test_blobs_around_the_size_of_a_chunk(storage, admin, chunks, extra):
    size = chunks * postgres_blobs.CHUNK_BYTES + extra
    data = random.Random(7).randbytes(size)
    pieces = [data[:10], data[10 : size - 5], data[size - 5 :]]
    blob = storage.write_blob("i", "k", pieces)
    assert bytes(storage.read_blob("i", blob)) == data
    assert count(admin, "blob_chunks") == chunks + (extra > 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "UPDATE blob_chunks SET data = overlay(data placing 'X' from 9) WHERE number = 1",
            "check",
        ),
        ("UPDATE blob_chunks SET data = substr(data, 9) WHERE number = 1", "bytes, expected"),
        ("UPDATE blob_chunks SET data = data || '0123'::bytea WHERE number = 2", "bytes, expected"),
        ("DELETE FROM blob_chunks WHERE number = 1", "bytes, expected"),
        ("DELETE FROM blob_chunks", "0 bytes, expected"),
        ("UPDATE blobs SET size = size + 1", "was written with"),
        ("DELETE FROM blobs", "missing"),
    ],
)
def test_damaged_blob_is_corrupt(storage, admin, damage, message):
    blob = storage.write_blob("inc", "key", [b"x" * 2_500_000])
    admin.execute(damage)
    with pytest.raises(
        StorageCorruptError, match=f"'key' of workflow incarnation 'inc'.*{message}"
    ):
        storage.read_blob("inc", blob)
    assert storage.find_blob("inc", "other") is None


def test_a_writer_that_fails_or_loses_leaves_nothing(storage, admin):
    def chunks():
        yield b"x" * 5_000_000
        raise OSError("the producer failed")

    with pytest.raises(OSError, match="the producer failed"):
        storage.write_blob("i", "k", chunks())
    assert count(admin, "blobs") == count(admin, "blob_chunks") == 0

    def overtaken():
        yield b"x" * 5_000_000
        storage.write_blob("i", "k", [b"faster"])

    blob = storage.write_blob("i", "k", overtaken())
    assert bytes(storage.read_blob("i", blob)) == b"faster"
    assert (count(admin, "blobs"), count(admin, "blob_chunks")) == (1, 1)


def peak_memory():
    """The most that this process ever had, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def write_and_read(pipe, url, size):
    storage = PostgresStorage(url)
    piece = bytes(range(256)) * 4096
    storage.read_blob("i", storage.write_blob("i", "warm", [piece, piece]))
    start = peak_memory()
    blob = storage.write_blob("i", "k", (piece for _ in range(size // len(piece))))
    written = peak_memory()
    view = storage.read_blob("i", blob)
    pipe.send((blob.size, written - start, peak_memory() - written, len(view)))


def test_large_blobs_are_in_memory_once_at_most(storage, schema_url):
    size = 256 * 1024 * 1024
    with child(write_and_read, schema_url, size) as (_, pipe):
        stored, writing, reading, length = receive(pipe)
    assert stored == length == size
    assert writing < 32 * 1024 * 1024
    assert reading < size + 32 * 1024 * 1024


# -- sweep ------------------------------------------------------------------------------------


def test_swept_submission_does_not_become_a_workflow(storage, admin):
    storage.write_blob("i", "k", [b"x"])
    assert storage.sweep(0.0) == 1
    assert storage.commit([make_append("w", 0, incarnation="i")]) == [STALE]
    assert storage.sweep(0.0) == 0
    assert count(admin, "tombstones") == 1
    admin.execute("UPDATE tombstones SET buried_at = now() - interval '31 days'")
    assert storage.sweep(0.0) == 0
    assert count(admin, "tombstones") == 0


def test_sweep_goes_by_the_newest_blob(storage, admin):
    for key in ("a", "b"):
        storage.write_blob("i", key, [b"x"])
    old = "UPDATE blobs SET written_at = now() - interval '1000 seconds' WHERE key = %s"
    admin.execute(old, ("a",))
    assert storage.sweep(500.0) == 0
    admin.execute(old, ("b",))
    assert storage.sweep(1500.0) == 0
    assert storage.sweep(500.0) == 1


def test_sweep_spares_what_is_being_created(storage, admin, postgres_url):
    """A creation that began before the tombstone was there keeps its blobs."""
    blob = storage.write_blob("i", "k", [b"x"])
    swept = []
    with psycopg.connect(postgres_url) as creator:
        # As `commit` does it, stopped before its end.
        creator.execute(
            f"INSERT INTO {schema_of(storage)}.catalog VALUES "
            "('w', 'i', 1, 'RUNNING', 'h', 0, NULL, NULL, '{}', '', NULL, false)"
        )
        sweeper = threading.Thread(target=lambda: swept.append(storage.sweep(0.0)), daemon=True)
        sweeper.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_until(lambda: admin.execute(waiting).fetchone()[0], "the sweep waits for the creation")
        creator.commit()
    sweeper.join(HANG_SECONDS)
    assert swept == [0]
    assert bytes(storage.read_blob("i", blob)) == b"x"
    assert count(admin, "tombstones") == 0


def test_interrupted_sweep_is_finished_by_the_next(storage, admin):
    storage.write_blob("i", "k", [b"x"])
    admin.execute("INSERT INTO tombstones (incarnation) VALUES ('i')")
    assert storage.sweep(3600.0) == 1
    assert count(admin, "blobs") == 0


# -- queries ----------------------------------------------------------------------------------

MANY = 100_000


@pytest.fixture(scope="module")
def crowded(postgres_url):
    """A storage with many workflows, most of them over."""
    name = f"test_{os.getpid()}_crowded"
    storage = PostgresStorage(with_parameter(postgres_url, f"schema={name}"))
    storage.open()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            f"""
            INSERT INTO {name}.catalog
            SELECT 'w' || i, 'i' || i, 3,
                CASE WHEN i %% 1000 = 0 THEN 'FAILED' WHEN i %% 100 = 0 THEN 'RUNNING'
                    ELSE 'SUCCESSFUL' END,
                'holder' || i %% 7, i / 10, i, NULL, '{{"a": 1}}', 'd', NULL, false
            FROM generate_series(1, %s) AS i
            """,
            (MANY,),
        )
        connection.execute(
            f"""
            INSERT INTO {name}.journal
            SELECT 'i' || i, 4, 'c', '' FROM generate_series(1, %s) AS i
            """,
            (MANY,),
        )
        yield storage
        storage.close()
        connection.execute(f"DROP SCHEMA {name} CASCADE")


LISTINGS = {
    "all": {},
    "by status": {"statuses": (WorkflowStatus.FAILED, WorkflowStatus.RUNNING)},
    "by holder": {"holders": ("holder3",)},
}


@pytest.fixture(params=["never counted", "counted"])
def planned(request, crowded):
    """The crowded storage before and after the server has counted what is in it."""
    with crowded.journals.home.pool.use() as connection:
        for table in ("catalog", "journal"):
            if request.param == "counted":
                connection.execute(f"ANALYZE {schema_of(crowded)}.{table}")
            else:
                name = (f"{crowded.journals.home.target.schema}.{table}",)
                connection.execute("DELETE FROM pg_statistic WHERE starelid = %s::regclass", name)
                connection.execute(
                    "UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE oid = %s::regclass",
                    name,
                )
    return crowded


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("name", list(LISTINGS))
def test_listing_reads_a_page_from_its_index(planned, name, newest):
    crowded = planned
    query = CatalogQuery(
        **LISTINGS[name], limit=100, cursor=encode_cursor((MANY / 20, "w0")), newest_first=newest
    )
    text, parameters = compose_listing(crowded.journals.home.queries, query)
    with crowded.journals.home.pool.use() as connection:
        (plan,) = connection.first(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", parameters)
    nodes = list(walk(plan[0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") == "catalog"]
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
    # Only what is on the page is read, and nothing is read and thrown away.
    assert all(node["Actual Rows"] <= 101 for node in scans)
    assert not any(node.get("Rows Removed by Filter") for node in scans)
    # The ends of the journals on the page, each by one look.
    ends = [node for node in nodes if node.get("Relation Name") == "journal"]
    assert {node["Node Type"] for node in ends} == {"Index Only Scan"}
    assert all(node["Actual Rows"] <= 1 and node["Actual Loops"] <= 101 for node in ends)


@pytest.mark.parametrize("count", [1, 3, 1000])
@pytest.mark.parametrize("query", ["unchanged", "changed", "some new"])
def test_commit_reads_nothing_but_what_it_appends_to(planned, query, count):
    """However large the tables are, and whatever the server knows of them."""
    ends = Ends()
    numbers = [MANY - 90 * i for i in range(count)]
    group = [make_append(f"w{i}", 4, incarnation=f"i{i}") for i in numbers]
    if query == "unchanged":
        before = [make_append(f"w{i}", 3, incarnation=f"i{i}", commit_id="c") for i in numbers]
        ends.learn(before, [OK] * count)
    if query == "some new":
        group.append(make_append("new", 0))
    (statement,) = make_statements(group, ends)
    explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + without_comments(
        planned.journals.home.queries[statement.query]
    )
    with (
        planned.journals.home.pool.use() as connection,
        connection.transaction(force_rollback=True),
    ):
        (plan,) = connection.first(explain, statement.parameters)
    nodes = list(walk(plan[0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") and "Scan" in node["Node Type"]]
    assert {node["Relation Name"] for node in scans} >= {"journal"}
    assert all(node["Actual Rows"] * node["Actual Loops"] <= count for node in scans)
    assert not any(node.get("Rows Removed by Filter") for node in scans)
    written = [node for node in nodes if node.get("Operation") == "Insert"]
    assert written[-1]["Relation Name"] == "journal"


def walk(node):
    yield node
    for inner in node.get("Plans", ()):
        yield from walk(inner)


def without_comments(query):
    return "\n".join(line for line in query.splitlines() if not line.startswith("--"))


def test_first_page_of_many_workflows(crowded):
    queries = [
        CatalogQuery(limit=100),
        CatalogQuery(limit=100, newest_first=True),
        CatalogQuery(limit=100, statuses=(WorkflowStatus.FAILED,)),
        CatalogQuery(limit=100, statuses=(WorkflowStatus.RUNNING, WorkflowStatus.FAILED)),
        CatalogQuery(limit=100, statuses=(WorkflowStatus.RUNNING,), holders=("holder3",)),
    ]
    for query in queries:

        def took() -> float:
            started = time.perf_counter()
            assert len(crowded.list_catalog(query).rows) == 100
            return time.perf_counter() - started

        # Others may keep the server waiting for a processor.
        wait_until(lambda: took() < 0.1, f"a page within 0.1 s: {query}")  # noqa: B023
