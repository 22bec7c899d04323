"""Which coordinator holds a workflow, and whether that coordinator still lives.

Liveness only keeps coordinators from duelling. Safety comes from the journal: it refuses a commit
of a coordinator that has not read the journal's end.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from ray_workflows._model.catalog import CatalogRow, Holder
from ray_workflows._model.status import WorkflowStatus

#: A holder that has not renewed its row for this long, in seconds, counts as dead.
LEASE_SECONDS = 15.0
#: How much too long a lease may seem, in seconds: by rounding, and because the storage's clock is
#: read after the lease.
CLOCK_SLACK = 5.0
#: How often a holder renews, in seconds. A holder with a shorter lease renews more often in
#: proportion.
RENEW_SECONDS = 4.0

#: Whether the process of a holder exists. None: this process can't find out.
ProcessProbe = Callable[[Holder], bool | None]


def this_host() -> str:
    """Identity of the booted machine and of its process namespace.

    Two containers on one machine share the boot id but not their process ids.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"unknown-{uuid.getnode():x}"
    return f"{boot}/{namespace}"


def process_started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may itself contain parentheses and spaces.
    fields = text.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return int(fields[19])


def this_holder(coordinator: str) -> Holder:
    """The identity of this process as a holder."""
    return Holder(
        holder_id=uuid.uuid4().hex,
        coordinator=coordinator,
        host=this_host(),
        pid=os.getpid(),
        started_ticks=process_started(os.getpid()) or 0,
    )


def probe_process(holder: Holder) -> bool | None:
    """Whether the process of a holder exists, if it was on this host; else None."""
    if not holder.started_ticks or holder.host != this_host():
        return None
    return process_started(holder.pid) == holder.started_ticks


class Liveness:
    """The holders at one moment, and whether each of them lives.

    ``me``: the asking coordinator. ``cluster``: the coordinator of an asking reader's cluster,
    which Ray always restarts. For a reader its earlier lives count as alive, because the
    coordinator goes on with their workflows when these are due.
    """

    def __init__(
        self,
        holders: Iterable[Holder],
        now: float,
        *,
        me: Holder | None = None,
        cluster: str | None = None,
        probe: ProcessProbe = probe_process,
    ) -> None:
        self.holders = {holder.holder_id: holder for holder in holders}
        self.now = now
        self.me = me
        self.cluster = cluster
        self.probe = probe

    def former_lives(self) -> list[str]:
        """Ids of earlier lives of the asking coordinator."""
        if self.me is None:
            return []
        return [
            holder.holder_id
            for holder in self.holders.values()
            if holder.coordinator == self.me.coordinator and holder.holder_id != self.me.holder_id
        ]

    def lapsed(self, holder_id: str) -> bool:
        """Whether the holder has a row, and its lease has lapsed."""
        holder = self.holders.get(holder_id)
        return holder is not None and holder.lease_until <= self.now

    def is_alive(self, holder_id: str) -> bool:
        """Whether the holder may still be driving its workflows."""
        holder = self.holders.get(holder_id)
        if holder is None:
            return False
        if holder.coordinator == self.cluster:
            return True
        if self.me is not None and holder.coordinator == self.me.coordinator:
            # The asking coordinator takes over from its earlier lives, so they count as dead.
            return holder_id == self.me.holder_id
        return self.may_run(holder)

    def may_run(self, holder: Holder) -> bool:
        """Whether the process of a holder may still run."""
        exists = self.probe(holder)
        if exists is False or holder.lease_until <= self.now:
            return False
        # A lease longer than possible was given before the storage's clock was set back.
        return exists is True or holder.lease_until <= self.now + LEASE_SECONDS + CLOCK_SLACK

    def status(self, row: CatalogRow) -> WorkflowStatus:
        """The status of a workflow as users see it."""
        if row.status in WorkflowStatus.non_terminating_status() and (
            row.released or not self.is_alive(row.holder)
        ):
            return WorkflowStatus.RESUMABLE
        return row.status
