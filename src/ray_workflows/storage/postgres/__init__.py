"""Workflows in a schema of a PostgreSQL database. Needs the extra ``postgres``."""

from ray_workflows.storage.postgres.storage import PostgresStorage

__all__ = ["PostgresStorage"]
