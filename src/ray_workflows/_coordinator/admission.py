"""Admission: how many workflows may run and be pending at once, and which are pending."""

from __future__ import annotations

from collections import Counter

import msgspec

from ray_workflows._model.status import WorkflowStatus

UNLIMITED = -1


class Limits(msgspec.Struct, frozen=True):
    """How many workflows may run and be pending at once; -1 is no limit."""

    max_running: int = UNLIMITED
    max_pending: int = UNLIMITED


class Admission:
    """Compares the limits with the workflows that are driven here. It counts them as they change:
    counting 100,000 anew for each submission would take longer than the submission."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counts: Counter[WorkflowStatus] = Counter()
        #: Ids of pending workflows in the order in which they came.
        self.waiting: dict[str, None] = {}

    def change(
        self, workflow_id: str, before: WorkflowStatus | None, after: WorkflowStatus | None
    ) -> None:
        """Count a workflow with another status; None: it is not driven here."""
        if before is after:
            return
        if before is not None:
            self.counts[before] -= 1
        if after is not None:
            self.counts[after] += 1
        if after is WorkflowStatus.PENDING:
            # At the end of the queue.
            self.waiting[workflow_id] = None
        else:
            self.waiting.pop(workflow_id, None)

    def can_run(self) -> bool:
        """Whether one more workflow may run."""
        limit = self.limits.max_running
        return limit == UNLIMITED or self.counts[WorkflowStatus.RUNNING] < limit

    def can_queue(self) -> bool:
        """Whether one more workflow may be pending."""
        limit = self.limits.max_pending
        return limit == UNLIMITED or self.counts[WorkflowStatus.PENDING] < limit

    def left(self, at_most: int) -> int:
        """How many more may run or be pending: ``at_most`` without a limit."""
        limits = self.limits
        if UNLIMITED in (limits.max_running, limits.max_pending):
            return at_most
        taken = self.counts[WorkflowStatus.RUNNING] + self.counts[WorkflowStatus.PENDING]
        return max(0, min(at_most, limits.max_running + limits.max_pending - taken))
