"""The catalog's columns: one list, which every SQL file follows; storages of earlier releases."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator

import msgspec
import pytest
import xxhash

from ray_workflows._model.catalog import CatalogQuery, CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage import SqliteStorage
from ray_workflows.storage.postgres import schema as postgres_schema
from ray_workflows.storage.postgres.appends import SENT
from ray_workflows.storage.queries import read_queries, read_sql
from ray_workflows.storage.rows import COLUMNS, checksum_of, encode_row
from ray_workflows.storage.sqlite import connection as sqlite_connection
from ray_workflows.testing.builders import OK, fill, list_ids, make_append, make_row

STORED = [*COLUMNS, "digest"]

MIGRATIONS = [sqlite_connection.MIGRATIONS, postgres_schema.MIGRATIONS]

QUERIES = {name: read_queries(f"{name}/queries.sql") for name in ("sqlite", "postgres")}

#: What a release adds a row, changes it and deletes it with that knows the first columns alone.
CREATE = """
INSERT INTO catalog (
    workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
    metadata, plan_digest, error, released
) VALUES ('w2', 'i2', 1, 'RUNNING', 'h', 5.0, NULL, NULL, '{}', 'd', NULL, FALSE)
"""
ADVANCE = """
UPDATE catalog
SET seq = 2, status = 'FAILED', holder = 'h', submitted_at = 1000.0, started_at = 1.0,
    ended_at = 2.0, metadata = '{}', plan_digest = 'd', error = 'e', released = FALSE
