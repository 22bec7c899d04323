"""Failover: takes over the workflows of dead coordinators.

Part of a coordinator with `init(auto_resume=True)`. See ``docs/decisions/012-auto-resume.md``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import msgspec

from ray_workflows._coordinator.jobs import Steps
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.liveness import LEASE_SECONDS, RENEW_SECONDS, Liveness
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.recovery import Recovered, list_rows, recover
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import CatalogQuery, CatalogRow, Holder, Page
from ray_workflows.exceptions import (
    StorageUnavailableError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    is_transient,
)
from ray_workflows.storage.histories import History

logger = logging.getLogger(__name__)

#: How often to scan for dead holders, in seconds.
CHECK_SECONDS = 1.0
#: The pause between two walks through all open workflows, in seconds.
WALK_SECONDS = 15.0
#: How long a lapsed lease must be seen unchanged before its holder counts as dead, in seconds: a
#: live holder would have renewed it.
PATIENCE_SECONDS = 1.25 * RENEW_SECONDS
#: How many orphans one scan reads; if there are more, the next scan follows at once.
AT_ONCE = 100

#: If this many coordinators in a row die within this many seconds after claiming a workflow,
#: without progress in it, the workflow may have killed them.
QUICK_DEATHS = 3
QUICK_SECONDS = 120.0

#: The events that a coordinator commits when it takes over a workflow, before any progress, and how
#: many of the last journal entries are searched for them.
TAKING_UP = (
    ev.WorkflowClaimed,
    ev.WorkflowResumed,
    ev.WorkflowStarted,
    ev.ValuesLost,
    ev.AttemptStarted,
)
LAST_ENTRIES = 10 * QUICK_DEATHS

#: Seconds after the end of its lease when the row of a holder that no workflow names is removed.
BURY_SECONDS = 3600.0


class Orphan(msgspec.Struct, frozen=True):
    """A workflow without a live holder: its state, or the reason why it can't be taken over."""

    row: CatalogRow
    recovered: Recovered | None
    error: Exception | None = None


class Findings(msgspec.Struct):
    """The results of one scan."""

    orphans: list[Orphan] = []
    #: Whether these are all orphans of the scan.
    complete: bool = True
    #: Holders that are dead.
    dead: frozenset[str] = frozenset()
    #: The seconds by which the storage's clock is ahead of ours, if it was read.
    ahead: float | None = None
    #: The page of the walk that was read.
    page: Page | None = None


