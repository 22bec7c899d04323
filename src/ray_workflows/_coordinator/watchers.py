"""Those who wait for a workflow to go on or to end."""

from __future__ import annotations

from collections.abc import Callable

from ray_workflows._coordinator.active import ActiveWorkflows
from ray_workflows._coordinator.requests import Watched, WatchRequest
from ray_workflows._coordinator.workflow import Workflow, answer
from ray_workflows._executor.protocol import Executor

#: Pause before what came too early is looked at again, in seconds.
SOON = 0.02


class Watchers:
    """Answers watches, each once.

    Args:
        active: the workflows in memory.
        executor: has live copies of outputs.
        after: has something done after some seconds.
        touch: has a workflow looked at.
    """

    def __init__(
        self,
        active: ActiveWorkflows,
        executor: Executor,
        after: Callable[[float, Callable[[], None]], None],
        touch: Callable[[Workflow], None],
    ) -> None:
        self.active = active
        self.executor = executor
        self.after = after
        self.touch = touch

    def add(self, watch: WatchRequest) -> None:
        """Answer when a workflow has gone on, or is settled; at once if it is not driven here."""
        workflow = self.active.get(watch.workflow_id)
        if workflow is not None and (workflow.reading or self.active.drives(workflow)):
            workflow.watchers.append(watch)
            self.touch(workflow)
        elif self.active.inheritance.may_have(watch.workflow_id):
            # Whoever asks about a workflow that is about to be taken over must not hear that it is
            # nobody's.
            self.after(SOON, lambda: self.add(watch))
        else:
            answer(watch.reply, Watched(None))

    def withdraw(self, watch: WatchRequest) -> None:
        """Nobody waits any more for what a watch sees."""
        workflow = self.active.get(watch.workflow_id)
        if workflow is not None and watch in workflow.watchers:
            workflow.watchers.remove(watch)

    def notify(self, workflow: Workflow, *, settled: bool) -> None:
        """Answer those who watch a workflow, if there is what they watch for."""
        kept = []
        for watcher in workflow.watchers:
            grown = watcher.after is not None and workflow.seq > watcher.after
            if settled or grown:
                answer(watcher.reply, workflow.seen(self.executor))
            else:
                kept.append(watcher)
        workflow.watchers = kept

    def turn_away(self, workflow: Workflow) -> None:
        """It is not driven here: there is nothing to wait for."""
        watchers, workflow.watchers = workflow.watchers, []
        for watcher in watchers:
            answer(watcher.reply, Watched(None))
