"""`PostgresStorage` runs nothing that others have put into a schema of its search path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import psycopg
import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.queries import read_queries
from ray_workflows.testing.builders import OK, fill, incarnation_of, make_append, make_holder

PUBLIC = f"traps_{os.getpid()}"
SCHEMA = f"owned_{os.getpid()}"

#: Functions of more fitting types than PostgreSQL's own, which take their place in a call that
#: names no schema.
TRAPS = (
    "hashtextextended(text, integer)",
    "unnest(text[])",
    "unnest(bigint[])",
    "unnest(text[], bigint[], text[], text[], bytea[])",
    "format(text, text, text)",
    "array_agg(text)",
    "make_interval(secs double precision)",
    "string_to_array(text, varchar)",
    "pg_notify(varchar, varchar)",
    "set_config(text, text, int)",
)

#: What a name before a parenthesis may be that no schema can be named for: syntax.
SYNTAX = {"greatest", "coalesce", "extract", "values", "from", "in", "as", "and", "any", "array"}


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    """A database user who has a schema in his search path that others may write to."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {PUBLIC}".encode())
        for trap in TRAPS:
            connection.execute(
                f"CREATE FUNCTION {PUBLIC}.{trap} RETURNS text LANGUAGE plpgsql AS "
                f"$$ BEGIN RAISE EXCEPTION 'trapped by {trap}'; END $$".encode()
            )
        mark = "&" if "?" in postgres_url else "?"
        path = f"options=-c%20search_path%3D{PUBLIC}"
        yield f"{postgres_url}{mark}schema={SCHEMA}&{path}"
        for schema in (PUBLIC, SCHEMA):
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


def test_functions_of_others_are_not_called(url: str) -> None:
    storage = PostgresStorage(url)
    storage.open()
    storage.open_existing()
    storage.listen("h1", lambda: None)
    fill(storage, "w", 2)
    appends = [make_append("w", 2, holder="h2"), make_append("v", 0), make_append("u", 0)]
    assert storage.commit(appends) == [OK] * 3
    assert storage.commit([make_append("w", 3, holder="h2"), make_append("v", 1)]) == [OK] * 2
    assert storage.commit([make_append("v", 2)]) == [OK]
    running = (WorkflowStatus.RUNNING,)
    for newest_first in (False, True):
        for statuses in ((), running):
            for holders in ((), ("h2",)):
                query = CatalogQuery(statuses, holders, newest_first=newest_first)
                assert storage.list_catalog(query).rows
    blob = storage.write_blob(incarnation_of("w"), "k", [b"x" * 3_000_000])
    assert storage.read_blob(incarnation_of("w"), blob).nbytes == blob.size
    storage.write_blob("i-orphan", "k", [b"x"])
    assert storage.sweep(0.0) == 1
    storage.renew_holder(make_holder("h1"), 15.0)
    assert len(storage.read_holders()) == 1
    assert storage.delete("u", incarnation_of("u"), 1) == OK
    assert storage.old_blobs(0.0) == [incarnation_of("w")]
    storage.remove_holder("h1")
    storage.close()


def test_every_function_is_named_with_its_schema() -> None:
    """Whatever traps may be thought of."""
    for name, query in read_queries("postgres/queries.sql").items():
        text = re.sub(r"--.*|'[^']*'", "", query)
        text = re.sub(r"\bunnest\(\s+%\(incarnations\)s", "", text)  # Of several arrays.
        called = re.findall(r"(?<![\w.])([a-z_]+)\s?\(", text)
        tables = set(re.findall(r"(?:AS|INTO) (?:\{schema\}\.)?([a-z_]+)\s?\(", text))
        assert set(called) - tables <= SYNTAX | {"with", "from", "where", "rows"}, name
