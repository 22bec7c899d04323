"""The schema of a `PostgresStorage`: creates and migrates it, and refuses foreign tables."""

from __future__ import annotations

import logging
from typing import Any

from psycopg import errors, sql

from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.postgres.errors import reason_of
from ray_workflows.storage.postgres.pool import Connection
from ray_workflows.storage.postgres.target import Target
from ray_workflows.storage.queries import read_queries, read_sql

logger = logging.getLogger(__name__)

#: The migration files in their order: number n brings the schema to version n.
MIGRATIONS: tuple[str, ...] = (
    "postgres/schema_1.sql",
    "postgres/schema_2.sql",
    "postgres/schema_3.sql",
)

#: The oldest supported server, as ``server_version_num``. Older ones are out of support.
OLDEST_SERVER = 130000

QUERIES = read_queries("postgres/queries.sql")

#: Errors because of existing objects or missing rights: no retry helps.
REFUSED = (errors.InsufficientPrivilege, errors.DuplicateObject, errors.DuplicateTable)


def for_schema(text: str, schema: str) -> str:
    """A query with the quoted name of its schema."""
    return text.replace("{schema}", sql.Identifier(schema).as_string(None))


class Schema:
    """A target's schema, and the queries for it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.queries = {name: for_schema(text, target.schema) for name, text in QUERIES.items()}
        quoted = sql.Identifier(target.schema).as_string(None)
        self.names: dict[str, Any] = {
            "schema_name": target.schema,
            "schema_text": quoted,
        }

    def ensure(self, connection: Connection) -> None:
        """Create or migrate the schema if needed, and check that it can be used.

        Raises:
            StorageConfigError: it can't be used; the message names the remedy.
        """
        exists = self.check_server(connection, writes=True)
        version = self.version(connection) if exists else 0
        if version < len(MIGRATIONS):
            with connection.patient():
                self.migrate(connection)
        self.check_version(version)
        self.check_rights(connection)

    def check_existing(self, connection: Connection) -> None:
        """Check that the schema is there and can be read. Changes nothing.

        Raises:
            StorageConfigError: there is none, or it can't be read; the message names the remedy.
        """
        if not self.check_server(connection, writes=False):
            raise StorageConfigError(
                f"There are no workflows in {self.target.url}: it has no schema "
                f"{self.target.schema!r} of ray-workflows. Check database and ?schema=; init() "
                f"creates one."
            )
        version = self.version(connection)
        self.check_version(version)
        if version < len(MIGRATIONS):
            raise StorageConfigError(
                f"{self.target.url} has schema version {version}, and this release reads "
                f"{len(MIGRATIONS)}. Call init() once: it brings the schema up to date."
            )
        try:
            connection.first(self.queries["read_holders"])
        except errors.InsufficientPrivilege as error:
            raise self.refused(error) from None

    def check_server(self, connection: Connection, *, writes: bool) -> bool:
        """Whether the schema is there; raises if the server or database can't be used at all."""
        try:
            found = connection.first(self.queries["read_server"], self.names)
        except errors.InsufficientPrivilege as error:
            raise self.refused(error) from None
        number, encoding, fsync, read_only, _, has_table = found
        url = self.target.url
        if number < OLDEST_SERVER:
            raise StorageConfigError(
                f"{url} is PostgreSQL {number // 10000}; ray-workflows needs "
                f"{OLDEST_SERVER // 10000} or newer. Upgrade the server."
            )
        if encoding != "UTF8":
            raise StorageConfigError(
                f"The database of {url} has the encoding {encoding}, which can't hold every "
                f"workflow id. Create one with: createdb --encoding=UTF8 --template=template0 NAME"
            )
        if writes and read_only == "on":
            raise StorageConfigError(
                f"{url} takes no changes: it is a standby, or default_transaction_read_only is "
                f"on. Name the primary, or all servers with commas between."
            )
        if writes and fsync == "off":
            logger.warning(
                "%s runs with fsync = off: workflows that were acknowledged can be lost when its "
                "machine fails. Turn fsync on.",
                url,
            )
        return bool(has_table)

    def version(self, connection: Connection) -> int:
        """The version of an existing schema."""
        try:
            found = connection.first(self.queries["read_schema_version"])
        except errors.InsufficientPrivilege as error:
            raise self.refused(error) from None
        except (errors.UndefinedColumn, errors.UndefinedFunction):
            raise self.foreign() from None
        if not isinstance(found[0], int):
            raise self.foreign()
        return found[0]

    def check_version(self, version: int) -> None:
        """Raise if a newer release wrote the schema."""
        if version > len(MIGRATIONS):
            raise StorageConfigError(
                f"{self.target.url} was made or changed by a newer release of ray-workflows "
                f"(schema version {version}; this one knows up to {len(MIGRATIONS)}). Upgrade "
                f"ray-workflows here."
            )

    def migrate(self, connection: Connection) -> None:
        """Migrate the schema to the newest version, unless another process has done it."""
        try:
            with connection.transaction():
                connection.execute(self.queries["lock_schema"], self.names)
                connection.execute(self.queries["fix_search_path"])
                found = connection.first(self.queries["read_server"], self.names)
                has_schema, has_table = found[4:]
                version = self.version(connection) if has_table else 0
                if not has_schema:
                    connection.execute(self.queries["create_schema"])
                for number, name in enumerate(MIGRATIONS[version:], version + 1):
                    connection.execute(for_schema(read_sql(name), self.target.schema))
                    connection.execute(self.queries["write_schema_version"], {"version": number})
        except REFUSED as error:
            raise self.refused(error) from None

    def check_rights(self, connection: Connection) -> None:
        """Raise if this user lacks a right that a coordinator needs."""
        missing = connection.first(self.queries["read_missing_rights"], self.names)[0]
        if missing:
            name = self.names["schema_text"]
            raise StorageConfigError(
                f"This user lacks rights in {self.target.url} ({missing}). As the owner: GRANT "
                f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO the_user"
            )

    def refused(self, error: Exception) -> StorageConfigError:
        """The error for a missing right, or for a name that is taken."""
        name = self.names["schema_text"]
        url = self.target.url
        if not isinstance(error, errors.InsufficientPrivilege):
            return StorageConfigError(
                f"Schema {name} of {url} can't be set up: {reason_of(error)}. Something else is "
                f"in it; choose another one with ?schema=name."
            )
        return StorageConfigError(
            f"Schema {name} of {url} can't be used by this user: {reason_of(error)}. Let an "
            f"administrator run: CREATE SCHEMA IF NOT EXISTS {name}; GRANT ALL ON SCHEMA {name} TO "
            f"the_user (or GRANT CREATE ON DATABASE, so that init() creates it)."
        )

    def foreign(self) -> StorageConfigError:
        """The error for foreign tables with our names."""
        return StorageConfigError(
            f"Schema {self.target.schema!r} of {self.target.url} holds tables that are not of "
            f"ray-workflows. Choose another one with ?schema=name."
        )