WHERE workflow_id = 'w' AND incarnation = 'i-77' AND seq = 1
"""
DELETE = "DELETE FROM catalog WHERE workflow_id = 'w' AND incarnation = 'i-77' AND seq = 2"


# -- the list ----------------------------------------------------------------------------------


def test_the_schemas_have_the_columns_of_the_list() -> None:
    for files in MIGRATIONS:
        text = "\n".join(map(read_sql, files))
        (table,) = re.findall(r"CREATE TABLE \S*\bcatalog \((.*?)\n\)", text, re.DOTALL)
        first = re.findall(r"^    (\w+) ", table, re.MULTILINE)
        added = re.findall(r"ADD COLUMN (\w+)", text)
        # SQLite numbers its rows; the digest came before others did.
        named = [name for name in [*first, *added] if name not in ("id", "digest")]
        assert named == list(COLUMNS)
        assert "digest" in added


def columns(text: str) -> list[str]:
    """The names in a list of columns, without the tables that they are of and what is put in."""
    whole = re.sub(r"greatest\(\w*\.?seq, \(.*?\)\)", "seq", text, flags=re.DOTALL)
    return [re.split(r"[.:]", part.split("=")[0].strip())[-1].strip() for part in whole.split(",")]


@pytest.mark.parametrize("backend", QUERIES)
def test_the_queries_have_the_columns_of_the_list(backend: str) -> None:
    """In its order, wherever they read rows or write them."""
    queries = QUERIES[backend]
    lists = []
    for name in ("read_catalog", "list_page"):
        (found,) = re.findall(r"^SELECT (.*?)\nFROM", queries[name], re.DOTALL | re.MULTILINE)
        lists.append(columns(found))
        # And the seq that the row was stored with.
        assert lists[-1].pop() == "seq"
    for text in queries.values():
        for found in re.findall(r"INSERT INTO \S*\bcatalog \((.*?)\)", text, re.DOTALL):
            lists.append(columns(found))
        for found in re.findall(
            r"UPDATE \S*\bcatalog\b[^=]*?SET (.*?)(?:FROM|WHERE)", text, re.DOTALL
        ):
            if "status =" in found:
                lists.append(["workflow_id", "incarnation", *columns(found)])
    assert len(lists) >= 4
    for found in lists:
        assert found == STORED


def test_what_travels_to_postgres_has_the_columns_of_the_list() -> None:
    text = QUERIES["postgres"]["commit_appends"]
    (record,) = re.findall(r"json_to_recordset\(.*?\) AS \((.*?)\)", text, re.DOTALL)
    assert [part.split()[0] for part in record.split(",")] == list(SENT.values())
    assert [*SENT] == [name for name in STORED if name not in ("incarnation", "seq")]


def test_a_touch_overlooks_no_column() -> None:
    """Each is set, or has to be what it is."""
    text = QUERIES["sqlite"]["touch_workflow"]
    assert set(re.findall(r"(\w+) = :", text)) == set(STORED)


# -- releases before ---------------------------------------------------------------------------


def test_a_column_that_is_added_changes_no_checksum() -> None:
    """Rows that were written before it keep theirs."""
    values = encode_row(make_row("w", "i", 1), str)[:-1]
    alone = xxhash.xxh3_64_hexdigest(msgspec.msgpack.encode(values[:12]))
    assert checksum_of(values) == alone
    row = make_row("w", "i", 1, name="f")
    assert encode_row(row, str)[-1] != encode_row(make_row("w", "i", 1), str)[-1]


@pytest.fixture(params=["sqlite", "postgres"])
def old(request: pytest.FixtureRequest, tmp_path) -> Iterator[tuple]:
    """A storage with a tagged workflow, and what runs the statements of a release before on it."""
    if request.param == "sqlite":
        storage = SqliteStorage(tmp_path)
        storage.open()
        with contextlib.closing(
            sqlite3.connect(tmp_path / "workflows.sqlite", isolation_level=None)
        ) as connection:
            yield storage, connection.execute
    else:
        named, admin = request.getfixturevalue("named"), request.getfixturevalue("admin")
        storage = named
        yield storage, admin.execute
    storage.close()


def test_a_release_before_goes_on(old: tuple) -> None:
    """Its rows have the defaults, and what it deletes leaves nothing."""
    storage, execute = old
    row = fill(storage, "w", name="f", tags={"team": "vision", "n": 5})
    assert execute("SELECT count(*) FROM catalog_tags").fetchone() == (2,)
    execute(CREATE)
    assert storage.read_catalog("w2") == CatalogRow(
        "w2", "i2", 1, WorkflowStatus.RUNNING, "h", 5.0, plan_digest="d"
    )
    execute(ADVANCE)
    advanced = storage.read_catalog("w")
    assert advanced == msgspec.structs.replace(
        row,
        seq=2,
        status=WorkflowStatus.FAILED,
        started_at=1.0,
        ended_at=2.0,
        error="e",
        holder="h",
        plan_digest="d",
    )
    assert list_ids(storage, statuses=(WorkflowStatus.FAILED,)) == ["w"]
    execute(DELETE)
    assert storage.list_catalog(CatalogQuery()).rows[0].workflow_id == "w2"
    assert execute("SELECT count(*) FROM catalog_tags").fetchone() == (0,)


def test_tags_are_those_of_the_row(old: tuple) -> None:
    """However they change: a text or a number each."""
    storage, execute = old
    fill(storage, "w", tags={"team": "vision", "n": 5, "on": True, "t": "5"})
    found = "SELECT tag, text, number, submitted_at FROM catalog_tags ORDER BY tag"
    assert execute(found).fetchall() == [
        ("n", None, 5.0, 1000.0),
        ("on", "true", None, 1000.0),
        ("t", "5", None, 1000.0),
        ("team", "vision", None, 1000.0),
    ]
    assert storage.commit([make_append("w", 1, tags={"team": "größe", "x": 0.5})]) == [OK]
    assert execute(found).fetchall() == [
        ("team", "größe", None, 1000.0),
        ("x", None, 0.5, 1000.0),
    ]
    assert storage.commit([make_append("w", 2, tags={"x": 0.5}, submitted_at=7.0)]) == [OK]
    assert execute(found).fetchall() == [("x", None, 0.5, 7.0)]
    assert storage.commit([make_append("w", 3)]) == [OK]
    assert execute(found).fetchall() == []
