"""Damage is seen: whatever accident befalls the bytes of a storage, a read gives the right value or
`StorageCorruptError`, never a wrong value, another error, or none at all.

Two things no checksum can tell. What disappears with all that names it (a catalog row in SQL) is
not found. And the newest entries of a running workflow, where nothing but the journal knows of
them, are as if they had not been written.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql

from ray_workflows._coordinator.liveness import Liveness
from ray_workflows._model.catalog import CatalogQuery, Holder
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.objects import SharedStorage
from ray_workflows.storage.objects.client import Found
from ray_workflows.storage.objects.records import FORMAT, Lease, Pointer, Row, Segment, decode
from ray_workflows.storage.objects.records import Layout as Table
from ray_workflows.storage.queries import read_sql
from ray_workflows.storage.rows import COLUMNS
from ray_workflows.storage.sqlite import connection as database
from tests.contract.damage import Layout, Piece, damages, fill, judge, put, reads, result
from tests.journals.golden import DIRECTORY, look_as_then, seen_of, unpack
from tests.support.put_once import MemoryObjectStorage, MemoryOperations

#: The accidents of each seed in a test run. More by hand: $RAY_WORKFLOWS_DAMAGES, and another seed
#: with $RAY_WORKFLOWS_SEED.
COUNT = int(os.environ.get("RAY_WORKFLOWS_DAMAGES", "60"))
SEEDS = [int(each) for each in os.environ.get("RAY_WORKFLOWS_SEED", "1 2 5 13").split()]

#: Each accident costs a server 0.3 s, and the others 0.02 to 0.07 s.
POSTGRES_COUNT = max(COUNT // 5, 1)

GOLDEN = DIRECTORY / "0.1.0"

#: The last entry of "running".
OBJECT_UNKNOWN: tuple[Piece, ...] = (("journal", "journal/i-running/0000000003"),)


class Files:
    """Files below a directory: what is journal, id, index, blob, each by its first directory."""

    def __init__(self, root: Path, skipped: tuple[str, ...]) -> None:
        self.root = root
        self.skipped = skipped

    def pieces(self) -> list[Piece]:
        found = sorted(path for path in self.root.rglob("*") if path.is_file())
        paths = [path.relative_to(self.root) for path in found]
        return [(path.parts[0], str(path)) for path in paths if path.parts[0] not in self.skipped]

    def read(self, piece: Piece) -> bytes:
        return (self.root / piece[1]).read_bytes()

    def write(self, piece: Piece, data: bytes) -> None:
        path = self.root / piece[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def remove(self, piece: Piece) -> None:
        (self.root / piece[1]).unlink(missing_ok=True)


class Shared(Files):
    """A shared directory. Holders are left out: what they say lasts for seconds."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, ("holders", "clocks", "tmp", "layout"))
        self.unknown_to_others = OBJECT_UNKNOWN

    def storage(self) -> Storage:
        return SharedStorage(self.root)


class Objects:
    """The keys of an object store."""

    unknown_to_others = OBJECT_UNKNOWN

    def __init__(self, root: Path) -> None:
        self.operations = MemoryOperations(lambda: 5000.0)

    def storage(self) -> Storage:
        return MemoryObjectStorage(self.operations, lambda: 5000.0)

    def pieces(self) -> list[Piece]:
        keys = [key.partition("/") for key in sorted(self.operations.objects)]
        skipped = ("holders", "clocks", "layout")
        return [(kind, f"{kind}/{rest}") for kind, _, rest in keys if kind not in skipped]

    def read(self, piece: Piece) -> bytes:
        return self.operations.objects[piece[1]].data

    def write(self, piece: Piece, data: bytes) -> None:
        self.operations.objects[piece[1]] = Found(data, 5000.0)

    def remove(self, piece: Piece) -> None:
        self.operations.objects.pop(piece[1], None)


