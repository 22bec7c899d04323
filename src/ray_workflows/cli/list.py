"""``ray-workflows list``: the workflows of a storage."""

from __future__ import annotations

import itertools
from typing import Any

import click

from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.filters import Filter
from ray_workflows._model.status import WORKFLOWS, WorkflowStatus
from ray_workflows.cli.bulk import filter_option
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.parameters import json_option, storage_option
from ray_workflows.cli.printing import (
    Command,
    duration,
    first_line,
    format_duration,
    format_time,
    note,
    one_line,
    print_json,
    print_table,
    printable,
)

STATUSES = [status.value for status in WorkflowStatus if status is not WorkflowStatus.NONE]

#: The most rows read at once.
PAGE = 1000

TITLES = ("ID", "STATUS", "SUBMITTED", "DURATION", "ERROR")


def describe(row: CatalogRow, status: WorkflowStatus, now: float) -> dict[str, Any]:
    """A workflow for machines. Times are seconds since 1970, ``duration`` is in seconds."""
    running = status is WorkflowStatus.RUNNING
    return {
        "workflow_id": row.workflow_id,
        "status": status.value,
        "kind": row.kind,
        "name": row.name,
        "tags": row.tags,
        "submitted_at": row.submitted_at,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "duration": duration(row.started_at, now if running else row.ended_at),
        "error": row.error,
    }


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    """A workflow for people."""
    return (
        printable(found["workflow_id"]),
        found["status"],
        format_time(found["submitted_at"]),
        format_duration(found["duration"]),
        first_line(found["error"]),
    )


@click.command("list", cls=Command)
@storage_option
@click.option(
    "--status",
    "statuses",
    type=click.Choice(STATUSES, case_sensitive=False),
    multiple=True,
    help="Only workflows of this status. Can be given several times.",
)
@filter_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="List so many of the newest.",
)
@click.option("--all", "everything", is_flag=True, help="List all, however many there are.")
@json_option
def list_workflows(
    storage: str | None,
    statuses: tuple[str, ...],
    wanted: Filter | None,
    limit: int,
    everything: bool,
    as_json: bool,
) -> None:
    """List workflows, the newest first.

    In a pipe each is a line with tabs between its ID, status, time of submission, duration and
    the first line of its error.
    """
    wanted = wanted or Filter()
    if statuses and wanted.statuses:
        raise click.UsageError("Name the statuses with --status or in --filter.")
    reader = find_reader(storage)
    named = {WorkflowStatus(status.upper()) for status in statuses}
    # One row more than the limit shows whether there are more.
    rows = reader.rows(
        named or wanted.statuses or WORKFLOWS,
        newest_first=True,
        page=PAGE if everything else min(limit + 1, PAGE),
        conditions=wanted.conditions,
    )
    now = reader.storage.now()
    found = (describe(row, status, now) for row, status in rows)
    shown = found if everything else itertools.islice(found, limit)
    if as_json:
        print_json([{**each, "error": each["error"] and one_line(each["error"])} for each in shown])
    else:
        print_table(TITLES, map(cells, shown))
    if not everything and next(found, None) is not None:
        note(f"There are more than these {limit}: see --limit and --all.")
