"""Watches: callers that wait for a workflow to go on or to end."""

from __future__ import annotations

from collections.abc import Callable

from ray_workflows._coordinator.active import ActiveWorkflows
from ray_workflows._coordinator.requests import Watched, WatchRequest
from ray_workflows._coordinator.workflow import Workflow, answer
from ray_workflows._executor.protocol import Executor


class Watchers:
    """Answers watches, each once. They are kept by workflow id, so that the workflow may be evicted
    meanwhile.

    Args:
        active: the workflows in memory.
        executor: has live copies of outputs.
        touch: schedules a workflow for the next step of the loop.
        find: looks for a workflow in the storage. It is read into memory if it is driven here; if
            not, `turn_away` is called.
    """

    def __init__(
        self,
        active: ActiveWorkflows,
        executor: Executor,
        touch: Callable[[Workflow], None],
        find: Callable[[str], None],
    ) -> None:
        self.active = active
        self.executor = executor
        self.touch = touch
        self.find = find
        #: The unanswered watches by workflow id.
        self.waiting: dict[str, list[WatchRequest]] = {}

    def add(self, watch: WatchRequest) -> None:
        """Answer when a workflow has gone on, or is settled; soon if it is not driven here."""
        workflow_id = watch.workflow_id
        workflow = self.active.get(workflow_id)
        if workflow is None:
            self.waiting.setdefault(workflow_id, []).append(watch)
            # Until the first scan is complete, a workflow that is about to be taken over would seem
            # not to be ours.
            if self.active.listed:
                self.look(workflow_id, [watch])
        elif workflow.reading or self.active.drives(workflow):
            self.waiting.setdefault(workflow_id, []).append(watch)
            self.touch(workflow)
        else:
            answer(watch.reply, Watched(None))

    def listed(self) -> None:
        """The first scan is complete: look for watched workflows that are not in memory."""
        for workflow_id, watches in self.waiting.items():
            if workflow_id not in self.active:
                self.look(workflow_id, watches)

    def look(self, workflow_id: str, watches: list[WatchRequest]) -> None:
        """Look for a workflow that is not in memory, unless it is evicted and has not gone on."""
        evicted = self.active.evicted.get(workflow_id)
        if evicted is None or any(
            each.after is not None and each.after < evicted.seq for each in watches
        ):
            self.find(workflow_id)

    def withdraw(self, watch: WatchRequest) -> None:
        """Remove a watch whose caller no longer waits."""
        waiting = self.waiting.get(watch.workflow_id, [])
        if watch in waiting:
            waiting.remove(watch)
            self.keep(watch.workflow_id, waiting)

    def notify(self, workflow: Workflow, *, settled: bool) -> None:
        """Answer the watches of a workflow that have something to see."""
        waiting = self.waiting.get(workflow.workflow_id)
        if not waiting:
            return
        kept = []
        for watch in waiting:
            grown = watch.after is not None and workflow.seq > watch.after
            if settled or grown:
                answer(watch.reply, workflow.seen(self.executor))
            else:
                kept.append(watch)
        self.keep(workflow.workflow_id, kept)

    def turn_away(self, workflow_id: str) -> None:
        """Answer all watches of a workflow that is not driven here."""
        for watch in self.waiting.pop(workflow_id, []):
            answer(watch.reply, Watched(None))

    def keep(self, workflow_id: str, waiting: list[WatchRequest]) -> None:
        """Keep the remaining watches of a workflow."""
        if waiting:
            self.waiting[workflow_id] = waiting
        else:
            self.waiting.pop(workflow_id, None)
