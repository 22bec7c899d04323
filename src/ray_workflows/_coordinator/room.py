"""How many workflows may run and wait in a coordinator at once, and which of them wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._model.status import WorkflowStatus

UNLIMITED = -1


class Limits(msgspec.Struct, frozen=True):
    """How many workflows may run and wait at once; -1 is no limit."""

    max_running: int = UNLIMITED
    max_pending: int = UNLIMITED


class Room:
    """What the limits leave free of the workflows in hand."""

    def __init__(self, limits: Limits, workflows: Mapping[str, Workflow]) -> None:
        self.limits = limits
        self.workflows = workflows
        #: Pending workflows in the order in which they came.
        self.waiting: deque[str] = deque()

    def to_run(self) -> bool:
        """Whether one more workflow may run."""
        limit = self.limits.max_running
        return limit == UNLIMITED or self.count(WorkflowStatus.RUNNING) < limit

    def to_wait(self) -> bool:
        """Whether one more workflow may wait."""
        limit = self.limits.max_pending
        return limit == UNLIMITED or self.count(WorkflowStatus.PENDING) < limit

    def left(self, at_most: int) -> int:
        """How many more may come, to run or to wait: ``at_most`` if there is no limit."""
        limits = self.limits
        if UNLIMITED in (limits.max_running, limits.max_pending):
            return at_most
        taken = self.count(WorkflowStatus.RUNNING) + self.count(WorkflowStatus.PENDING)
        return max(0, min(at_most, limits.max_running + limits.max_pending - taken))

    def count(self, status: WorkflowStatus) -> int:
        return sum(1 for w in self.workflows.values() if w.state.status is status)
