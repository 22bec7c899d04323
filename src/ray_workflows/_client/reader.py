"""What it takes to read workflows: a storage, and who counts as alive. No cluster is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from ray_workflows._capture.values import DetachedReader, ValueReader
from ray_workflows._coordinator.claims import Claims, ProcessProbe, probe_process
from ray_workflows._coordinator.lease import list_rows
from ray_workflows._model.catalog import CatalogQuery, CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.base import Storage

ACTIVE = WorkflowStatus.non_terminating_status()


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
        cluster: the coordinator of the cluster that this process is connected to, as in `Claims`;
            None without a cluster.
    """

    #: Whether the coordinator of the cluster takes over what dead ones left.
    resumes_orphans = False

    def __init__(self, storage: Storage, cluster: str | None = None) -> None:
        self.storage = storage
        self.cluster = cluster

    def claims(self, probe: ProcessProbe = probe_process) -> Claims:
        """Who holds what, as storage has it now."""
        holders = self.storage.read_holders()
        return Claims(holders, self.storage.now(), cluster=self.cluster, probe=probe)

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
        claims: Claims | None = None,
        damaged: list[str] | None = None,
    ) -> Iterator[tuple[CatalogRow, WorkflowStatus]]:
        """The rows of these statuses with their status as users see it, read page by page.

        ``damaged`` gets what is wrong with those that can't be read, and are left out.
        """
        wanted = set(wanted)
        stored = wanted - {WorkflowStatus.RESUMABLE}
        if WorkflowStatus.RESUMABLE in wanted:
            stored.update(ACTIVE)
        if not stored:
            return
        claims = claims or self.claims()
        query = CatalogQuery(statuses=tuple(sorted(stored)), limit=page, newest_first=newest_first)
        for row in list_rows(self.storage, query, damaged):
            status = claims.status(row)
            if status in wanted:
                yield row, status

    def values(self, incarnation: str) -> ValueReader:
        """Reads the values of a workflow. Without a cluster there are no ObjectRefs: what they
        refer to stands in their place."""
        return DetachedReader(self.storage, incarnation)
