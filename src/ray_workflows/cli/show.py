"""``ray-workflows show``: one workflow and its tasks."""

from __future__ import annotations

import json
from typing import Any

import click

from ray_workflows._client.outputs import read_row
from ray_workflows._client.reads import get_tasks
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import TaskInfo, TaskStatus
from ray_workflows.cli.list import describe
from ray_workflows.cli.parameters import json_option, storage_option, workflow_argument
from ray_workflows.cli.printing import (
    Command,
    duration,
    first_line,
    format_duration,
    format_time,
    print_fields,
    print_json,
    print_result,
    print_table,
    printable,
)
from ray_workflows.cli.stores import open_reader

TITLES = ("TASK", "STATUS", "ATTEMPTS", "DURATION", "ERROR")


def describe_task(task: TaskInfo, now: float | None) -> dict[str, Any]:
    """A task for machines. ``now`` is None if nobody drives the workflow."""
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
        "upstream": list(task.upstream),
    }


@click.command(cls=Command)
@workflow_argument
@storage_option
@json_option
def show(workflow_id: str, storage: str | None, as_json: bool) -> None:
    """Show the workflow ID and its tasks.

    Tasks have a state, a number of attempts and a duration. In a pipe the tasks follow after an
    empty line, each a line with tabs between its ID, state, attempts, duration and the first
    line of its error.
    """
    reader = open_reader(storage)
    row = read_row(reader.storage, validate_workflow_id(workflow_id))
    status = reader.status(row)
    now = reader.storage.now()
    found = describe(row, status, now)
    driven = status is WorkflowStatus.RUNNING
    tasks = [
        describe_task(task, now if driven else None) for task in get_tasks(reader, workflow_id)
    ]
    if as_json:
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
            )
            for task in tasks
        ),
    )
