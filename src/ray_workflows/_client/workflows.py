"""The verbs of a driver: one function each. Those that only read are in `reads`."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import ray
from ray.dag import DAGNode

from ray_workflows._capture.dag import check_root
from ray_workflows._client import environments, reads, removal, signals
from ray_workflows._client.code_changes import FORK, CodeChanges
from ray_workflows._client.connection import Connection, connect
from ray_workflows._client.environments import RecordedEnvironment, ResumeOptions
from ray_workflows._client.forks import Fork
from ray_workflows._client.outputs import (
    await_output,
    await_shown,
    read_row,
    seen_output,
)
from ray_workflows._client.reader import ACTIVE
from ray_workflows._client.submissions import SubmissionBuilder
from ray_workflows._client.waiter import OutputError, waiter_class
from ray_workflows._coordinator.protocol import ENCODER, OutputWanted
from ray_workflows._coordinator.requests import Submitted
from ray_workflows._model.answers import Accepted, Finished
from ray_workflows._model.catalog import CatalogRow, Tag
from ray_workflows._model.environment import EnvironmentInfo
from ray_workflows._model.filters import Filter
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.listing import WorkflowPage
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import TaskInfo

logger = logging.getLogger(__name__)


class DriversWaiter(NamedTuple):
    """The waiter actor of this process. ``client`` is its name at the coordinator."""

    connection: Connection
    actor: Any
    client: str


waiter: DriversWaiter | None = None


def get_waiter(connection: Connection) -> DriversWaiter:
    global waiter
    if waiter is None or waiter.connection is not connection:
        client = uuid.uuid4().hex
        actor = waiter_class.remote(connection.coordinator, client)
        waiter = DriversWaiter(connection, actor, client)
    return waiter


def output_ref(
    connection: Connection,
    workflow_id: str,
    incarnation: str,
    task_id: str | None = None,
    *,
    fresh: bool,
) -> ray.ObjectRef:
    """An ObjectRef of the output of a workflow. ``incarnation``: empty if it is not known."""
    return get_waiter(connection).actor.output.remote(workflow_id, incarnation, task_id, fresh)


def submitted_ref(
    waiter: DriversWaiter, workflow_id: str, answer: Accepted | Finished, holder_id: str
) -> ray.ObjectRef:
    """An ObjectRef of the output of a workflow that the waiter watches since it was accepted."""
    if isinstance(answer, Finished):
        return waiter.actor.output.remote(workflow_id, answer.incarnation, None, True)
    wanted = OutputWanted(workflow_id, answer.incarnation, holder_id)
    return waiter.actor.submitted_output.remote(ENCODER.encode(wanted))


def only_answer(submitted: Submitted) -> Accepted | Finished:
    (answer,) = submitted.answers
    if isinstance(answer, Exception):
        raise answer
    return answer


def generate_workflow_id() -> str:
    """An id for a workflow that was given none: a UUID and the time."""
    return f"{uuid.uuid4()}.{time.time():.9f}"


@contextmanager
def told_if_interrupted(workflow_id: str) -> Iterator[None]:
    """Scope of a wait for a workflow. An interruption logs that the workflow goes on."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning(
            "Interrupted. Workflow %r was not canceled: it goes on while its cluster runs. "
            "get_output(%r) waits for it again, cancel(%r) stops it, and when its cluster has "
            "ended, resume(%r) goes on with it.",
            *[workflow_id] * 4,
        )
        raise


# -- run and resume ------------------------------------------------------------------------


@contextmanager
def built(
    dag: DAGNode,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workflow_id: str | None,
    metadata: dict[str, Any],
    tags: dict[str, Tag],
    timeout: float | None,
) -> Iterator[SubmissionBuilder]:
    """Scope in which a captured workflow can be submitted."""
    check_root(dag)
    with SubmissionBuilder(connect()) as builder:
        builder.capture(dag, args, kwargs, given_or_generated(workflow_id), metadata, tags, timeout)
        yield builder


