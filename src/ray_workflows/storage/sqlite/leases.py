"""The holders in the database of a directory: leases run on the clock of this machine."""

from __future__ import annotations

import time

import msgspec

from ray_workflows._model.catalog import Holder
from ray_workflows.storage.parts import LeaseStore
from ray_workflows.storage.sqlite.connection import QUERIES, fetch_all
from ray_workflows.storage.sqlite.directory import SqliteDirectory
from ray_workflows.storage.validation import decode_holders


class SqliteLeases(LeaseStore):
    """Holders and their leases in the database of a directory."""

    home: SqliteDirectory

    def __init__(self, home: SqliteDirectory) -> None:
        self.home = home

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew the holder's row."""
        with self.home.writer.transaction() as connection:
            row = msgspec.structs.asdict(holder)
            row["lease_until"] = self.now() + lease_seconds
            connection.execute(QUERIES["renew_holder"], row)

    def remove_holder(self, holder_id: str) -> None:
        """Remove the holder's row, if there is one."""
        with self.home.writer.transaction() as connection:
            connection.execute(QUERIES["remove_holder"], {"holder_id": holder_id})

    def read_holders(self) -> list[Holder]:
        """All holders, by id. Unreadable ones are left out: a live holder is renewed soon."""
        with self.home.reader.use() as connection:
            rows = fetch_all(connection, QUERIES["read_holders"], {})
        return decode_holders(rows, where=self.home.reader.path)

    def now(self) -> float:
        """The clock of this machine."""
        return time.time()
