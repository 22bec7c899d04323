"""Schemas of PostgreSQL in which tests look."""

from __future__ import annotations

import itertools

from psycopg import sql

SCHEMA_NUMBERS = itertools.count(1)

TABLES = ("catalog", "catalog_tags", "journal", "holders", "blobs", "blob_chunks", "tombstones")


def with_parameter(url, parameter):
    return f"{url}{'&' if '?' in url else '?'}{parameter}"


def sessions(admin, storage):
    """How many connections the storages of this schema have."""
    found = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
        (storage.journals.home.target.parameters["application_name"],),
    )
    return found.fetchone()[0]


def count(admin, table):
    return admin.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def schema_of(storage):
    return sql.Identifier(storage.journals.home.target.schema).as_string(None)