def run_async_many(
    dags: Sequence[DAGNode],
    workflow_ids: Sequence[str] | None,
    metadata: dict[str, Any],
    tags: dict[str, Tag],
    timeout: float | None,
) -> list[ray.ObjectRef]:
    for dag in dags:
        check_root(dag)
    given: Sequence[str | None] = workflow_ids or [None] * len(dags)
    ids = [given_or_generated(workflow_id) for workflow_id in given]
    with SubmissionBuilder(connect()) as builder:
        for dag, workflow_id in zip(dags, ids, strict=True):
            builder.capture(dag, (), {}, workflow_id, metadata, tags, timeout)
        waiter = get_waiter(builder.connection)
        submitted = builder.send(waiter.client)
    return [
        ray.put(OutputError(answer))
        if isinstance(answer, Exception)
        else submitted_ref(waiter, workflow_id, answer, submitted.holder_id)
        for workflow_id, answer in zip(ids, submitted.answers, strict=True)
    ]


def given_or_generated(workflow_id: str | None) -> str:
    return generate_workflow_id() if workflow_id is None else validate_workflow_id(workflow_id)


def fork(
    workflow_id: str, from_task: str, new_id: str | None, resume_options: ResumeOptions
) -> str:
    connection = connect()
    row = read_row(connection.storage, validate_workflow_id(workflow_id))
    changes = CodeChanges(connection.storage)
    new_id = forked(connection, row, from_task, new_id, resume_options, changes)
    changes.warn(FORK)
    return new_id


def forked(
    connection: Connection,
    row: CatalogRow,
    from_task: str,
    new_id: str | None,
    resume_options: ResumeOptions,
    changes: CodeChanges,
) -> str:
    """Fork a workflow; returns the id of the fork. ``changes`` collects the differences between the
    code here and that of the fork.

    Raises:
        WorkflowNotFoundError: the workflow was deleted, or has no such task.
    """
    new_id = given_or_generated(new_id)
    storage = connection.storage
    origin = Fork(storage, row, from_task)
    found = RecordedEnvironment(storage, row)
    change = environments.look_before_fork(storage, found, resume_options)
    with SubmissionBuilder(connection) as builder:
        functions = builder.add_fork(
            origin,
            new_id,
            change.environment,
            lambda incarnation: environments.present_functions(
                storage, origin.functions, row.incarnation, resume_options.code, incarnation
            ),
        )
        submitted = builder.send()
    only_answer(submitted)
    change = msgspec.structs.replace(change, functions=functions)
    changes.look(found, change, functions=origin.functions_to_run)
    return new_id


def run(
    dag: DAGNode,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workflow_id: str | None,
    metadata: dict[str, Any],
    tags: dict[str, Tag],
    timeout: float | None,
    progress: bool,
) -> Any:
    watched = None
    workflow_id = given_or_generated(workflow_id)
    with built(dag, args, kwargs, workflow_id, metadata, tags, timeout) as builder:
        if progress:
            submitted = builder.send()
        else:
            with told_if_interrupted(workflow_id):
                submitted, watched = builder.run()
    connection = builder.connection
    accepted = only_answer(submitted)
    done, value = seen_output(connection, watched)
    return value if done else awaited(connection, workflow_id, accepted, progress)


def awaited(
    connection: Connection, workflow_id: str, accepted: Accepted | Finished, progress: bool
) -> Any:
    """Wait for a workflow that the caller has started or resumed, and return its output.

    Raises:
        WorkflowNotFoundError: it was deleted meanwhile, even if another workflow has its id now.
    """
    with told_if_interrupted(workflow_id):
        if progress and not isinstance(accepted, Finished):
            return await_shown(connection, workflow_id, accepted.incarnation)
        return await_output(
            connection, workflow_id, None, fresh=True, incarnation=accepted.incarnation
        )


def run_async(
    dag: DAGNode,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workflow_id: str | None,
    metadata: dict[str, Any],
    tags: dict[str, Tag],
    timeout: float | None,
) -> ray.ObjectRef:
    with built(dag, args, kwargs, workflow_id, metadata, tags, timeout) as builder:
        waiter = get_waiter(builder.connection)
        submitted = builder.send(waiter.client)
    workflow_id = builder.submissions[0].workflow_id
    return submitted_ref(waiter, workflow_id, only_answer(submitted), submitted.holder_id)


