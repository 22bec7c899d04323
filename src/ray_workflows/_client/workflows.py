"""The verbs of a driver: one function each. Those that only look are in `reads`."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import ray
from ray.dag import DAGNode

from ray_workflows._capture.dag import check_root
from ray_workflows._client import reads, removal
from ray_workflows._client.connection import Connection, connect
from ray_workflows._client.drafts import Drafts
from ray_workflows._client.forks import Fork
from ray_workflows._client.outputs import await_output, await_shown, read_row, workflow_output
from ray_workflows._client.waiter import OutputError, waiter_class
from ray_workflows._coordinator.requests import Accepted, Finished
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import TaskInfo
from ray_workflows.exceptions import WorkflowAlreadyRunningError

logger = logging.getLogger(__name__)

#: This process's waiter actor and the connection it belongs to.
waiter: tuple[Connection, Any] | None = None


def get_waiter(connection: Connection) -> Any:
    global waiter
    if waiter is None or waiter[0] is not connection:
        waiter = (connection, waiter_class.remote(connection.coordinator))
    return waiter[1]


def output_ref(
    connection: Connection, workflow_id: str, task_id: str | None = None, *, fresh: bool
) -> ray.ObjectRef:
    return get_waiter(connection).output.remote(workflow_id, task_id, fresh)


def generate_workflow_id() -> str:
    """An id for a workflow that was given none: a UUID and the time."""
    return f"{uuid.uuid4()}.{time.time():.9f}"


# -- run and resume ------------------------------------------------------------------------


def submit(
    dag: DAGNode,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workflow_id: str | None,
    metadata: dict[str, Any],
    timeout: float | None,
) -> tuple[Connection, str, Accepted | Finished]:
    """Capture a DAG and hand it to the coordinator; durable when it returns."""
    check_root(dag)
    workflow_id = given_or_generated(workflow_id)
    connection = connect()
    with Drafts(connection) as drafts:
        drafts.capture(dag, args, kwargs, workflow_id, metadata, timeout)
        (answer,) = drafts.send()
    if isinstance(answer, Exception):
        raise answer
    return connection, workflow_id, answer


def run_async_many(
    dags: Sequence[DAGNode],
    workflow_ids: Sequence[str] | None,
    metadata: dict[str, Any],
    timeout: float | None,
) -> list[ray.ObjectRef]:
    for dag in dags:
        check_root(dag)
    given: Sequence[str | None] = workflow_ids or [None] * len(dags)
    ids = [given_or_generated(workflow_id) for workflow_id in given]
    connection = connect()
    with Drafts(connection) as drafts:
        for dag, workflow_id in zip(dags, ids, strict=True):
            drafts.capture(dag, (), {}, workflow_id, metadata, timeout)
        answers = drafts.send()
    return [
        ray.put(OutputError(answer))
        if isinstance(answer, Exception)
        else output_ref(connection, workflow_id, fresh=True)
        for workflow_id, answer in zip(ids, answers, strict=True)
    ]


def given_or_generated(workflow_id: str | None) -> str:
    return generate_workflow_id() if workflow_id is None else validate_workflow_id(workflow_id)


def fork(workflow_id: str, from_task: str, new_id: str | None) -> str:
    validate_workflow_id(workflow_id)
    new_id = given_or_generated(new_id)
    connection = connect()
    storage = connection.storage
    origin = Fork(storage, read_row(storage, workflow_id), from_task)
    with Drafts(connection) as drafts:
        drafts.add_fork(origin, new_id)
        (answer,) = drafts.send()
    if isinstance(answer, Exception):
        raise answer
    return new_id


def run(
    dag: DAGNode,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workflow_id: str | None,
    metadata: dict[str, Any],
    timeout: float | None,
    progress: bool,
) -> Any:
    connection, workflow_id, accepted = submit(dag, args, kwargs, workflow_id, metadata, timeout)
    if isinstance(accepted, Finished):
        return workflow_output(connection, accepted.row)
    return await_started(connection, workflow_id, progress)


def run_async(
    dag: DAGNode,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workflow_id: str | None,
    metadata: dict[str, Any],
    timeout: float | None,
) -> ray.ObjectRef:
    connection, workflow_id, _ = submit(dag, args, kwargs, workflow_id, metadata, timeout)
    return output_ref(connection, workflow_id, fresh=True)


def resume(workflow_id: str, canceled: bool, progress: bool) -> Any:
    connection = connect()
    accepted = connection.call("resume", validate_workflow_id(workflow_id), canceled)
    if isinstance(accepted, Finished):
        return workflow_output(connection, accepted.row)
    return await_started(connection, workflow_id, progress)


def await_started(connection: Connection, workflow_id: str, progress: bool) -> Any:
    """The output of a workflow that was just started or resumed here."""
    if progress:
        return await_shown(connection, workflow_id)
    return await_output(connection, workflow_id, None, fresh=True)


def resume_async(workflow_id: str, canceled: bool) -> ray.ObjectRef:
    connection = connect()
    connection.call("resume", validate_workflow_id(workflow_id), canceled)
    return output_ref(connection, workflow_id, fresh=True)


def resume_all(include_failed: bool) -> list[tuple[str, ray.ObjectRef]]:
    wanted = {WorkflowStatus.RESUMABLE}
    if include_failed:
        wanted.add(WorkflowStatus.FAILED)
    resumed = []
    for workflow_id, _ in list_all(wanted):
        try:
            resumed.append((workflow_id, resume_async(workflow_id, False)))
        except WorkflowAlreadyRunningError:
            # Another cluster was faster. The output is the same.
            resumed.append((workflow_id, output_ref(connect(), workflow_id, fresh=True)))
        except Exception as error:
            # One that can't be resumed does not keep the others from it; its ref raises the error.
            logger.error("Workflow '%s' could not be resumed: %s", workflow_id, error)
            resumed.append((workflow_id, ray.put(OutputError(error))))
    return resumed


# -- stop and remove -----------------------------------------------------------------------


def cancel(workflow_id: str) -> None:
    connect().call("cancel", validate_workflow_id(workflow_id))


def delete(workflow_id: str) -> None:
    connect().call("delete", validate_workflow_id(workflow_id))


def prune(older_than: float, statuses: set[WorkflowStatus] | None, keep: int) -> list[str]:
    return removal.prune(connect(), older_than, statuses, keep)


# -- look ----------------------------------------------------------------------------------


def get_output(workflow_id: str, task_id: str | None) -> Any:
    return await_output(connect(), validate_workflow_id(workflow_id), task_id)


def get_output_async(workflow_id: str, task_id: str | None) -> ray.ObjectRef:
    connection = connect()
    read_row(connection.storage, validate_workflow_id(workflow_id))
    return output_ref(connection, workflow_id, task_id, fresh=False)


def get_status(workflow_id: str) -> WorkflowStatus:
    return reads.get_status(connect(), workflow_id)


def list_all(wanted: Iterable[WorkflowStatus]) -> list[tuple[str, WorkflowStatus]]:
    return reads.list_all(connect(), wanted)


def get_metadata(workflow_id: str, task_id: str | None) -> dict[str, Any]:
    return reads.get_metadata(connect(), workflow_id, task_id)


def get_tasks(workflow_id: str) -> list[TaskInfo]:
    return reads.get_tasks(connect(), workflow_id)
