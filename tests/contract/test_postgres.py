"""`PostgresStorage` keeps the contract on a real server, and its own promises."""

from __future__ import annotations

import itertools
import os

import psycopg
import pytest

from ray_workflows.storage import Storage
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.testing import StorageContract

SCHEMA_NUMBERS = itertools.count(1)


@pytest.fixture
def schema_url(postgres_url):
    """A schema that does not exist yet, and is gone afterwards."""
    name = f"test_{os.getpid()}_{next(SCHEMA_NUMBERS)}"
    yield f"{postgres_url}{'&' if '?' in postgres_url else '?'}schema={name}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
def storage(schema_url):
    storage = PostgresStorage(schema_url)
    storage.open()
    yield storage
    storage.close()


class TestPostgresStorage(StorageContract):
    @pytest.fixture
    def storage(self, schema_url: str):
        storage: Storage = PostgresStorage(schema_url)
        storage.open()
        yield storage
        storage.close()
