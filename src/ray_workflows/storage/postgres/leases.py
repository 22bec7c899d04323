"""The holders of a schema of a PostgreSQL database: leases run on the clock of the server."""

from __future__ import annotations

import msgspec

from ray_workflows._model.catalog import Holder
from ray_workflows.storage.parts import LeaseStore
from ray_workflows.storage.postgres.home import PostgresHome


class PostgresLeases(LeaseStore):
    """Holders and their leases in a schema."""

    home: PostgresHome

    def __init__(self, home: PostgresHome) -> None:
        self.home = home

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew the holder's row; the lease runs on the server's clock."""
        row = {**msgspec.structs.asdict(holder), "lease_seconds": float(lease_seconds)}
        with self.home.pool.use() as connection:
            connection.execute(self.home.queries["renew_holder"], row)

    def remove_holder(self, holder_id: str) -> None:
        """Remove the holder's row, if there is one."""
        with self.home.pool.use() as connection:
            connection.execute(self.home.queries["remove_holder"], {"holder_id": holder_id})

    def read_holders(self) -> list[Holder]:
        """All holders, by id."""
        rows = self.home.pool.read(
            lambda connection: connection.execute(self.home.queries["read_holders"]).fetchall()
        )
        return [Holder(*row) for row in rows]

    def now(self) -> float:
        """The clock of the server."""
        now: float = self.home.fetch_one("now", {})[0]
        return now
