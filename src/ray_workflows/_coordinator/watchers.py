"""Those who wait for a workflow to go on or to end."""

from __future__ import annotations

from collections.abc import Callable

from ray_workflows._coordinator.active import ActiveWorkflows
from ray_workflows._coordinator.requests import Watched, WatchRequest
from ray_workflows._coordinator.workflow import Workflow, answer
from ray_workflows._executor.protocol import Executor


class Watchers:
    """Answers watches, each once. They are kept by the id of the workflow, which may be in storage
    alone meanwhile.

    Args:
        active: the workflows in memory.
        executor: has live copies of outputs.
        touch: has a workflow looked at.
        find: looks in the storage for a workflow that is not in memory. It is brought into memory
            if it is driven here; if not, `turn_away` is called.
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
        #: Those that are not answered, by the id of their workflow.
        self.waiting: dict[str, list[WatchRequest]] = {}

    def add(self, watch: WatchRequest) -> None:
        """Answer when a workflow has gone on, or is settled; soon if it is not driven here."""
        workflow_id = watch.workflow_id
        workflow = self.active.get(workflow_id)
        if workflow is None:
            self.waiting.setdefault(workflow_id, []).append(watch)
            # Before all is listed that is ours, what is about to be taken over seems nobody's.
            if self.active.listed:
                self.look(workflow_id, [watch])
        elif workflow.reading or self.active.drives(workflow):
            self.waiting.setdefault(workflow_id, []).append(watch)
            self.touch(workflow)
        else:
            answer(watch.reply, Watched(None))

    def listed(self) -> None:
        """It is known what is ours: look for what is watched and not in memory."""
        for workflow_id, watches in self.waiting.items():
            if workflow_id not in self.active:
                self.look(workflow_id, watches)

    def look(self, workflow_id: str, watches: list[WatchRequest]) -> None:
        """Look for a workflow that is not in memory, unless there is nothing to see of it yet."""
        evicted = self.active.evicted.get(workflow_id)
        if evicted is None or any(
            each.after is not None and each.after < evicted.seq for each in watches
        ):
            self.find(workflow_id)

    def withdraw(self, watch: WatchRequest) -> None:
        """Nobody waits any more for what a watch sees."""
        waiting = self.waiting.get(watch.workflow_id, [])
        if watch in waiting:
            waiting.remove(watch)
            self.keep(watch.workflow_id, waiting)

    def notify(self, workflow: Workflow, *, settled: bool) -> None:
        """Answer those who watch a workflow, if there is what they watch for."""
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
        """It is not driven here: there is nothing to wait for."""
        for watch in self.waiting.pop(workflow_id, []):
            answer(watch.reply, Watched(None))

    def keep(self, workflow_id: str, waiting: list[WatchRequest]) -> None:
        """So many still wait."""
        if waiting:
            self.waiting[workflow_id] = waiting
        else:
            self.waiting.pop(workflow_id, None)
