"""The reading verbs: one function each, over a `Reader`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray_workflows._client.outputs import Awaited, read_row
from ray_workflows._client.reader import ACTIVE, Reader, asks_who_lives, stored_statuses
from ray_workflows._client.task_states import task_infos
from ray_workflows._client.views import WorkflowView, task_metadata
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import CatalogQuery, CatalogRow
from ray_workflows._model.filters import Filter
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.listing import WorkflowPage, info_of
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import TaskInfo
from ray_workflows.exceptions import OutputNotAvailableError, WorkflowNotFoundError
from ray_workflows.storage.histories import History


def get_status(reader: Reader, workflow_id: str) -> WorkflowStatus:
    return reader.status(read_row(reader.storage, validate_workflow_id(workflow_id)))


def list_all(reader: Reader, wanted: Iterable[WorkflowStatus]) -> list[tuple[str, WorkflowStatus]]:
    """Ids with their statuses, in the order of `list_rows`."""
    return [(row.workflow_id, status) for row, status in list_rows(reader, wanted)]


def list_rows(
    reader: Reader, wanted: Iterable[WorkflowStatus]
) -> list[tuple[CatalogRow, WorkflowStatus]]:
    """Rows with their statuses, oldest first; RESUMABLE ones last, running before pending."""
    found: list[tuple[CatalogRow, WorkflowStatus]] = []
    interrupted: dict[WorkflowStatus, list[CatalogRow]] = {status: [] for status in ACTIVE}
    for row, status in reader.rows(wanted):
        if status is WorkflowStatus.RESUMABLE:
            interrupted[row.status].append(row)
        else:
            found.append((row, status))
    for rows in interrupted.values():
        found += [(row, WorkflowStatus.RESUMABLE) for row in rows]
    return found


def list_workflows(
    reader: Reader, filter: Filter, newest_first: bool, limit: int, after: str | None
) -> WorkflowPage:
    """A page of the workflows that match a filter."""
    found, cursor, damaged = reader.page(
        filter, newest_first=newest_first, limit=limit, after=after
    )
    return WorkflowPage(tuple(info_of(*each) for each in found), cursor, damaged)


def count_workflows(reader: Reader, filter: Filter) -> int:
    """How many workflows match a filter."""
    if asks_who_lives(filter.statuses):
        return sum(1 for _ in reader.rows(filter.statuses, conditions=filter.conditions))
    stored = stored_statuses(filter.statuses)
    query = CatalogQuery(statuses=stored, conditions=filter.conditions)
    return reader.storage.count_catalog(query)


def get_metadata(reader: Reader, workflow_id: str, task_id: str | None) -> dict[str, Any]:
    row = read_row(reader.storage, validate_workflow_id(workflow_id))
    if task_id is None:
        stats = {"start_time": row.started_at, "end_time": row.ended_at}
        return {
            "status": reader.status(row).value,
            "user_metadata": dict(row.metadata),
            "stats": {name: value for name, value in stats.items() if value is not None},
        }
    view = WorkflowView(reader.storage, row)
    view.read()
    task = view.tasks.get(task_id)
    if task is None:
        raise WorkflowNotFoundError(workflow_id, task_id, tasks=view.tasks)
    return task_metadata(task)


def get_tasks(reader: Reader, workflow_id: str, *, attempts: bool = False) -> list[TaskInfo]:
    row = read_row(reader.storage, validate_workflow_id(workflow_id))
    view = WorkflowView(reader.storage, row, attempts=attempts)
    view.read()
    return task_infos(view, reader.observe(row))


def import_directories(reader: Reader, workflow_id: str) -> tuple[str, ...]:
    """The directories from which the driver that submitted a workflow imported its own modules."""
    row = read_row(reader.storage, workflow_id)
    for _, events in History(reader.storage, row).read():
        for event in events:
            if isinstance(event, ev.WorkflowSubmitted):
                return event.plan.environment.python_path
    return ()


def stored_output(reader: Reader, workflow_id: str, task_id: str | None) -> Any:
    """The output of a workflow or task if it is there now; does not wait."""
    awaited = Awaited(reader, validate_workflow_id(workflow_id), task_id, fresh=False)
    done, value = awaited.look()
    if not done:
        raise OutputNotAvailableError(
            workflow_id, task_id, f"it is not there yet: the workflow is {awaited.row.status}."
        )
    return value
