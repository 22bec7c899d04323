"""What time brings to a coordinator: renewing its lease, taking over, requests left by others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import msgspec

from ray_workflows._coordinator.claims import (
    LEASE_SECONDS,
    RENEW_SECONDS,
)
from ray_workflows._coordinator.jobs import Steps
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.recovery import Recovered, recover
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._environment.store import collect
from ray_workflows._model import inputs as inp
from ray_workflows._model.catalog import CatalogQuery, CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError, is_transient
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: How often the ends of the held journals are looked at for requests of others, in seconds.
TAIL_SECONDS = 1.0

#: Rows of the catalog that may be read in a second to look after what is held: at 7 microseconds
#: each, 1.5 % of a core. Who holds more looks less often; PostgreSQL says when there is something.
ROWS_PER_SECOND = 2_000.0

#: How often unreferenced blobs are swept, and how old they must be: older than any submission
#: takes, because its blobs are written before the workflow exists. In seconds.
SWEEP_SECONDS = 3600.0
SWEEP_GRACE_SECONDS = 24 * 3600.0

#: Workflows that are read before they are taken into hand, and the next ones read.
READ_AT_ONCE = 50

ACTIVE = WorkflowStatus.non_terminating_status()

#: What was found of workflows that an earlier life of this coordinator was driving.
Found = list[tuple[CatalogRow, "Recovered | Exception"]]


class Lease:
    """Keeps the holder's row fresh, and finds workflows that earlier lives of it left behind.

    ``seconds``: how long the holder counts as alive after a renewal.
    """

    def __init__(self, loop: Loop, seconds: float = LEASE_SECONDS) -> None:
        self.loop = loop
        self.holder = loop.holder
        self.seconds = seconds
        self.renew_seconds = seconds * RENEW_SECONDS / LEASE_SECONDS
        #: What earlier lives left is looked for; it is in hand.
        self.recovering = False
        self.recovered = False
        self.renewing = loop.job("renew the lease", self.renew)
        self.recovery = loop.job("take over what earlier lives left", self.take_over)
        self.tailing = loop.job("look for what others left in journals", self.look_at_tails)
        self.sweeping = loop.job("sweep blobs", self.sweep)

    def start(self) -> None:
        """Take the lease, take over, and keep watch."""
        self.renewing.start()
        self.tailing.start()
        self.sweeping.start(SWEEP_SECONDS)

    def renew(self) -> Steps:
        loop = self.loop
        asked_at = loop.elapsed()
        try:
            yield lambda: loop.storage.renew_holder(self.holder, self.seconds)
        except Exception as error:
            loop.store.failed(error, "The lease")
            return min(loop.store.pause, self.renew_seconds)
        loop.store.answered()
        # By now, not by when it was asked for: what was not started since counts.
        lapsed = loop.elapsed() > loop.lease_until
        if not self.recovering:
            self.recovering = True
            self.recovery.start()
        elif lapsed:
            logger.warning("The lease lapsed: every workflow is read again.")
            for workflow in list(loop.active.values()):
                if loop.active.drives(workflow):
                    loop.verify(workflow)
        loop.lease_until = asked_at + self.seconds
        return self.renew_seconds

    def take_over(self) -> Steps:
        """Take into hand what nobody drives: what earlier lives were driving, and what is ours.

        Again and again: a commit of theirs may take effect late, a claim of ours may find the
        journal grown, and a submission that seemed to have failed may be there.
        """
        loop = self.loop
        held = frozenset(loop.active)
        try:
            rows, loop.active.inheritance.lives = yield lambda: self.list_left(held)
            unread = loop.active.inheritance.unread = {row.workflow_id for row in rows}
            for start in range(0, len(rows), READ_AT_ONCE):
                some = rows[start : start + READ_AT_ONCE]
                found = yield partial(self.read_some, some)
                loop.store.answered()
                for row, recovered in found:
                    self.try_to_take(row, recovered)
                unread.difference_update(row.workflow_id for row in some)
        except StorageUnavailableError as error:
            loop.store.failed(error, "Recovery")
            return loop.store.pause
        except StorageCorruptError as error:
            logger.error("Nothing is taken over: %s", error)
            loop.active.inheritance.unread = set()
            self.recovered = True
            return LEASE_SECONDS
        loop.store.answered()
        self.recovered = True
        return self.later(RENEW_SECONDS if rows else LEASE_SECONDS)

    def list_left(self, held: frozenset[str]) -> tuple[list[CatalogRow], list[str]]:
        """Rows of what nobody drives, and the earlier lives. Blocks."""
        storage, claims = self.loop.storage, self.loop.read_claims()
        former = self.loop.active.inheritance.lives
        if former is None:
            former = claims.former_lives()
        rows: list[CatalogRow] = []
        named: set[str] = set()
        query = CatalogQuery(statuses=ACTIVE, holders=(*former, self.holder.holder_id))
        for row in list_rows(storage, query):
            if row.released:
                continue
            named.add(row.holder)
            if row.workflow_id not in held:
                rows.append(row)
        for holder_id in former:
            # A live lease is nobody's who is dead, whatever we take it for; and what is still
            # named by a workflow, in hand or not, the next life must know for a life of ours.
            if holder_id not in named and claims.lapsed(holder_id):
                storage.remove_holder(holder_id)
        return rows, former

    def read_some(self, rows: list[CatalogRow]) -> Found:
        """Read workflows back. Blocks."""
        found: Found = []
        for row in rows:
            try:
                recovered = recover(self.loop.storage, row.workflow_id)
            except Exception as error:
                if is_transient(error):
                    raise
                found.append((row, error))
                continue
            if recovered is not None:
                found.append((row, recovered))
        return found

    def try_to_take(self, row: CatalogRow, recovered: Recovered | Exception) -> None:
        """As `take_found`; one that meets a bug is let go of."""
        try:
            self.take_found(row, recovered)
        except Exception as error:
            self.loop.on_error(f"Taking over workflow '{row.workflow_id}'", error)
            self.loop.let_go(row, error)

    def take_found(self, row: CatalogRow, recovered: Recovered | Exception) -> None:
        """Take into hand what was found; let go of what can't be read."""
        loop = self.loop
        known = loop.active.get(row.workflow_id)
        if known is not None:
            # It came into hand meanwhile, and maybe by an older reading.
            older = isinstance(recovered, Recovered) and recovered.seq > known.seq
            if older and loop.active.drives(known):
                loop.verify(known)
        elif isinstance(recovered, Exception):
            logger.error("Workflow '%s' is not taken over: %s", row.workflow_id, recovered)
            loop.let_go(row, recovered)
        elif loop.active.may_take(recovered.state):
            loop.take(recovered, inp.Claim())

    def later(self, seconds: float) -> float:
        """When to look after what is held again: later if that is much."""
        return max(seconds, len(self.loop.active) / ROWS_PER_SECOND)

    def look(self) -> None:
        """Look at the tails of our journals now: somebody may have appended."""
        self.tailing.hurry()

    def look_at_tails(self) -> Steps:
        """Find what others left in the journals of our workflows.

        What is not listed as ours any more was taken over, canceled or deleted by somebody who
        thought us dead.
        """
        loop = self.loop
        ends = {w.workflow_id: w.seq for w in loop.active.values() if self.is_quiet(w)}

        def work() -> dict[str, int]:
            query = CatalogQuery(statuses=ACTIVE, holders=(self.holder.holder_id,))
            return {row.workflow_id: row.seq for row in list_rows(loop.storage, query)}

        if not ends:
            return self.later(TAIL_SECONDS)
        try:
            listed = yield work
        except StorageUnavailableError:
            # The renewals of the lease say so.
            return self.later(TAIL_SECONDS)
        for workflow_id, seq in ends.items():
            workflow = loop.active.get(workflow_id)
            # One that has gone on since knows its end.
            if workflow is None or not self.is_quiet(workflow) or workflow.seq != seq:
                continue
            if workflow_id not in listed or listed[workflow_id] > seq:
                loop.verify(workflow)
        return self.later(TAIL_SECONDS)

    def is_quiet(self, workflow: Workflow) -> bool:
        """Whether it is driven, and its state is what was last read or committed."""
        return not workflow.busy and not workflow.settled and self.loop.active.drives(workflow)

    def sweep(self) -> Steps:
        """Remove blobs of submissions that never arrived, of interrupted deletions, and what
        workflows shared that are gone."""
        loop = self.loop

        def work() -> None:
            collect(loop.storage)
            loop.storage.sweep(SWEEP_GRACE_SECONDS)

        try:
            yield work
        except Exception as error:
            logger.warning("Unreferenced blobs were not swept: %s", error)
        return SWEEP_SECONDS


def list_rows(
    storage: Storage, query: CatalogQuery, damaged: list[str] | None = None
) -> Iterator[CatalogRow]:
    """All rows of a query, page by page. ``damaged`` gets what is wrong with those left out."""
    while True:
        page = storage.list_catalog(query)
        if damaged is not None:
            damaged += page.damaged
        yield from page.rows
        if page.cursor is None:
            return
        query = msgspec.structs.replace(query, cursor=page.cursor)
