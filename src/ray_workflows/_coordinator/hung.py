"""Calls of the storage that never return: the process ends, and Ray starts the coordinator anew.

Every storage bounds its calls. But a disk or a server may hold one for ever in the kernel, and then
nothing is committed any more, or the lease is not renewed, by a process that looks alive.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ray_workflows._coordinator.jobs import Steps
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.loop import Loop
from ray_workflows._executor.timers import end_process

logger = logging.getLogger(__name__)

#: How long a commit, or a renewal of the lease, may take, in seconds: far longer than any storage
#: waits. With the process end the Ray tasks that it has started.
HUNG_SECONDS = 900.0

#: Between two looks, in seconds. Both have to see the same call: after the process was stopped for
#: long, what has returned meanwhile is looked at before the second.
CHECK_SECONDS = 30.0


class HungCalls:
    """Looks for calls without which nothing goes on.

    Args:
        loop: whose commits are watched.
        lease: whose renewal is.
        end: ends the process.
    """

    def __init__(self, loop: Loop, lease: Lease, end: Callable[[], None] = end_process) -> None:
        self.loop = loop
        self.lease = lease
        self.end = end
        #: Since when each was hanging at the last look.
        self.seen: dict[str, float] = {}
        loop.job("look for calls that never return", self.look).start(CHECK_SECONDS)

    def look(self) -> Steps:
        """End the process if one of them hangs."""
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
