"""`PostgresHome`: the home of the parts of a `PostgresStorage`: a schema, and how to reach it."""

from __future__ import annotations

from typing import Any

from ray_workflows.storage.access import opening
from ray_workflows.storage.parts import Home
from ray_workflows.storage.postgres.listener import Listener
from ray_workflows.storage.postgres.pool import Pool, pool_of
from ray_workflows.storage.postgres.schema import Schema
from ray_workflows.storage.postgres.target import Target


class PostgresHome(Home):
    """A schema of a PostgreSQL database, and the connections of this process to it.

    Args:
        target: the schema and how to connect. Nothing is connected yet.
    """

    def __init__(self, target: Target) -> None:
        self.target: Target = target
        self.schema: Schema = Schema(target)
        self.queries: dict[str, str] = self.schema.queries
        self.pool: Pool = pool_of(target)
        self.listener: Listener | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.target,)

    @property
    def url(self) -> str:
        """Host, port, database and schema; no user and no password."""
        return self.target.url

    def open(self) -> None:
        """Create the schema and its tables if they are missing, and check the user's rights.

        Raises:
            StorageConfigError: wrong password, unknown host or database, no right to create the
                schema, a server that is too old, a schema of a newer release.
            StorageUnavailableError: the server does not answer.
        """
        with opening(), self.pool.use() as connection:
            self.schema.ensure(connection)

    def open_existing(self) -> None:
        """Check that there is a storage here and that it can be read; changes nothing.

        Raises:
            StorageConfigError: as `open`, and if there is none.
            StorageUnavailableError: the server does not answer.
        """
        with opening():
            self.pool.read(self.schema.check_existing)

    def close(self) -> None:
        """Close the idle connections of this process; the next use opens new ones."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.stop()
        self.pool.drop_idle()

    def has_workflows(self) -> bool:
        """Whether the catalog has a row."""
        return bool(self.fetch_one("has_workflows", {})[0])

    def fetch_one(self, name: str, parameters: dict[str, Any]) -> Any:
        """The first row of a query that changes nothing, or None."""
        return self.pool.read(lambda connection: connection.first(self.queries[name], parameters))