class Rows:
    """Rows of tables by their keys, without the columns of the key: what SQL storages have."""

    #: Each table with the columns of its key, and the others.
    tables: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    mark = "?"
    unknown_to_others: tuple[Piece, ...] = ()

    def execute(self, query: str, values: Any = ()) -> list[Any]:
        raise NotImplementedError

    def pieces(self) -> list[Piece]:
        found = []
        for table, (key, _) in self.tables.items():
            columns = ", ".join(key)
            for row in self.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}"):
                found.append((table, tuple(row)))
        return found

    def where(self, piece: Piece) -> str:
        return " AND ".join(f"{name} = {self.mark}" for name in self.tables[piece[0]][0])

    def read(self, piece: Piece) -> Any:
        columns = ", ".join(self.tables[piece[0]][1])
        query = f"SELECT {columns} FROM {piece[0]} WHERE {self.where(piece)}"
        (row,) = self.execute(query, piece[1])
        return tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)

    def write(self, piece: Piece, data: Any) -> None:
        key, others = self.tables[piece[0]]
        names = ", ".join((*key, *others))
        bound = [self.bound(value) for value in (*piece[1], *data)]
        marks = ", ".join(mark for mark, _ in bound)
        values = [value for _, value in bound]
        self.execute(f"INSERT INTO {piece[0]} ({names}) VALUES ({marks})", values)

    def bound(self, value: Any) -> tuple[str, Any]:
        """What stands in a query for a value, and what is bound to it. The database takes no text
        that is not UTF-8."""
        if isinstance(value, str):
            value = value.encode(errors="surrogateescape").decode(errors="replace")
        return self.mark, value

    def remove(self, piece: Piece) -> None:
        self.execute(f"DELETE FROM {piece[0]} WHERE {self.where(piece)}", piece[1])


CATALOG = (*COLUMNS[2:], "digest")


class Sqlite(Rows):
    """The tables of an embedded storage, and its blob files."""

    tables = {
        # Rows are unique by their incarnations: exchanged with the journals they lead to.
        "catalog": (("workflow_id",), ("incarnation", *CATALOG)),
        "journal": (("incarnation", "seq"), ("commit_id", "entry")),
    }

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = Files(
            root, ("workflows.sqlite", "workflows.sqlite-wal", "workflows.sqlite-shm")
        )

    def storage(self) -> Storage:
        return SqliteStorage(self.root)

    def execute(self, query: str, values: Any = ()) -> list[Any]:
        path = self.root / "workflows.sqlite"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            # Damage knows no constraints; two rows of one incarnation can't be.
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute("PRAGMA synchronous = OFF")
            return connection.execute(query, values).fetchall()

    def bound(self, value: Any) -> tuple[str, Any]:
        if isinstance(value, str):
            return "CAST(? AS TEXT)", value.encode(errors="surrogateescape")
        return super().bound(value)

    def pieces(self) -> list[Piece]:
        return [*super().pieces(), *self.files.pieces()]

    def read(self, piece: Piece) -> Any:
        return self.files.read(piece) if piece[0] == "blobs" else super().read(piece)

    def write(self, piece: Piece, data: Any) -> None:
        if piece[0] == "blobs":
            self.files.write(piece, data)
        else:
            super().write(piece, data)

    def remove(self, piece: Piece) -> None:
        if piece[0] == "blobs":
            self.files.remove(piece)
        else:
            super().remove(piece)


