"""Evicts waiting workflows from memory, and reads them again when they are due."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from ray_workflows._coordinator.active import ActiveWorkflows
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.commands import due_at
from ray_workflows._engine.values import has_unstored
from ray_workflows._executor.timers import Timer, TimerQueue
from ray_workflows._model.catalog import NEVER

#: How long a workflow must be at rest before it is evicted, in seconds. One that is due sooner than
#: that stays.
EVICT_SECONDS = 10.0

#: How long before its due time a workflow is read, in seconds.
AHEAD_SECONDS = 0.1

#: The most evictions in one step of the loop.
AT_ONCE = 1_000

#: How many due workflows are read at once, and the pause before the next ones, in seconds.
READ_AT_ONCE, SOON_SECONDS = 100, 0.02


class Eviction:
    """Evicts workflows at rest from memory.

    A workflow at rest has nothing in flight, nothing to decide and no unstored values.

    Args:
        active: the workflows in memory, and the evicted ones.
        timers: calls at times.
        clock: seconds since 1970 that pass evenly.
        evict: removes a workflow from memory.
        bring_back: reads a workflow into memory.
        seconds: how long a workflow has to be at rest.
    """

    def __init__(
        self,
        active: ActiveWorkflows,
        timers: TimerQueue,
        clock: Callable[[], float],
        evict: Callable[[Workflow], None],
        bring_back: Callable[[str], None],
        seconds: float = EVICT_SECONDS,
    ) -> None:
        self.active = active
        self.timers = timers
        self.clock = clock
        self.evict = evict
        self.bring_back = bring_back
        self.seconds = seconds
        #: Workflows at rest, and since when, the longest first.
        self.resting: dict[int, tuple[Workflow, float]] = {}
        self.evicting: Timer | None = None
        #: The timer for the first due evicted workflow, and its time.
        self.waking: Timer | None = None
        self.waking_at = NEVER
        #: Due workflows that are being read.
        self.coming: list[str] = []

    def rests(self, workflow: Workflow) -> None:
        """Note that there is nothing to do for a workflow now."""
        if self.is_at_rest(workflow):
            self.forget(workflow)
            self.resting[id(workflow)] = (workflow, self.timers.clock())
            if self.evicting is None:
                self.evicting = self.timers.after(self.seconds, self.evict_some)

    def forget(self, workflow: Workflow) -> None:
        """Note that a workflow is no longer at rest, or not in memory."""
        self.resting.pop(id(workflow), None)

    def is_at_rest(self, workflow: Workflow) -> bool:
        """Whether nothing happens to a workflow for a while without a request."""
        return (
            workflow.is_idle
            and self.active.drives(workflow)
            and due_at(workflow.state) > self.clock() + max(self.seconds, 2 * AHEAD_SECONDS)
        )

    def evict_some(self) -> None:
        """Evict workflows that were at rest for long enough."""
        self.evicting = None
        latest = self.timers.clock() - self.seconds
        for workflow, since in list(islice(self.resting.values(), AT_ONCE)):
            if since > latest:
                break
            del self.resting[id(workflow)]
            # Eviction would lose unstored values.
            if self.is_at_rest(workflow) and not has_unstored(workflow.state):
                self.evict(workflow)
        self.wake_in_time()
        if self.resting:
            _, since = next(iter(self.resting.values()))
            self.evicting = self.timers.after(since - latest, self.evict_some)

    def wake_in_time(self) -> None:
        """Set the timer for the first due evicted workflow."""
        at = self.active.evicted.next_due()
        if at < self.waking_at:
            self.timers.cancel(self.waking)
            self.waking_at = at
            self.waking = self.timers.after(at - AHEAD_SECONDS - self.clock(), self.wake_some)

    def wake_some(self) -> None:
        """Read workflows that are due soon, up to `READ_AT_ONCE`, and the next ones after these:
        the same threads serve the lease and requests."""
        self.waking, self.waking_at = None, NEVER
        active, by = self.active, self.clock() + AHEAD_SECONDS
        self.coming = [each for each in self.coming if each in active and active[each].reading]
        for workflow_id in active.evicted.due(by, READ_AT_ONCE - len(self.coming)):
            self.bring_back(workflow_id)
            self.coming.append(workflow_id)
        if active.evicted.next_due() <= by:
            self.waking_at = active.evicted.next_due()
            self.waking = self.timers.after(SOON_SECONDS, self.wake_some)
        else:
            self.wake_in_time()
