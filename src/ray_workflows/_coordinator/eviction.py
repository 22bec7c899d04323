"""Workflows that wait leave memory, and come back when they are to be woken or somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from ray_workflows._coordinator.active import ActiveWorkflows
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.commands import due_at
from ray_workflows._engine.values import has_unstored
from ray_workflows._executor.timers import Timer, TimerQueue
from ray_workflows._model.catalog import NEVER

#: How long a workflow has been at rest before it leaves memory, in seconds. One that is to be
#: woken sooner than that stays.
EVICT_SECONDS = 10.0

#: How long before it is due a workflow is read, in seconds.
AHEAD_SECONDS = 0.1

#: How many leave memory in one step of the loop.
AT_ONCE = 1_000

#: How many that are due are being read at once, and how soon it is looked for the next ones, in
#: seconds.
READ_AT_ONCE, SOON_SECONDS = 100, 0.02


class Eviction:
    """Takes workflows at rest out of memory.

    At rest is what has nothing in flight, nothing to decide and no values that are in no storage.

    Args:
        active: the workflows in memory, and those that were.
        timers: calls at times.
        clock: seconds since 1970 that pass evenly.
        evict: takes a workflow out of memory.
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
        #: Workflows that were at rest, and since when, the longest first.
        self.resting: dict[int, tuple[Workflow, float]] = {}
        self.evicting: Timer | None = None
        #: Wakes the first one that is in storage alone, and when.
        self.waking: Timer | None = None
        self.waking_at = NEVER
        #: Those that were due and are being read.
        self.coming: list[str] = []

    def rests(self, workflow: Workflow) -> None:
        """There is nothing to do for a workflow now."""
        if self.is_at_rest(workflow):
            self.forget(workflow)
            self.resting[id(workflow)] = (workflow, self.timers.clock())
            if self.evicting is None:
                self.evicting = self.timers.after(self.seconds, self.evict_some)

    def forget(self, workflow: Workflow) -> None:
        """It is at rest no more, or not in memory."""
        self.resting.pop(id(workflow), None)

    def is_at_rest(self, workflow: Workflow) -> bool:
        """Whether nothing happens to it for a while, unless somebody asks."""
        return (
            workflow.is_idle
            and self.active.drives(workflow)
            and due_at(workflow.state) > self.clock() + max(self.seconds, 2 * AHEAD_SECONDS)
        )

    def evict_some(self) -> None:
        """Take out of memory what was at rest for long enough."""
        self.evicting = None
        latest = self.timers.clock() - self.seconds
        for workflow, since in list(islice(self.resting.values(), AT_ONCE)):
            if since > latest:
                break
            del self.resting[id(workflow)]
            # What is in no storage is lost when it is let go of.
            if self.is_at_rest(workflow) and not has_unstored(workflow.state):
                self.evict(workflow)
        self.wake_in_time()
        if self.resting:
            _, since = next(iter(self.resting.values()))
            self.evicting = self.timers.after(since - latest, self.evict_some)

    def wake_in_time(self) -> None:
        """See to it that the first one is woken that is due."""
        at = self.active.evicted.next_due()
        if at < self.waking_at:
            self.timers.cancel(self.waking)
            self.waking_at = at
            self.waking = self.timers.after(at - AHEAD_SECONDS - self.clock(), self.wake_some)

    def wake_some(self) -> None:
        """Read those that are due soon; when there are many, the next ones when these are read: the
        lease and what is asked are read and written by the same threads."""
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
