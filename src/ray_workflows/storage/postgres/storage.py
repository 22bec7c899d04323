"""`PostgresStorage`: workflows in a schema of a PostgreSQL database, for any number of clusters.
Needs the extra ``postgres``; the package imports this module only for a ``postgresql:`` URL.
"""

from __future__ import annotations

from typing import Any

from ray_workflows.storage.base import Storage
from ray_workflows.storage.postgres.blobs import BlobRows
from ray_workflows.storage.postgres.home import PostgresHome
from ray_workflows.storage.postgres.journals import PostgresJournals
from ray_workflows.storage.postgres.leases import PostgresLeases
from ray_workflows.storage.postgres.target import Target, parse_target


class PostgresStorage(Storage):
    """Workflows in a schema of a PostgreSQL database (13 or newer, encoding UTF8).

    Any process that reaches the server may use it at once, of any number of clusters. A commit is
    on the server's disk when it is acknowledged, whatever its ``synchronous_commit``. Each process
    has a few connections, opened on demand and closed when idle. Only `open` creates anything.

    Instances pickle with all connection parameters, including the password: they travel to the
    processes of the cluster, and are never stored. Neither ``url`` nor ``repr`` nor any message
    shows the password.

    Args:
        url: ``postgresql://user:password@host:port/database?schema=name``. Missing parts come
            from the PG* variables, the service file and ``~/.pgpass``, as for other programs;
            the default schema is ``ray_workflows``. Other parameters are libpq's, such as
            ``sslmode``.

    Raises:
        StorageConfigError: the URL can't be understood.

    Example:
        >>> PostgresStorage("postgresql://me:secret@db.example.com:5432/work?schema=mine")
        PostgresStorage('postgresql://db.example.com:5432/work?schema=mine')
    """

    def __init__(self, url: str) -> None:
        self.connect_to(parse_target(url))

    def connect_to(self, target: Target) -> None:
        """Compose the parts for a target; nothing is connected yet."""
        self.target: Target = target
        home = PostgresHome(target)
        blobs = BlobRows(home)
        super().__init__(
            journals=PostgresJournals(home, blobs), blobs=blobs, leases=PostgresLeases(home)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.target)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def rebuild(cls: type[PostgresStorage], target: Target) -> PostgresStorage:
    """Unpickle a storage."""
    storage = cls.__new__(cls)
    storage.connect_to(target)
    return storage
