"""Reads workflows with a storage alone, and no cluster."""

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


#: Rows read at once if only few of them may match.
LEAST_ROWS = 1000


def stored_statuses(wanted: Iterable[WorkflowStatus]) -> tuple[WorkflowStatus, ...]:
    """The stored statuses of rows that may have a wanted status; empty: any."""
    stored = {*wanted}
    if WorkflowStatus.RESUMABLE in stored:
        stored = stored - {WorkflowStatus.RESUMABLE} | {*ACTIVE}
    return tuple(sorted(stored))


def asks_who_lives(wanted: Iterable[WorkflowStatus]) -> bool:
    """Whether listing a row depends on the liveness of its holder."""
    return 0 < len({WorkflowStatus.RESUMABLE, *ACTIVE} & {*wanted}) < 1 + len(ACTIVE)


class Observation(msgspec.Struct, frozen=True):
    """Facts about a workflow that are not in its journal.

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

    #: Whether the cluster's coordinator takes over workflows of dead ones.
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
        """The facts about a workflow that are not in its journal."""
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
        """The rows with a wanted status, and that status as users see it, read page by page.

        Appends to ``damaged`` what is wrong with rows that are left out.
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
        """A page of the rows that match a filter, each with its status as users see it; the cursor
        of the next page; and what is wrong with rows that can't be read."""
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
                # Read again up to the last fitting row, because only the storage makes cursors.
                query = msgspec.structs.replace(query, limit=fitting[missing - 1] + 1)
                page = self.storage.list_catalog(query)
                rows = [(row, claims.status(row)) for row in page.rows]
            found += [each for each in rows if each[1] in wanted]
            damaged += page.damaged
            if page.cursor is None or len(found) >= limit:
                return found, page.cursor, tuple(damaged)
            query = msgspec.structs.replace(query, cursor=page.cursor)

    def values(self, incarnation: str) -> ValueReader:
        """Reads the values of a workflow. Without a cluster, ObjectRefs are replaced by their
        values.
        """
        return DetachedReader(self.storage, incarnation)
