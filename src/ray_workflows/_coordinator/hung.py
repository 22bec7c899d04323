"""Ends the process if a call of the storage never returns; Ray then starts the coordinator anew.

Every storage bounds its calls. But a disk or a server may hold a call in the kernel for ever. Then
the process seems alive but can't commit, or can't renew its lease.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ray_workflows._coordinator.jobs import Steps
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.loop import Loop
from ray_workflows._executor.timers import end_process

logger = logging.getLogger(__name__)

#: How long a commit, or a renewal of the lease, may take, in seconds: far longer than any storage's
#: timeout, because the process's Ray tasks end with it.
HUNG_SECONDS = 900.0

#: Seconds between two checks. Two in a row must see the same call: after a long stop of the
#: process, results that arrived meanwhile are processed before the second check.
CHECK_SECONDS = 30.0


class HungCalls:
    """Watches for commits and lease renewals that hang.

    Args:
        loop: its commits are watched.
        lease: its renewals are watched.
        end: ends the process.
    """

    def __init__(self, loop: Loop, lease: Lease, end: Callable[[], None] = end_process) -> None:
        self.loop = loop
        self.lease = lease
        self.end = end
        #: Since when each call was hanging at the last check.
        self.seen: dict[str, float] = {}
        loop.job("look for calls that never return", self.look).start(CHECK_SECONDS)

    def look(self) -> Steps:
        """End the process if a call hangs."""
        calls = {
            "a commit": self.loop.store.committing_since,
            "the renewal of the lease": self.lease.renewing.waits_since,
        }
        latest = self.loop.elapsed() - HUNG_SECONDS
        hung = {
            what: since for what, since in calls.items() if since is not None and since < latest
        }
        for what, since in hung.items():
            if self.seen.get(what) == since:
                logger.critical(
                    "The storage %s has not returned from %s for %.0f s. The process ends; Ray "
                    "starts the coordinator anew, which goes on with what it was driving.",
                    *(self.loop.storage.url, what, self.loop.elapsed() - since),
                )
                self.end()
        self.seen = hung
        return CHECK_SECONDS
        yield  # It waits for nothing itself.
