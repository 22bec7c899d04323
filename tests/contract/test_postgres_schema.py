"""The connections of a `PostgresStorage`, and its schema: its own, of another release, foreign or
gone."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import threading
from functools import partial

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageUnavailableError,
)
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres import pool as postgres_pool
from ray_workflows.storage.postgres import schema as postgres_schema
from ray_workflows.storage.postgres.schema import MIGRATIONS
from ray_workflows.storage.queries import read_sql
from ray_workflows.testing.builders import (
    OK,
    fill,
    in_threads,
    list_ids,
    make_append,
    state,
)
from tests.contract.schemas import TABLES, schema_of, sessions, with_parameter
from tests.ray.marks import wait_until


@pytest.fixture
def storage(schema_url):
    storage = PostgresStorage(schema_url)
    storage.open()
    yield storage
    storage.close()


# -- connections ------------------------------------------------------------------------------


def test_a_process_has_few_connections(named, admin):
    """Whatever the number of threads, and of storages that its tasks brought along."""
    copies = [pickle.loads(pickle.dumps(named)) for _ in range(12)]
    peak = []

    def write(number):
        for seq in range(100):
            assert copies[number].commit([make_append(f"w{number}", seq)]) == [OK]
            if seq % 20 == 0:
                peak.append(sessions(admin, named))

    # psycopg lets threads share a connection in turns.
    in_threads([partial(write, number) for number in range(12)])
    assert max(peak) <= postgres_pool.LIMIT
    assert [len(state(named, f"w{number}")[1]) for number in range(12)] == [100] * 12


def test_idle_connections_are_closed(named, admin, monkeypatch):
    named.close()
    monkeypatch.setattr(postgres_pool, "IDLE_SECONDS", 0.05)
    in_threads([named.now] * 4)
    wait_until(lambda: sessions(admin, named) == 0, "no connection is left")

    def threads():
        return {thread.name for thread in threading.enumerate()}

    wait_until(lambda: "ray-workflows-postgres" not in threads(), "nobody waits to close one")
    assert named.read_holders() == []
    wait_until(lambda: sessions(admin, named) == 0, "no connection is left")


def test_a_storage_that_is_not_used_has_no_connection(named, admin):
    named.close()
    wait_until(lambda: sessions(admin, named) == 0, "no connection is left")
    copy = pickle.loads(pickle.dumps(named))
    assert copy.url == named.url
    assert sessions(admin, named) == 0


def test_an_old_connection_is_replaced(named, admin, monkeypatch):
    monkeypatch.setattr(postgres_pool, "LIFE_SECONDS", -1.0)
    named.now()
    wait_until(lambda: sessions(admin, named) == 0, "no connection is left")


def test_connections_that_the_server_ended_are_replaced(named, admin):
    in_threads([named.now] * 4)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
    admin.execute(ended, (named.journals.home.target.parameters["application_name"],))
    wait_until(lambda: sessions(admin, named) == 0, "they are ended")
    # Not even the first commit fails: its outcome would be unknown.
    assert named.commit([make_append("w", 0)]) == [OK]


def test_an_interrupted_call_leaves_no_answer_to_the_next(named):
    class Interrupt(BaseException):
        pass

    with named.journals.home.pool.use() as connection:
        connection.pgconn.send_query(b"SELECT 1")
        with pytest.raises(Interrupt):
            connection.wait(interrupting(Interrupt))
    assert connection.closed
    assert named.read_catalog("w") is None


def interrupting(error):
    raise error
    yield


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_while_another_thread_commits(storage):
    fill(storage, "w", 1)
    # Some lie idle: a child that used one would speak in its parent's session.
    in_threads([storage.now] * 4)
    stop = threading.Event()

    def commit_until_stopped():
        seq = 1
        while not stop.is_set():
            assert storage.commit([make_append("w", seq)]) == [OK]
            seq += 1
        return seq

    def fork_children():
        codes = []
        for number in range(5):
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    assert storage.journals.home.pool.idle == []
                    assert storage.commit([make_append(f"child{number}", 0)]) == [OK]
                    storage.close()
                    code = 0
                os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop.set()
        return codes

    seq, codes = in_threads([commit_until_stopped, fork_children])
    assert codes == [0] * 5
    assert len(state(storage, "w")[1]) == seq
    assert len(list_ids(storage)) == 6


# -- schema -----------------------------------------------------------------------------------


def names_in(admin):
    found = admin.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace",
        (admin.execute("SHOW search_path").fetchone()[0],),
    )
    return {name for (name,) in found}


def test_everything_is_in_the_schema(schema_url, admin):
    relations = "SELECT relnamespace::regnamespace::text, relname FROM pg_class"
    before = set(admin.execute(relations).fetchall())
    storage = PostgresStorage(schema_url)
    storage.open()
    made = set(admin.execute(relations).fetchall()) - before
    # Large values lie in tables that PostgreSQL makes for them.
    schemas = {schema for schema, _ in made} - {"pg_toast"}
    assert schemas == {storage.journals.home.target.schema}
    assert {"schema_version", *TABLES} <= {name for _, name in made}
    storage.close()


def test_odd_schema_names(postgres_url):
    for name in ("Gr%C3%B6%C3%9Fe", "a%22b", "a%27b%3B--", "select", "a%7Bb"):
        storage = PostgresStorage(with_parameter(postgres_url, f"schema={name}"))
        storage.open()
        storage.open()
        fill(storage, "w", 2)
        storage.write_blob("i", "k", [b"x" * 3_000_000])
        assert list_ids(storage) == ["w"]
        with storage.journals.home.pool.use() as connection:
            connection.execute(f"DROP SCHEMA {schema_of(storage)} CASCADE")
        storage.close()


def test_only_open_creates(schema_url, admin):
    storage = PostgresStorage(schema_url)
    calls = [
        lambda: storage.commit([make_append("w", 0)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.list_catalog(CatalogQuery()),
        lambda: storage.write_blob("i", "k", [b"x"]),
        lambda: storage.sweep(0.0),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailableError, match="missing"):
            call()
    with pytest.raises(StorageConfigError, match="no workflows.*init"):
        storage.open_existing()
    assert admin.execute("SELECT current_schemas(false)").fetchone() == ([],)
    storage.close()


def test_open_again_changes_nothing(storage, admin):
    version = "SELECT xmin, * FROM schema_version"
    before = admin.execute(version).fetchall()
    storage.open()
    storage.open_existing()
    assert admin.execute(version).fetchall() == before


def test_newer_schema_is_refused(storage, admin):
    admin.execute("INSERT INTO schema_version (version) VALUES (99)")
    again = pickle.loads(pickle.dumps(storage))
    for check in (again.open, again.open_existing):
        with pytest.raises(StorageConfigError, match=r"newer release.*99.*Upgrade"):
            check()
    # A storage opened before goes on.
    assert storage.commit([make_append("w", 0)]) == [OK]


def test_a_migration_and_a_running_coordinator(storage, admin, monkeypatch):
    """The next release adds what it needs; the one that runs does not notice."""
    fill(storage, "w", 2)
    step = (
        "ALTER TABLE {schema}.catalog ADD COLUMN weight integer NOT NULL DEFAULT 0;"
        "CREATE INDEX catalog_by_weight ON {schema}.catalog (weight);"
    )
    texts = {"next.sql": step}
    monkeypatch.setattr(postgres_schema, "MIGRATIONS", (*postgres_schema.MIGRATIONS, "next.sql"))
    monkeypatch.setattr(postgres_schema, "read_sql", lambda name: texts.get(name) or read_sql(name))
    with pytest.raises(StorageConfigError, match=rf"version {len(MIGRATIONS)}.*init\(\)"):
        storage.open_existing()
    stop = threading.Event()

    def go_on():
        seq = 2
        while not stop.is_set():
            assert storage.commit([make_append("w", seq)]) == [OK]
            seq += 1
        return seq

    def migrate():
        try:
            copies = [pickle.loads(pickle.dumps(storage)) for _ in range(3)]
            for copy in copies:
                copy.open()
        finally:
            stop.set()

    seq, _ = in_threads([go_on, migrate])
    versions = admin.execute("SELECT version FROM schema_version ORDER BY 1")
    assert [version for (version,) in versions] == [*range(1, len(MIGRATIONS) + 2)]
    assert len(state(storage, "w")[1]) == seq
    monkeypatch.undo()
    assert storage.commit([make_append("w", seq)]) == [OK]
    with pytest.raises(StorageConfigError, match="newer release"):
        storage.open()


def test_failed_migration_changes_nothing(storage, admin, monkeypatch):
    before = names_in(admin)
    monkeypatch.setattr(postgres_schema, "MIGRATIONS", (*postgres_schema.MIGRATIONS, "next.sql"))
    step = "CREATE TABLE {schema}.more (); CREATE TABLE {schema}.catalog ();"
    monkeypatch.setattr(postgres_schema, "read_sql", lambda name: step)
    with pytest.raises(StorageConfigError, match="Something else"):
        storage.open()
    assert names_in(admin) == before
    monkeypatch.undo()
    storage.open()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("CREATE TABLE catalog (x integer)", "Something else is in it.*schema="),
        ("CREATE TABLE schema_version (x integer)", "not of ray-workflows.*schema="),
        ("CREATE TABLE schema_version (version text)", "not of ray-workflows.*schema="),
    ],
)
def test_foreign_tables_are_left_alone(schema_url, admin, made, message):
    schema = admin.execute("SHOW search_path").fetchone()[0]
    admin.execute(f"CREATE SCHEMA {schema}")
    admin.execute(made)
    before = names_in(admin)
    storage = PostgresStorage(schema_url)
    with pytest.raises(StorageConfigError, match=message):
        storage.open()
    assert names_in(admin) == before
    storage.close()


def test_dropped_while_in_use(storage, admin):
    fill(storage, "w")
    admin.execute("SET client_min_messages = error; DROP TABLE journal")
    with pytest.raises(StorageUnavailableError, match="dropped while in use"):
        storage.commit([make_append("w", 1)])


def test_pickle_is_small(storage):
    assert len(pickle.dumps(storage)) < 500
    assert json.dumps(storage.url)