class Failover:
    """Scans for orphans periodically: RUNNING or PENDING workflows with a dead holder.

    A scan reads the holders. If one has died, the scan lists its workflows. Besides, each scan
    reads a page of all open workflows, because a commit may take effect after its sender's death,
    and a copied workflow has a holder that never was here.
    """

    def __init__(self, loop: Loop, lease: Lease) -> None:
        self.loop = loop
        self.lease = lease
        #: Dead holders whose workflows were all listed and taken.
        self.searched: frozenset[str] = frozenset()
        self.ahead = 0.0
        #: By incarnation, the end of a journal that could not be read. It is not read again until
        #: it has grown.
        self.unreadable: dict[str, int] = {}
        #: When and where the walk goes on, and the holders that it has seen.
        self.walk_at = float("-inf")
        self.cursor: str | None = None
        self.named: set[str] = set()
        #: Each holder's lease as last seen, and since when it is unchanged.
        self.noticed: dict[str, tuple[float, float]] = {}
        self.looking = loop.job("look for workflows of dead coordinators", self.steps)

    def look(self) -> None:
        """Start scanning."""
        self.looking.start()

    def steps(self) -> Steps:
        loop = self.loop
        room = loop.admission.left(AT_ONCE)
        if not self.loop.active.listed or not room:
            return CHECK_SECONDS
        held = frozenset(loop.active)
        walks = loop.elapsed() >= self.walk_at
        try:
            findings = yield lambda: self.search(held, room, walks)
        except StorageUnavailableError:
            # The renewal of the lease reports it.
            return CHECK_SECONDS
        except Exception as error:
            logger.error("Workflows of dead coordinators are not looked for: %s", error)
            return WALK_SECONDS
        return self.found(findings)

    def found(self, findings: Findings) -> float:
        """Take over orphans, up to the limits. Returns the seconds until the next scan."""
        loop = self.loop
        done = [self.try_to_take(orphan) for orphan in findings.orphans]
        ids = [orphan.row.workflow_id for orphan in findings.orphans]
        taken = [repr(workflow_id) for workflow_id in ids if workflow_id in loop.active]
        if taken:
            names = ", ".join(taken[:10]) + (" ..." if len(taken) > 10 else "")
            logger.warning("Taking over what dead coordinators left (%d): %s", len(taken), names)
        if findings.ahead is not None:
            self.ahead = findings.ahead
        if findings.complete and all(done):
            if findings.page is not None:
                self.walked(findings.page)
            else:
                self.searched = findings.dead
        return 0.0 if taken else CHECK_SECONDS

    def walked(self, page: Page) -> None:
        """Move the walk to the next page."""
        self.named.update(row.holder for row in page.rows)
        self.cursor = page.cursor
        if page.cursor is None:
            self.walk_at = self.loop.elapsed() + WALK_SECONDS
            named, self.named = frozenset(self.named), set()
            self.loop.offloader.call(lambda: self.bury(named), lambda result: None)

    def try_to_take(self, orphan: Orphan) -> bool:
        """As `take`. An orphan that can't be taken is left alone until its journal has grown."""
        try:
            return self.take(orphan)
        except Exception as error:
            self.loop.on_error(f"Taking over workflow '{orphan.row.workflow_id}'", error)
            self.unreadable[orphan.row.incarnation] = orphan.row.seq
            return True

    def take(self, orphan: Orphan) -> bool:
        """Take over an orphan; False if a later scan has to find it again."""
        loop, row, recovered = self.loop, orphan.row, orphan.recovered
        if row.workflow_id in loop.active:
            return False
        if orphan.error is not None:
            logger.error("Workflow '%s' is not taken over: %s", row.workflow_id, orphan.error)
        if recovered is None:
            self.unreadable[row.incarnation] = row.seq
            return True
        if orphan.error is not None:
            loop.let_go(recovered.row, orphan.error)
            return True
        if not loop.admission.left(1):
            return False
        loop.activation.take(recovered, msg.Claim(may_wait=True))
        return True

    # -- what runs on a thread of `Offloader` -----------------------------------------------------

    def search(self, held: frozenset[str], room: int, walks: bool) -> Findings:
        """Find dead holders, and read up to ``room`` workflows of them and of the next page."""
        storage, holders = self.loop.storage, self.loop.storage.read_holders()
        # `Holdings` handles the workflows of this coordinator and its earlier lives.
        ours = {self.loop.holder_id, *(self.loop.active.lives or ())}
        others = [holder for holder in holders if holder.holder_id not in ours]
        self.notice(others)
        suspects = frozenset(holder.holder_id for holder in others if self.is_suspect(holder))
        if not walks and suspects <= self.searched:
            return Findings(dead=suspects)
        now = storage.now()
        claims = Liveness([self.believed(h, now) for h in others], now, probe=self.loop.probe)
        dead = frozenset(h.holder_id for h in others if not claims.is_alive(h.holder_id))
        findings = Findings(dead=dead, ahead=now - self.loop.clock())
        rows: Iterable[CatalogRow] = ()
        if dead - self.searched:
            query = CatalogQuery(statuses=ACTIVE, holders=tuple(sorted(dead - self.searched)))
            rows = list_rows(storage, query)
        elif walks:
            query = CatalogQuery(statuses=ACTIVE, cursor=self.cursor)
            findings.page = storage.list_catalog(query)
            rows = findings.page.rows
        for row in rows:
            if row.workflow_id in held or self.unreadable.get(row.incarnation) == row.seq:
                continue
            if row.released or row.holder in ours or claims.is_alive(row.holder):
                continue
            if len(findings.orphans) == room:
                findings.complete = False
                break
            findings.orphans += self.read(row)
        return findings

    def notice(self, holders: list[Holder]) -> None:
        """Note since when each lease is unchanged, on our own clock."""
        now, before = self.loop.elapsed(), self.noticed
        self.noticed = {}
        for holder in holders:
            known = before.get(holder.holder_id)
            same = known is not None and known[0] == holder.lease_until
            since = known[1] if known is not None and same else now
            self.noticed[holder.holder_id] = (holder.lease_until, since)

    def unchanged(self, holder: Holder) -> float:
        """The seconds since we last saw the holder's lease change."""
        return self.loop.elapsed() - self.noticed[holder.holder_id][1]

    def believed(self, holder: Holder, now: float) -> Holder:
        """The holder with a corrected lease. The storage's clock may be set: forward, so that a
        live holder seems dead until it renews; or back, so that a dead one seems alive."""
        seconds = self.unchanged(holder)
        if seconds < PATIENCE_SECONDS:
            return msgspec.structs.replace(holder, lease_until=now + LEASE_SECONDS)
        if seconds > LEASE_SECONDS + PATIENCE_SECONDS:
            return msgspec.structs.replace(holder, lease_until=float("-inf"))
        return holder

    def is_suspect(self, holder: Holder) -> bool:
        """Whether a holder seems dead by our estimate of the storage's clock, which saves reading
        the clock: some storages need two requests for that."""
        if self.unchanged(holder) > LEASE_SECONDS + PATIENCE_SECONDS:
            return True
        if holder.lease_until <= self.loop.clock() + self.ahead:
            return True
        return self.loop.probe(holder) is False

    def read(self, row: CatalogRow) -> Iterator[Orphan]:
        """Read an orphan; nothing if it is none any more."""
        try:
            recovered = recover(self.loop.storage, row.workflow_id)
            if recovered is None or recovered.row.holder != row.holder or recovered.row.released:
                return
            if recovered.row.status not in ACTIVE:
                return
            yield Orphan(row, recovered, self.suspicion(recovered))
        except WorkflowNotFoundError:
            return
        except Exception as error:
            if is_transient(error):
                raise
            yield Orphan(row, None, error)

    def suspicion(self, recovered: Recovered) -> Exception | None:
        """Why the workflow should be left alone; None if it need not be."""
        if recovered.state.epoch < QUICK_DEATHS:
            return None
        row = recovered.row
        history = History(self.loop.storage, row, max(0, row.seq - LAST_ENTRIES))
        taken_at: list[float] = []
        for event in history.events():
            if not isinstance(event, TAKING_UP):
                taken_at.clear()
            elif isinstance(event, (ev.WorkflowClaimed, ev.WorkflowResumed)):
                taken_at.append(event.at)
        if len(taken_at) < QUICK_DEATHS:
            return None
        if self.loop.clock() - taken_at[-QUICK_DEATHS] > QUICK_SECONDS:
            return None
        return WorkflowNotResumableError(
            row.workflow_id,
            f"{QUICK_DEATHS} coordinators died within {QUICK_SECONDS:.0f} s of taking it over, and "
            f"none got anywhere with it. It is not taken over by itself any more: look into their "
            f"logs, then resume({row.workflow_id!r}).",
        )

    def bury(self, named: frozenset[str]) -> None:
        """Remove the rows of long dead holders that no open workflow names."""
        storage = self.loop.storage
        latest = storage.now() - BURY_SECONDS
        for holder in storage.read_holders():
            if holder.lease_until < latest and holder.holder_id not in named:
                storage.remove_holder(holder.holder_id)