class Postgres(Rows):
    """The tables of a PostgreSQL schema."""

    tables = {
        **Sqlite.tables,
        "blobs": (("id",), ("incarnation", "key", "size", "checksum")),
        "blob_chunks": (("blob_id", "number"), ("data",)),
    }
    mark = "%s"
    #: Its row says the same before it and after it, and is not written again.
    unknown_to_others = (("journal", ("i-running", 3)),)
    numbers = itertools.count()

    def __init__(self, url: str) -> None:
        self.schema = f"damage_{os.getpid()}_{next(self.numbers)}"
        self.url = f"{url}{'&' if '?' in url else '?'}schema={self.schema}"
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(self.schema)))

    def storage(self) -> Storage:
        from ray_workflows.storage.postgres import PostgresStorage

        return PostgresStorage(self.url)

    def execute(self, query: str, values: Any = ()) -> list[Any]:
        cursor = self.connection.execute(query.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self.connection.execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")
        self.connection.close()


LAYOUTS = {"sqlite": Sqlite, "shared": Shared, "objects": Objects, "postgres": Postgres}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Layout]:
    if request.param == "postgres":
        with contextlib.closing(Postgres(request.getfixturevalue("postgres_url"))) as postgres:
            yield postgres
    else:
        yield LAYOUTS[request.param](tmp_path / "store")


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_a_read_is_right_or_says_damage(layout: Layout, seed: int) -> None:
    count = POSTGRES_COUNT if isinstance(layout, Postgres) else COUNT
    storage = layout.storage()
    storage.open()
    fill(storage)
    storage.close()
    before = {piece: layout.read(piece) for piece in layout.pieces()}
    storage = layout.storage()
    right = {name: result(read) for name, read in reads(storage).items()}
    storage.close()
    assert not [value for value in right.values() if isinstance(value, Exception)]
    seen = happened = 0
    for what, contents in itertools.islice(damages(layout, seed), count):
        # What the database itself keeps from being does not count.
        with contextlib.suppress(sqlite3.Error, psycopg.Error):
            put(layout, contents)
            happened += 1
            storage = layout.storage()
            for name, read in reads(storage).items():
                try:
                    found = result(read)
                except Exception as error:
                    raise AssertionError(f"{what}: {name} raised {error!r}") from error
                judge((what, contents), name, right[name], found)
                seen += found != right[name]
            storage.close()
        put(layout, {piece: before[piece] for piece in contents})
    assert happened > count / 2
    assert seen > count / 2


@pytest.mark.parametrize(
    ("column", "damage"),
    [
        ("lease_until", "'x'"),
        ("pid", "x'ff'"),
        ("started_ticks", "'zz'"),
        ("coordinator", "x''"),
        ("host", "x'fffe'"),
        ("host", "CAST(x'fffe' AS TEXT)"),
    ],
)
def test_a_damaged_holder_is_in_the_way_of_no_other(
    tmp_path: Path, column: str, damage: str
) -> None:
    """Reading the status of a workflow reads all holders."""
    layout = Sqlite(tmp_path)
    storage = layout.storage()
    storage.open()
    good, bad = (Holder(name, f"c-{name}", "here", 1, 1) for name in ("good", "bad"))
    for holder in (good, bad):
        storage.renew_holder(holder, 15.0)
    layout.execute(f"UPDATE holders SET {column} = {damage} WHERE holder_id = 'bad'")
    claims = Liveness(storage.read_holders(), storage.now())
    assert claims.is_alive("good")
    assert claims.is_alive("bad") in (True, False)
    storage.renew_holder(bad, 15.0)
    assert Liveness(storage.read_holders(), storage.now()).is_alive("bad")
    storage.close()


def test_a_text_that_is_no_utf8_is_damage_of_its_row_alone(tmp_path: Path) -> None:
    layout = Sqlite(tmp_path)
    storage = layout.storage()
    storage.open()
    fill(storage)
    before = storage.list_catalog(CatalogQuery()).rows
    layout.execute("UPDATE catalog SET error = CAST(x'fffe' AS TEXT) WHERE workflow_id = 'running'")
    page = storage.list_catalog(CatalogQuery())
    assert page.rows == tuple(row for row in before if row.workflow_id != "running")
    assert len(page.damaged) == 1
    with pytest.raises(StorageCorruptError, match="'running'"):
        storage.read_catalog("running")
    storage.close()


