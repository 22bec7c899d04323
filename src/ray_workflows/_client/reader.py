"""What it takes to read workflows: a storage, and who counts as alive. No cluster is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from ray_workflows._capture.values import DetachedReader, ValueReader
from ray_workflows._coordinator.liveness import Liveness, ProcessProbe, probe_process
from ray_workflows._coordinator.recovery import list_rows
from ray_workflows._model.catalog import CatalogQuery, CatalogRow, Condition
from ray_workflows._model.filters import Filter
from ray_workflows._model.status import WORKFLOWS, WorkflowStatus
from ray_workflows.storage.base import Storage

ACTIVE = WorkflowStatus.non_terminating_status()


#: Where few of the rows may be wanted, so many are read at once.
LEAST_ROWS = 1000


def stored_statuses(wanted: Iterable[WorkflowStatus]) -> tuple[WorkflowStatus, ...]:
    """Which statuses rows may have that are to be listed; empty: any."""
    stored = {*wanted}
    if WorkflowStatus.RESUMABLE in stored:
        stored = stored - {WorkflowStatus.RESUMABLE} | {*ACTIVE}
    return tuple(sorted(stored))


def asks_who_lives(wanted: Iterable[WorkflowStatus]) -> bool:
    """Whether the holder of a row decides on whether it is listed."""
    return 0 < len({WorkflowStatus.RESUMABLE, *ACTIVE} & {*wanted}) < 1 + len(ACTIVE)


class Observation(msgspec.Struct, frozen=True):
    """What a journal does not tell of its workflow.

    Attributes:
        status: the status of the workflow as users see it.
        driven: whether a live coordinator holds it.
        now: the time of the storage, in seconds since 1970.
    """

    status: WorkflowStatus
    driven: bool
    now: float


class Reader:
    """Reads the workflows of a storage.

    Args:
        storage: where they are.
        cluster: the coordinator of the cluster that this process is connected to, as in `Liveness`;
            None without a cluster.
    """

    #: Whether the coordinator of the cluster takes over what dead ones left.
    resumes_orphans = False

    def __init__(self, storage: Storage, cluster: str | None = None) -> None:
        self.storage = storage
        self.cluster = cluster

    def claims(self, probe: ProcessProbe = probe_process) -> Liveness:
        """The holders in the storage, and which of them live."""
        holders = self.storage.read_holders()
        return Liveness(holders, self.storage.now(), cluster=self.cluster, probe=probe)

    def status(self, row: CatalogRow) -> WorkflowStatus:
        """The status of a workflow as users see it."""
        if row.status not in ACTIVE:
            return row.status
        return self.claims().status(row)

    def observe(self, row: CatalogRow) -> Observation:
        """What is known of a workflow beside its journal."""
        claims = self.claims()
        driven = not row.released and claims.is_alive(row.holder)
        return Observation(status=claims.status(row), driven=driven, now=claims.now)

    def rows(
        self,
        wanted: Iterable[WorkflowStatus],
        *,
        newest_first: bool = False,
        page: int = CatalogQuery().limit,
        claims: Liveness | None = None,
        damaged: list[str] | None = None,
        conditions: tuple[Condition, ...] = (),
    ) -> Iterator[tuple[CatalogRow, WorkflowStatus]]:
        """The rows of these statuses with their status as users see it, read page by page.

        ``damaged`` gets what is wrong with those that can't be read, and are left out.
        """
        wanted = set(wanted)
        if not wanted:
            return
        claims = claims or self.claims()
        query = CatalogQuery(
            statuses=stored_statuses(wanted),
            limit=page,
            newest_first=newest_first,
            conditions=conditions,
        )
        for row in list_rows(self.storage, query, damaged):
            status = claims.status(row)
            if status in wanted:
                yield row, status

    def page(
        self, filter: Filter, *, newest_first: bool, limit: int, after: str | None
    ) -> tuple[list[tuple[CatalogRow, WorkflowStatus]], str | None, tuple[str, ...]]:
        """A page of the rows that a filter means, each with its status as users see it; the cursor
        that continues it; and what is wrong with rows that can't be read."""
        claims = self.claims()
        wanted = filter.statuses or WORKFLOWS
        query = CatalogQuery(
            statuses=stored_statuses(filter.statuses),
            cursor=after,
            newest_first=newest_first,
            conditions=filter.conditions,
        )
        few = asks_who_lives(filter.statuses)
        found: list[tuple[CatalogRow, WorkflowStatus]] = []
        damaged: list[str] = []
        while True:
            missing = limit - len(found)
            query = msgspec.structs.replace(query, limit=max(missing, LEAST_ROWS * few))
            page = self.storage.list_catalog(query)
            rows = [(row, claims.status(row)) for row in page.rows]
            fitting = [number for number, (_, status) in enumerate(rows) if status in wanted]
            if len(fitting) > missing:
                # Only the storage knows the cursor for the place behind the last of them.
                query = msgspec.structs.replace(query, limit=fitting[missing - 1] + 1)
                page = self.storage.list_catalog(query)
                rows = [(row, claims.status(row)) for row in page.rows]
            found += [each for each in rows if each[1] in wanted]
            damaged += page.damaged
            if page.cursor is None or len(found) >= limit:
                return found, page.cursor, tuple(damaged)
            query = msgspec.structs.replace(query, cursor=page.cursor)

    def values(self, incarnation: str) -> ValueReader:
        """Reads the values of a workflow. Without a cluster there are no ObjectRefs: what they
        refer to stands in their place."""
        return DetachedReader(self.storage, incarnation)
