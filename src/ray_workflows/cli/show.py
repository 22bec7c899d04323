"""``ray-workflows show``: one workflow and its tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import click
import msgspec

from ray_workflows._client.outputs import read_row
from ray_workflows._client.reads import get_tasks
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import AttemptInfo, StartStatus, TaskInfo, TaskStatus
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.list import describe
from ray_workflows.cli.messages import way_on
from ray_workflows.cli.parameters import json_option, storage_option, workflow_argument
from ray_workflows.cli.printing import (
    Command,
    duration,
    first_line,
    format_duration,
    format_time,
    note,
    print_fields,
    print_json,
    print_result,
    print_table,
    printable,
)

TITLES = ("TASK", "STATUS", "ATTEMPTS", "DURATION", "ERROR", "REASON")
START_TITLES = ("TASK", "STARTS", "STATUS", "ERROR")
ATTEMPT_TITLES = ("TASK", "ATTEMPT", "OUTCOME", "STARTED", "DURATION", "NODE", "ERROR")


def describe_task(task: TaskInfo, now: float | None) -> dict[str, Any]:
    """A task for machines. ``now`` is None if no coordinator drives the workflow."""
    ended_at = task.ended_at
    if task.status is TaskStatus.RUNNING:
        ended_at = now
    return {
        "task_id": task.task_id,
        "status": task.status.value,
        "attempts": task.attempts,
        "started_at": task.started_at,
        "ended_at": task.ended_at,
        "duration": duration(task.started_at, ended_at),
        "error": task.error,
        "reason": task.reason,
        "retry_at": task.retry_at,
        "upstream": list(task.upstream),
        "starts": [msgspec.to_builtins(start) for start in task.starts],
    }


def describe_attempt(attempt: AttemptInfo) -> dict[str, Any]:
    """An attempt for machines."""
    return {
        **msgspec.to_builtins(attempt),
        "duration": duration(attempt.started_at, attempt.ended_at),
    }


@click.command(cls=Command)
@workflow_argument
@click.option("--attempts", is_flag=True, help="Also show every attempt of every task.")
@storage_option
@json_option
def show(workflow_id: str, attempts: bool, storage: str | None, as_json: bool) -> None:
    """Show the workflow ID and its tasks.

    Tasks have a state, a number of attempts and a duration. In a pipe the tasks follow after an
    empty line, each a line with tabs between its ID, state, attempts, duration, the first line of
    its error, and the reason why it has not ended. The attempts follow after another empty line,
    and after one more the workflows that tasks have started and that are not there: the task, the
    workflow, PENDING or REFUSED, and why it was refused.
    """
    reader = find_reader(storage)
    row = read_row(reader.storage, validate_workflow_id(workflow_id))
    status = reader.status(row)
    now = reader.storage.now()
    found = describe(row, status, now)
    driven = status is WorkflowStatus.RUNNING
    infos = get_tasks(reader, workflow_id, attempts=attempts)
    tasks = [describe_task(task, now if driven else None) for task in infos]
    if as_json:
        if attempts:
            for task, info in zip(tasks, infos, strict=True):
                task["history"] = [describe_attempt(attempt) for attempt in info.history]
        print_json({**found, "user_metadata": row.metadata, "tasks": tasks})
        return
    print_fields(
        [
            ("workflow", printable(workflow_id)),
            ("status", found["status"]),
            ("submitted", format_time(row.submitted_at)),
            ("started", format_time(row.started_at)),
            ("ended", format_time(row.ended_at)),
            ("duration", format_duration(found["duration"])),
            ("error", printable(row.error or "")),
            ("metadata", json.dumps(row.metadata) if row.metadata else ""),
        ]
    )
    print_result()
    print_table(
        TITLES,
        (
            (
                printable(task["task_id"]),
                task["status"],
                str(task["attempts"]),
                format_duration(task["duration"]),
                first_line(task["error"]),
                printable(task["reason"] or ""),
            )
            for task in tasks
        ),
    )
    if attempts:
        print_result()
        print_table(ATTEMPT_TITLES, attempt_rows(infos))
    missing = list(start_rows(infos))
    if missing:
        print_result()
        print_table(START_TITLES, missing)
    if status is WorkflowStatus.FAILED:
        note(way_on(workflow_id))


def start_rows(infos: Iterable[TaskInfo]) -> Iterator[tuple[str, ...]]:
    """A row of the table for each workflow that a task has started and that is not there."""
    for info in infos:
        for start in info.starts:
            if start.status is not StartStatus.STARTED:
                yield (
                    printable(info.task_id),
                    printable(start.workflow_id),
                    start.status.value,
                    first_line(start.error),
                )


def attempt_rows(infos: Iterable[TaskInfo]) -> Iterator[tuple[str, ...]]:
    """A row of the table for each attempt of all tasks."""
    for info in infos:
        for attempt in info.history:
            yield (
                printable(info.task_id),
                str(attempt.attempt),
                attempt.outcome.value,
                format_time(attempt.started_at),
                format_duration(duration(attempt.started_at, attempt.ended_at)),
                attempt.node,
                first_line(attempt.error),
            )
