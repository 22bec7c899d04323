"""All that is stored in a storage, by name, read around the library."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from ray_workflows.storage.objects import ObjectStorage


def in_files(root: Path) -> dict[str, bytes]:
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def in_sqlite(root: Path) -> dict[str, bytes]:
    found = {name: data for name, data in in_files(root).items() if ".sqlite" not in name}
    with contextlib.closing(sqlite3.connect(root / "workflows.sqlite")) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            found.update({f"{table} {n}": repr(row).encode() for n, row in enumerate(rows)})
    return found


def in_postgres(url: str, schema: str) -> dict[str, bytes]:
    import psycopg

    found = {}
    with psycopg.connect(url) as connection:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
        for (table,) in connection.execute(query, [schema]).fetchall():
            if table != "schema_version":
                rows = connection.execute(f"SELECT * FROM {schema}.{table}").fetchall()
                found.update({f"{table} {n}": repr(row).encode() for n, row in enumerate(rows)})
    return found


def in_bucket(storage: ObjectStorage) -> dict[str, bytes]:
    import obstore

    store = storage.journals.home.operations.store()  # type: ignore[attr-defined]
    names = [meta["path"] for page in obstore.list(store) for meta in page]
    return {name: bytes(obstore.get(store, name).bytes()) for name in names}
