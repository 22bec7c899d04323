"""Forking: a new workflow from another one's plan and the results that need not be made again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ray_workflows._client.blob_copies import copy_blobs
from ray_workflows._codec.references import blobs_in
from ray_workflows._coordinator.recovery import fold
from ray_workflows._engine.fork import fork_history
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.plan import Plan
from ray_workflows.exceptions import WorkflowNotFoundError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.histories import History, unless_deleted


class Fork:
    """What a fork starts with: the submission of its origin, and what is kept of its results."""

    def __init__(self, storage: Storage, row: CatalogRow, from_task: str) -> None:
        # As the workflow is now: it may have been resumed with other code.
        state = WorkflowState(row.workflow_id, row.incarnation)
        events: list[ev.Event] = []
        for entry, more in History(storage, row).read():
            fold(state, entry.seq, more)
            events += more
        history = fork_history(events, from_task)
        if history is None:
            raise WorkflowNotFoundError(row.workflow_id, from_task)
        submitted = events[0]
        assert isinstance(submitted, ev.WorkflowSubmitted)
        self.storage = storage
        self.origin = row
        plan = as_now(submitted.plan, submitted.task_ids, state)
        plan = msgspec.structs.replace(plan, environment=state.environment)
        self.submitted = msgspec.structs.replace(submitted, plan=plan)
        self.history = [
            msgspec.structs.replace(event, plan=as_now(event.plan, event.task_ids, state))
            if isinstance(event, ev.TaskContinued)
            else event
            for event in history
        ]

    def copy_blobs(self, incarnation: str) -> None:
        """Give the fork blobs of its own: its origin may be deleted."""
        blobs = blobs_in([self.submitted.plan, *self.history])
        with unless_deleted(self.storage, self.origin):
            copy_blobs(self.storage, self.origin.incarnation, self.storage, incarnation, blobs)


def as_now(plan: Plan, task_ids: Sequence[str], state: WorkflowState) -> Plan:
    """A plan with the functions and options that took the place of its own."""
    functions = tuple(state.functions.get(each.digest, each) for each in plan.functions)
    tasks, options = list(plan.tasks), list(plan.options)
    for index, task_id in enumerate(task_ids):
        given = state.ray_options.get(task_id)
        if given:
            options.append(options[tasks[index].options].with_ray(given))
            tasks[index] = msgspec.structs.replace(tasks[index], options=len(options) - 1)
    return msgspec.structs.replace(
        plan, functions=functions, tasks=tuple(tasks), options=tuple(options)
    )