def resume(workflow_id: str, canceled: bool, progress: bool, resume_options: ResumeOptions) -> Any:
    connection = connect()
    workflow_id = validate_workflow_id(workflow_id)
    changes = CodeChanges(connection.storage)
    row = environments.row_to_resume(connection.storage, workflow_id)
    accepted = environments.resume(connection, row, canceled, resume_options, changes.look)
    changes.warn()
    return awaited(connection, workflow_id, accepted, progress)


def resume_async(workflow_id: str, canceled: bool, resume_options: ResumeOptions) -> ray.ObjectRef:
    connection = connect()
    workflow_id = validate_workflow_id(workflow_id)
    changes = CodeChanges(connection.storage)
    row = environments.row_to_resume(connection.storage, workflow_id)
    answer = environments.resume(connection, row, canceled, resume_options, changes.look)
    changes.warn()
    return output_ref(connection, workflow_id, answer.incarnation, fresh=True)


# -- signals -------------------------------------------------------------------------------


def signal(workflow_id: str, name: str, value: Any, signal_id: str | None) -> None:
    connection = connect()
    pickled = signals.pickle_signal(name, value)
    row = read_row(connection.storage, validate_workflow_id(workflow_id))
    signals.send(connection, row, name, pickled, signal_id)


# -- tags ----------------------------------------------------------------------------------


def set_tags(workflow_id: str, tags: dict[str, Tag | None]) -> None:
    connection = connect()
    row = read_row(connection.storage, validate_workflow_id(workflow_id))
    connection.ask("set_tags", row.workflow_id, tags, incarnation=row.incarnation)


# -- stop and remove -----------------------------------------------------------------------


def cancel(workflow_id: str) -> None:
    connection = connect()
    removal.cancel(connection, read_row(connection.storage, validate_workflow_id(workflow_id)))


def delete(workflow_id: str) -> None:
    connection = connect()
    row = read_row(connection.storage, validate_workflow_id(workflow_id))
    removal.ask_to_delete(connection, row)


def prune(older_than: float, statuses: set[WorkflowStatus] | None, keep: int) -> list[str]:
    return removal.prune(connect(), older_than, statuses, keep)


# -- read ----------------------------------------------------------------------------------


def get_output(workflow_id: str, task_id: str | None) -> Any:
    connection = connect()
    with told_if_interrupted(validate_workflow_id(workflow_id)):
        return await_output(connection, workflow_id, task_id)


def get_output_async(workflow_id: str, task_id: str | None) -> ray.ObjectRef:
    connection = connect()
    workflow_id = validate_workflow_id(workflow_id)
    row = read_row(connection.storage, workflow_id)
    # The status at this call counts, and not that at the waiter's first poll.
    running = connection.status(row) in ACTIVE
    return output_ref(connection, workflow_id, row.incarnation, task_id, fresh=running)


def get_status(workflow_id: str) -> WorkflowStatus:
    return reads.get_status(connect(), workflow_id)


def list_all(wanted: Iterable[WorkflowStatus]) -> list[tuple[str, WorkflowStatus]]:
    return reads.list_all(connect(), wanted)


def list_workflows(
    filter: Filter, newest_first: bool, limit: int, after: str | None
) -> WorkflowPage:
    return reads.list_workflows(connect(), filter, newest_first, limit, after)


def count_workflows(filter: Filter) -> int:
    return reads.count_workflows(connect(), filter)


def get_metadata(workflow_id: str, task_id: str | None) -> dict[str, Any]:
    return reads.get_metadata(connect(), workflow_id, task_id)


def get_environment(workflow_id: str) -> EnvironmentInfo:
    return environments.get_environment(connect(), workflow_id)


def get_tasks(workflow_id: str, attempts: bool) -> list[TaskInfo]:
    return reads.get_tasks(connect(), workflow_id, attempts=attempts)
