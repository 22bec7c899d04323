"""Renews the lease of a coordinator and of its earlier lives, and sweeps blobs periodically."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from ray_workflows._coordinator.holdings import Holdings
from ray_workflows._coordinator.jobs import Steps
from ray_workflows._coordinator.liveness import LEASE_SECONDS, RENEW_SECONDS
from ray_workflows._coordinator.loop import Loop
from ray_workflows._environment.shared_items import collect

logger = logging.getLogger(__name__)

#: How often unreferenced blobs are swept, and how old they must be, in seconds: older than the
#: longest submission, which writes its blobs before the workflow exists.
SWEEP_SECONDS = 3600.0
SWEEP_GRACE_SECONDS = 24 * 3600.0


class Lease:
    """Renews the holder's row, and starts `Holdings` after the first renewal.

    ``seconds``: how long the holder counts as alive after a renewal.
    """

    def __init__(self, loop: Loop, seconds: float = LEASE_SECONDS) -> None:
        self.loop = loop
        self.holder = loop.holder
        self.seconds = seconds
        self.renew_seconds = seconds * RENEW_SECONDS / LEASE_SECONDS
        self.holdings = Holdings(loop, self.keep)
        self.renewing = loop.job("renew the lease", self.renew)
        self.sweeping = loop.job("sweep blobs", self.sweep)

    def start(self) -> None:
        """Take the lease, and start the periodic jobs."""
        self.renewing.start()
        self.sweeping.start(SWEEP_SECONDS)

    def renew(self) -> Steps:
        loop = self.loop
        asked_at, kept = loop.elapsed(), loop.active.kept
        try:
            # Ours last, so that it never ends after those of earlier lives.
            yield lambda: self.keep((*kept, loop.holder_id))
        except Exception as error:
            loop.store.failed(error, "The lease", writing=True)
            return min(loop.store.pause, self.renew_seconds)
        loop.store.wrote()
        # Compared with now, not with the time of the request: starts were held back until now.
        lapsed = loop.elapsed() > loop.lease_until
        if not self.holdings.started:
            self.holdings.start()
        elif lapsed:
            logger.warning("The lease lapsed: every workflow is read again.")
            for workflow in list(loop.active.values()):
                if loop.active.drives(workflow):
                    loop.activation.verify(workflow)
        loop.lease_until = asked_at + self.seconds
        return self.renew_seconds

    def keep(self, holder_ids: Iterable[str]) -> None:
        """Renew leases. Those of earlier lives name this process, so that others see their
        workflows as driven by a live process. Blocks."""
        for holder_id in holder_ids:
            holder = msgspec.structs.replace(self.holder, holder_id=holder_id)
            self.loop.storage.renew_holder(holder, self.seconds)

    def sweep(self) -> Steps:
        """Remove blobs of incomplete submissions and deletions, and unused shared items."""
        loop = self.loop

        def work() -> None:
            collect(loop.storage)
            loop.storage.sweep(SWEEP_GRACE_SECONDS)

        try:
            yield work
        except Exception as error:
            logger.warning("Unreferenced blobs were not swept: %s", error)
        return SWEEP_SECONDS
