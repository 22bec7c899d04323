"""Scans the catalog for the workflows of a coordinator: takes over those of its earlier lives, or
counts them as evicted; and notices what other coordinators appended to its workflows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

from ray_workflows._coordinator.jobs import Steps
from ray_workflows._coordinator.liveness import LEASE_SECONDS, Liveness
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.recovery import Recovered, recover
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import CatalogQuery, CatalogRow, Page
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError, is_transient

logger = logging.getLogger(__name__)

#: The pause between two scans, in seconds; and without workflows.
CHECK_SECONDS, IDLE_SECONDS = 1.0, LEASE_SECONDS

#: The most rows that scans read per second: at 7 microseconds each, 1.5 % of a core. A coordinator
#: with more workflows scans less often; PostgreSQL notifies it.
ROWS_PER_SECOND = 2_000.0

#: How many workflows are read at once before they are taken over.
READ_AT_ONCE = 50

#: With more earlier lives than this, all their workflows are claimed, so that their leases need not
#: be renewed for ever; and the most workflows at rest that are claimed per second.
MAX_LIVES = 8
CLAIMS_PER_SECOND = 300.0

#: Workflows that are ours and not in memory: their rows, and states or errors.
Found = list[tuple[CatalogRow, "Recovered | Exception"]]


class Look:
    """One scan of all open workflows that are ours.

    Attributes:
        ends: the journal ends of quiet workflows in memory, at the start of the scan.
        listed: those of them that the catalog lists as ours.
        named: the holders that rows name.
        rows: how many rows were read.
        reviewed: how many workflows at rest have to be read nevertheless.
    """

    def __init__(self, ends: dict[str, int]) -> None:
        self.ends = ends
        self.listed: set[str] = set()
        self.named: set[str] = set()
        self.rows = 0
        self.reviewed = 0


class Holdings:
    """Scans the catalog for our workflows periodically.

    It takes over workflows that are not in memory: an earlier life was driving them, their
    submission seemed to have failed, or a claim of ours took effect late. For workflows in memory
    it notices that others have appended to the journal, or taken it over.

    A workflow of an earlier life that is at rest stays in storage, and is claimed when it is read
    again. Until then the lease of that life is renewed, and the workflow counts as evicted.

    Args:
        loop: drives the workflows.
        keep: renews the leases of these holders, and blocks.
    """

    def __init__(self, loop: Loop, keep: Callable[[Iterable[str]], None]) -> None:
        self.loop = loop
        self.keep = keep
        self.started = False
        #: When the last scan ended.
        self.looked_at = float("-inf")
        #: When the holders were read last.
        self.claims_at = float("-inf")
        self.looking = loop.job("look after what is held", self.steps)

    def start(self) -> None:
        """Start scanning."""
        self.started = True
        self.looking.start()

    def look(self) -> None:
        """Scan now, because another coordinator may have appended to a journal."""
        if self.started:
            self.looked_at = float("-inf")
            self.looking.hurry()

    def steps(self) -> Steps:
        loop, active = self.loop, self.loop.active
        ends = {w.workflow_id: w.seq for w in active.values() if self.is_quiet(w)}
        idle = active.listed and not ends and not active.evicted
        if idle and loop.elapsed() - self.looked_at < IDLE_SECONDS:
            return CHECK_SECONDS
        look = Look(ends)
        active.looks += 1
        try:
            claims = None
            if loop.elapsed() - self.claims_at >= IDLE_SECONDS:
                claims = yield loop.activation.read_claims
                self.find_lives(claims)
                yield partial(self.keep, active.kept)
                self.claims_at = loop.elapsed()
            cursor = None
            while True:
                page: Page = yield partial(self.list_page, cursor)
                new = [row for row in page.rows if self.is_new(look, row)]
                new = [row for row in new if not self.leave(look, row)]
                loop.eviction.wake_in_time()
                for start in range(0, len(new), READ_AT_ONCE):
                    found = yield partial(self.read_some, new[start : start + READ_AT_ONCE])
                    loop.store.answered()
                    for row, recovered in found:
                        self.try_to_take(row, recovered)
                cursor = page.cursor
                if cursor is None:
                    break
            if claims is not None:
                unnamed = [each for each in active.lives or () if each not in look.named]
                yield partial(self.bury, unnamed, claims)
        except StorageUnavailableError as error:
            loop.store.failed(error, "Recovery")
            return loop.store.pause
        except StorageCorruptError as error:
            logger.error("What is held is not looked after: %s", error)
            active.lives = active.lives or []
            self.found_all()
            return IDLE_SECONDS
        loop.store.answered()
        self.end(look)
        return max(CHECK_SECONDS, look.rows / ROWS_PER_SECOND)

    def find_lives(self, claims: Liveness) -> None:
        """Learn the earlier lives, once. A life that shows up later and is not dead is a later one,
        which has replaced this process."""
        active, found = self.loop.active, claims.former_lives()
        if active.lives is None:
            active.lives = []
        else:
            known = active.lives
            found = [each for each in found if each not in known and claims.lapsed(each)]
        active.lives += found
        active.kept += tuple(found)

    def is_new(self, look: Look, row: CatalogRow) -> bool:
        """Whether the workflow of a row is not driven here yet. For one that is, checks whether
        others have appended to it."""
        if row.released:
            return False
        active, workflow_id = self.loop.active, row.workflow_id
        look.rows += 1
        look.named.add(row.holder)
        workflow, evicted = active.get(workflow_id), active.evicted.get(workflow_id)
        if workflow is not None:
            look.listed.add(workflow_id)
            if row.seq > workflow.seq and self.is_quiet(workflow):
                self.loop.activation.verify(workflow)
        elif evicted is not None:
            evicted.look = active.looks
            if row.seq > evicted.seq:
                self.loop.activation.bring_back(workflow_id)
        if self.loop.quarantine.is_given_up(row.incarnation):
            return False
        return workflow is None and evicted is None

    def leave(self, look: Look, row: CatalogRow) -> bool:
        """Count a workflow of an earlier life as evicted if it is at rest; False if it is not."""
        loop, active, due_at = self.loop, self.loop.active, row.due_at
        now = loop.clock()
        if due_at is None or due_at <= now or row.holder == active.holder_id:
            return False
        if not loop.storage.lists_current_rows or len(active.lives or ()) > MAX_LIVES:
            # The row may be older than its journal, or too many lives are named: claim it soon.
            look.reviewed += 1
            due_at = min(due_at, now + look.reviewed / CLAIMS_PER_SECOND)
        active.leave(row, due_at)
        return True

    def end(self, look: Look) -> None:
        """Verify workflows that are no longer listed as ours: a coordinator that believed us dead
        has taken them over, canceled or deleted them."""
        loop, active = self.loop, self.loop.active
        self.looked_at = loop.elapsed()
        active.kept = tuple(each for each in active.lives or () if each in look.named)
        self.found_all()
        for workflow_id, seq in look.ends.items():
            workflow = active.get(workflow_id)
            if workflow is None or workflow_id in look.listed:
                continue
            # If it has gone on since the scan began, its own commits will tell.
            if self.is_quiet(workflow) and workflow.seq == seq:
                loop.activation.verify(workflow)
        for workflow_id, evicted in list(active.evicted.items()):
            if evicted.look < active.looks:
                loop.activation.bring_back(workflow_id)
        loop.admit()

    def found_all(self) -> None:
        """The first scan is complete: all workflows of earlier lives are known."""
        if not self.loop.active.listed:
            self.loop.active.listed = True
            self.loop.watchers.listed()

    def is_quiet(self, workflow: Workflow) -> bool:
        """Whether it is driven, and its state is what was last read or committed."""
        return not workflow.busy and not workflow.settled and self.loop.active.drives(workflow)

    # -- what blocks -----------------------------------------------------------------------

    def list_page(self, cursor: str | None) -> Page:
        """A page of open workflows that name us or an earlier life."""
        active = self.loop.active
        query = CatalogQuery(
            statuses=ACTIVE, holders=(*(active.lives or ()), active.holder_id), cursor=cursor
        )
        return self.loop.storage.list_catalog(query)

    def bury(self, unnamed: Iterable[str], claims: Liveness) -> None:
        """Remove the rows of earlier lives that no workflow names and whose lease has lapsed. Rows
        that a workflow still names stay, so that the next life recognizes them as lives of ours."""
        for holder_id in unnamed:
            if claims.lapsed(holder_id):
                self.loop.storage.remove_holder(holder_id)

    def read_some(self, rows: list[CatalogRow]) -> Found:
        """Read workflows back."""
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

    # -- taking ----------------------------------------------------------------------------

    def try_to_take(self, row: CatalogRow, recovered: Recovered | Exception) -> None:
        """As `take`. A workflow for which it raises is released."""
        try:
            self.take(row, recovered)
        except Exception as error:
            self.loop.on_error(f"Taking over workflow '{row.workflow_id}'", error)
            self.loop.let_go(row, error)

    def take(self, row: CatalogRow, recovered: Recovered | Exception) -> None:
        """Take over a workflow; release one that can't be read."""
        loop = self.loop
        known = loop.active.get(row.workflow_id)
        if known is not None:
            # It is in memory by now, maybe by an older reading.
            older = isinstance(recovered, Recovered) and recovered.seq > known.seq
            if older and loop.active.drives(known):
                loop.activation.verify(known)
        elif row.workflow_id in loop.active.evicted:
            return
        elif isinstance(recovered, Exception):
            logger.error("Workflow '%s' is not taken over: %s", row.workflow_id, recovered)
            loop.let_go(row, recovered)
        elif loop.active.may_take(recovered.state):
            loop.activation.take(recovered, msg.Claim())