def test_no_flipped_bit_of_an_object_is_taken_for_another_release(tmp_path: Path) -> None:
    """Whatever kind of object it is, and also if the bit is in its format or checksum."""
    layout = Objects(tmp_path)
    storage = layout.storage()
    storage.open()
    fill(storage)
    storage.renew_holder(Holder("h", "c", "here", 1, 1), 15.0)
    storage.close()
    kinds = {"journal": Segment, "ids": Pointer, "index": Row, "holders": Lease, "layout": Table}
    for key, found in layout.operations.objects.items():
        kind = kinds.get(key.partition("/")[0])
        if kind is None:
            continue
        decode(kind, found.data, key)
        for number in range(len(found.data) * 8):
            flipped = bytearray(found.data)
            flipped[number // 8] ^= 1 << number % 8
            with pytest.raises(StorageCorruptError, match=f"{re.escape(key)} is damaged"):
                decode(kind, bytes(flipped), key)
        for other in range(256):
            if other != FORMAT[0]:
                with pytest.raises(StorageCorruptError, match="is damaged"):
                    decode(kind, bytes((other,)) + found.data[1:], key)
        del kinds[key.partition("/")[0]]
    assert not kinds


# -- what releases before 0.2.0 wrote ----------------------------------------------------------


def test_a_database_of_release_0_1_is_read_as_it_was(tmp_path: Path) -> None:
    """Its rows have no digests, and its entries no links."""
    with contextlib.closing(sqlite3.connect(tmp_path / "workflows.sqlite")) as connection:
        connection.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
        connection.executescript(read_sql("sqlite/schema_1.sql"))
        connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA journal_mode = WAL")
        goldens = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))]
        for golden in goldens:
            row = golden["row"]
            values = [json.dumps(row[name]) if name == "metadata" else row[name] for name in row]
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO catalog ({', '.join(row)}) VALUES ({marks})", values)
            for seq, (commit_id, entry) in enumerate(golden["entries"], 1):
                values = [row["incarnation"], seq, commit_id, unpack(entry)]
                connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", values)
        connection.commit()
    storage = SqliteStorage(tmp_path)
    storage.open()
    for golden in goldens:
        golden["seen"]["tasks"] = [seen_of(task) for task in golden["seen"]["tasks"]]
        for key, data in golden["blobs"].items():
            storage.write_blob(golden["row"]["incarnation"], key, [unpack(data)])
        assert look_as_then(storage, golden) == golden["seen"]
    storage.close()


def test_a_row_that_an_earlier_release_has_changed_since_is_believed(tmp_path: Path) -> None:
    """A coordinator of release 0.1 goes on beside a newer one: it knows nothing of digests."""
    layout = Sqlite(tmp_path)
    storage = layout.storage()
    storage.open()
    fill(storage)
    before = storage.read_catalog("running")
    assert before is not None
    layout.execute(
        "UPDATE catalog SET seq = seq + 1, holder = 'h-old' WHERE workflow_id = 'running'"
    )
    assert storage.read_catalog("running") == msgspec.structs.replace(
        before, seq=before.seq + 1, holder="h-old"
    )
    storage.close()


def test_objects_of_release_0_1_are_read(tmp_path: Path) -> None:
    """They don't say under which key they were written."""
    layout = Objects(tmp_path)
    storage = layout.storage()
    storage.open()
    fill(storage)
    right = {name: result(read) for name, read in reads(storage).items()}
    storage.close()
    for piece in layout.pieces():
        data = layout.read(piece)
        if piece[0] == "blobs":
            size = int.from_bytes(data[4:8], "big")
            head = without_key(piece[1], data[8 : 8 + size])
            layout.write(piece, data[:4] + len(head).to_bytes(4, "big") + head + data[8 + size :])
        else:
            body = without_key(piece[1], data[5:])
            layout.write(piece, FORMAT + zlib.crc32(body).to_bytes(4, "big") + body)
    storage = layout.storage()
    assert {name: result(read) for name, read in reads(storage).items()} == right
    storage.close()


def without_key(key: str, body: bytes) -> bytes:
    """A record without its last field."""
    *fields, last = msgspec.msgpack.decode(body)
    assert last == key
    return msgspec.msgpack.encode(fields)
