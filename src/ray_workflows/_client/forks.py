"""Forks: a new workflow from another one's plan, with the results that it can keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from ray_workflows._client.blob_copies import copy_blobs
from ray_workflows._client.environments import digests_to_run
from ray_workflows._codec.references import blobs_in
from ray_workflows._coordinator.recovery import fold
from ray_workflows._engine.fork import fork_history
from ray_workflows._engine.replay import replay
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.plan import Environment, Function, Plan
from ray_workflows._model.steps import step_id
from ray_workflows.exceptions import WorkflowNotFoundError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.histories import History, unless_deleted


class Fork:
    """The start of a fork: the submission of its origin, and the kept results."""

    def __init__(self, storage: Storage, row: CatalogRow, from_task: str) -> None:
        # The present state, because the workflow may have been resumed with other code.
        state = WorkflowState(row.workflow_id, row.incarnation)
        events: list[ev.Event] = []
        for entry, more in History(storage, row).read():
            fold(state, entry.seq, more)
            events += more
        history = fork_history(events, from_task)
        if history is None:
            raise WorkflowNotFoundError(row.workflow_id, from_task, tasks=task_ids_of(events))
        submitted = events[0]
        assert isinstance(submitted, ev.WorkflowSubmitted)
        self.storage = storage
        self.origin = row
        self.state = state
        self.events = submitted, history
        self.submitted, self.history = self.with_code(self.state.environment, {})

    def with_code(
        self, environment: Environment, functions: Mapping[str, Function]
    ) -> tuple[ev.WorkflowSubmitted, list[ev.Event]]:
        """The submission and first events of the fork, with another environment, and functions that
        replace those with the digests that are their keys."""
        submitted, history = self.events
        functions = {**self.state.functions, **functions}
        plan = as_now(submitted.plan, submitted.task_ids, functions, self.state)
        plan = msgspec.structs.replace(plan, environment=environment)
        return msgspec.structs.replace(submitted, plan=plan), [
            msgspec.structs.replace(
                event, plan=as_now(event.plan, event.task_ids, functions, self.state)
            )
            if isinstance(event, ev.Opening)
            else event
            for event in history
        ]

    @property
    def functions(self) -> dict[str, Function]:
        """As `RecordedEnvironment.functions`, for the fork."""
        submitted, history = self.events
        opened = [event.plan for event in history if isinstance(event, ev.Opening)]
        return {
            function.digest: self.state.functions.get(function.digest, function)
            for plan in (submitted.plan, *opened)
            for function in plan.functions
        }

    @property
    def functions_to_run(self) -> dict[str, Function]:
        """As `functions`, for the tasks that run again."""
        submitted, history = self.events
        wanted = digests_to_run(replay("", "", (submitted, *history)))
        return {digest: each for digest, each in self.functions.items() if digest in wanted}

    def copy_blobs(self, incarnation: str) -> None:
        """Copy the blobs for the fork, because its origin may be deleted."""
        blobs = blobs_in([self.submitted.plan, *self.history])
        with unless_deleted(self.storage, self.origin):
            copy_blobs(self.storage, self.origin.incarnation, self.storage, incarnation, blobs)


def as_now(
    plan: Plan, task_ids: Sequence[str], functions: Mapping[str, Function], state: WorkflowState
) -> Plan:
    """A plan with its functions and options replaced as in the present state."""
    exchanged = tuple(functions.get(each.digest, each) for each in plan.functions)
    tasks, options = list(plan.tasks), list(plan.options)
    for index, task_id in enumerate(task_ids):
        given = state.ray_options.get(task_id)
        if given:
            options.append(options[tasks[index].options].with_ray(given))
            tasks[index] = msgspec.structs.replace(tasks[index], options=len(options) - 1)
    return msgspec.structs.replace(
        plan, functions=exchanged, tasks=tuple(tasks), options=tuple(options)
    )


def task_ids_of(events: Iterable[ev.Event]) -> Iterator[str]:
    """The ids of all tasks that a workflow has had, and of steps that were none."""
    ids: list[str] = []
    for event in events:
        if isinstance(event, ev.Opening):
            ids += event.task_ids
        elif isinstance(event, ev.StepsEnded):
            yield from (step_id(ids[event.task], ended.step.path) for ended in event.ended)
    yield from ids
