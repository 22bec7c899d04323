"""A schema of a PostgreSQL for each test that asks for one, and what looks into it."""

from __future__ import annotations

import os

import psycopg
import pytest

from ray_workflows.storage.postgres import PostgresStorage
from tests.contract.schemas import SCHEMA_NUMBERS, with_parameter


@pytest.fixture
def schema_url(postgres_url):
    """A schema that does not exist yet, and is gone afterwards."""
    name = f"test_{os.getpid()}_{next(SCHEMA_NUMBERS)}"
    yield with_parameter(postgres_url, f"schema={name}")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
def admin(postgres_url, schema_url):
    """A connection of its own whose search path is the schema of the test."""
    schema = schema_url.rpartition("schema=")[2]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"SET search_path = {schema}")
        yield connection


@pytest.fixture
def named(schema_url):
    """A storage whose connections can be counted."""
    name = f"counted_{os.getpid()}_{next(SCHEMA_NUMBERS)}"
    storage = PostgresStorage(with_parameter(schema_url, f"application_name={name}"))
    storage.open()
    yield storage
    storage.close()
