"""`PostgresStorage` on a server that takes longer for a write than a server may be silent."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import psycopg
import pytest

from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres import pool as postgres_pool
from ray_workflows.testing.builders import OK, STALE, fill, incarnation_of, make_append

NUMBERS = itertools.count(1)

#: How long the server may be silent here, and how long it takes for a write, in seconds.
SILENCE = 0.25
WRITE = 1.0

#: The server gives up what nobody waits for, as behind a pooler.
GIVES_UP = "options=-c%20client_connection_check_interval%3D50ms"

SLOW = """
CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON {schema}.{table} FOR EACH ROW EXECUTE FUNCTION {schema}.slow();
"""


@pytest.fixture
def schema(postgres_url: str) -> Iterator[str]:
    name = f"slow_{os.getpid()}_{next(NUMBERS)}"
    yield name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE".encode())


@pytest.fixture
def storage(postgres_url: str, schema: str) -> Iterator[PostgresStorage]:
    mark = "&" if "?" in postgres_url else "?"
    storage = PostgresStorage(f"{postgres_url}{mark}schema={schema}&{GIVES_UP}")
    storage.open()
    yield storage
    storage.close()


@pytest.mark.parametrize("table", ["journal", "blobs"])
def test_a_write_that_takes_long_succeeds_at_last(
    storage: PostgresStorage,
    postgres_url: str,
    schema: str,
    table: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given up and begun again with the same patience, it would never end."""
    fill(storage, "w")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(SLOW.format(schema=schema, table=table, seconds=WRITE).encode())
    monkeypatch.setattr(postgres_pool.Connection, "silence_seconds", SILENCE)

    def write() -> object:
        if table == "journal":
            return storage.commit([make_append("w", 1)])
        return [OK] if storage.write_blob("i", "k", [b"x" * 3_000_000]).size else None

    done: list[object] = []
    tries = 0
    while not done and tries < 6:
        tries += 1
        with contextlib.suppress(StorageUnavailableError):
            done.append(write())
    # One that was given up may have taken effect after all: then the next one is too late.
    assert done in ([[OK]], [[STALE]]), tries
    # It was too short twice at least: this is no fast server.
    assert tries > 2
    assert len(storage.read_journal(incarnation_of("w"))) == (2 if table == "journal" else 1)
    assert (storage.find_blob("i", "k") is not None) == (table == "blobs")


def test_patience_ends(storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was slow once does not let a server that hangs be waited for as long for ever."""
    now = 1000.0
    monkeypatch.setattr(postgres_pool.time, "monotonic", lambda: now)
    patience = postgres_pool.Patience()
    with storage.journals.home.pool.use() as connection:
        usual = connection.silence_seconds
        for factor in (1, 2, 4, 8, 16, 30, 30):
            with contextlib.suppress(psycopg.OperationalError), patience.over(connection):
                assert connection.silence_seconds == factor * usual
                connection.is_silent = True
                raise psycopg.OperationalError
        connection.is_silent = False
        now += postgres_pool.SILENT_SECONDS
        with patience.over(connection):
            assert connection.silence_seconds == 30 * usual
        now += 1.0
        with patience.over(connection):
            assert connection.silence_seconds == usual
