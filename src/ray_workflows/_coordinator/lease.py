"""What time brings to a coordinator: renewing its lease, taking over, requests left by others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec

from ray_workflows._coordinator.claims import (
    LEASE_SECONDS,
    RENEW_SECONDS,
    Claims,
    ProcessProbe,
    probe_process,
)
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.recovery import Recovered, recover
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.state import Phase, WorkflowState
from ray_workflows._model import inputs as inp
from ray_workflows._model.catalog import CatalogQuery, CatalogRow, Holder
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: How often the ends of the held journals are looked at for requests of others, in seconds.
TAIL_SECONDS = 1.0

ACTIVE = WorkflowStatus.non_terminating_status()

#: What was found of workflows that an earlier life of this coordinator was driving.
Found = list[tuple[CatalogRow, "Recovered | StorageCorruptError"]]


class Lease:
    """Keeps the holder's row fresh, and finds workflows that earlier lives of it left behind."""

    def __init__(self, loop: Loop, holder: Holder, probe: ProcessProbe = probe_process) -> None:
        self.loop = loop
        self.holder = holder
        self.probe = probe
        #: What earlier lives left is in hand.
        self.recovered = False

    def start(self) -> None:
        """Take the lease, take over, and keep watch."""
        self.renew()
        self.look_at_tails()

    def renew(self) -> None:
        loop = self.loop
        started_at = loop.clock()

        def then(result: object) -> None:
            if isinstance(result, Exception):
                loop.storage_failed(result, "The lease")
                loop.after(min(loop.backoff(), RENEW_SECONDS), self.renew)
                return
            loop.storage_answered()
            lapsed = started_at > loop.lease_until
            loop.lease_until = started_at + LEASE_SECONDS
            if not self.recovered:
                self.take_over()
            elif lapsed:
                logger.warning("The lease lapsed: every workflow is read again.")
                for workflow in list(loop.workflows.values()):
                    loop.verify(workflow)
            loop.after(RENEW_SECONDS, self.renew)

        loop.io.call(lambda: loop.storage.renew_holder(self.holder, LEASE_SECONDS), then)

    def take_over(self) -> None:
        """Claim what earlier lives of this coordinator were driving."""
        storage = self.loop.storage

        def work() -> tuple[Found, list[str]]:
            former = self.read_claims().former_lives()
            found: Found = []
            if not former:
                return found, former
            for row in list_rows(storage, CatalogQuery(statuses=ACTIVE, holders=tuple(former))):
                if row.released:
                    continue
                try:
                    recovered = recover(storage, row.workflow_id)
                except StorageCorruptError as error:
                    found.append((row, error))
                    continue
                if recovered is not None:
                    found.append((row, recovered))
            return found, former

        self.loop.call_storage(work, self.took, what="Recovery")

    def took(self, result: Any) -> None:
        if isinstance(result, StorageCorruptError):
            logger.error("Nothing is taken over: %s", result)
            self.recovered = True
            return
        found, former = result
        for row, recovered in found:
            if isinstance(recovered, StorageCorruptError):
                logger.error("Workflow '%s' is not taken over: %s", row.workflow_id, recovered)
                unread = WorkflowState(row.workflow_id, row.incarnation)
                self.loop.quarantine(Workflow(unread, row.seq, row), recovered)
                continue
            workflow = Workflow(recovered.state, recovered.seq, recovered.row)
            workflow.inputs.append(inp.Claim(holder=self.holder.holder_id))
            self.lose_unstored(workflow)
            if recovered.state.cancel_requested:
                workflow.inputs.append(inp.Cancel())
            if recovered.state.status is WorkflowStatus.PENDING:
                self.loop.waiting_room.append(row.workflow_id)
            self.loop.hold(workflow)
            self.loop.touch(workflow)
        self.recovered = True
        if former:
            self.loop.after(RENEW_SECONDS, lambda: self.forget_former_lives(former))

    def forget_former_lives(self, former: list[str]) -> None:
        """Remove the rows of earlier lives, once nothing is left that is known by them."""
        loop = self.loop

        def work() -> bool:
            query = CatalogQuery(statuses=ACTIVE, holders=tuple(former), limit=1)
            if loop.storage.list_catalog(query).rows:
                return False
            for holder_id in former:
                loop.storage.remove_holder(holder_id)
            return True

        def then(result: object) -> None:
            if result is not True:
                loop.after(LEASE_SECONDS, lambda: self.forget_former_lives(former))

        loop.io.call(work, then)

    def lose_unstored(self, workflow: Workflow) -> None:
        """Nothing is live after a takeover: what was not checkpointed is gone."""
        lost = tuple(
            number
            for number, task in workflow.state.tasks.items()
            if task.phase is Phase.SUCCEEDED and task.outcome and not task.outcome.stored
        )
        if lost:
            workflow.inputs.append(inp.LoseValues(tasks=lost))

    def look_at_tails(self) -> None:
        """Find requests that others left in the journals of our workflows."""
        loop = self.loop

        def work() -> dict[str, int]:
            query = CatalogQuery(statuses=ACTIVE, holders=(self.holder.holder_id,))
            return {row.workflow_id: row.seq for row in list_rows(loop.storage, query)}

        def then(result: Any) -> None:
            if not isinstance(result, Exception):
                for workflow_id, seq in result.items():
                    workflow = loop.workflows.get(workflow_id)
                    if workflow is not None and not workflow.busy and seq > workflow.seq:
                        loop.verify(workflow)
            loop.after(TAIL_SECONDS, self.look_at_tails)

        if loop.workflows:
            loop.io.call(work, then)
        else:
            loop.after(TAIL_SECONDS, self.look_at_tails)

    def read_claims(self) -> Claims:
        """The holders as they are now. Blocks: call it through `Io`."""
        storage = self.loop.storage
        return Claims(storage.read_holders(), storage.now(), me=self.holder, probe=self.probe)


def list_rows(storage: Storage, query: CatalogQuery) -> Iterator[CatalogRow]:
    """All rows of a query, page by page."""
    while True:
        page = storage.list_catalog(query)
        yield from page.rows
        if page.cursor is None:
            return
        query = msgspec.structs.replace(query, cursor=page.cursor)
