"""``ray-workflows check``: whether durable functions would go on with the code here."""

from __future__ import annotations

from typing import Any

import click

from ray_workflows._client.environments import CURRENT
from ray_workflows._client.outputs import read_row
from ray_workflows._client.replay_checks import Checked, check_present_code
from ray_workflows._model.filters import Filter
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.cli.bulk import filter_option
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.parameters import codec_option, json_option, storage_option
from ray_workflows.cli.printing import Command, note, one_line, print_json, print_table, printable
from ray_workflows.cli.scripts import load_script, script_option

#: The statuses of workflows that may go on.
OPEN = (
    WorkflowStatus.RUNNING,
    WorkflowStatus.PENDING,
    WorkflowStatus.RESUMABLE,
    WorkflowStatus.FAILED,
)

TITLES = ("ID", "TASK", "RESULT", "WHY")


def describe(checked: Checked) -> dict[str, Any]:
    """A result for machines."""
    difference = checked.difference
    return {
        "workflow_id": checked.workflow_id,
        "task_id": checked.task_id,
        "function": checked.function,
        "result": result_of(checked),
        "recorded": None if difference is None else difference.recorded,
        "asked": None if difference is None else difference.asked,
        "problem": checked.problem,
    }


def result_of(checked: Checked) -> str:
    """A word for a result."""
    if checked.problem:
        return "unknown"
    return "same" if checked.difference is None else "differs"


def cells(checked: Checked) -> tuple[str, ...]:
    """A result for people."""
    why = checked.problem
    if checked.difference is not None:
        why = f"recorded: {checked.difference.recorded}; here: {checked.difference.asked}"
    return (
        printable(checked.workflow_id),
        printable(checked.task_id),
        result_of(checked),
        printable(one_line(why)),
    )


@click.command(cls=Command)
@click.argument("workflow_id", metavar="[ID]", required=False)
@filter_option
@storage_option
@codec_option
@click.option(
    "--code",
    type=click.Choice((CURRENT,)),
    default=CURRENT,
    show_default=True,
    help="With the code of the same modules here, and of --script.",
)
@script_option
@json_option
def check(
    workflow_id: str | None,
    wanted: Filter | None,
    storage: str | None,
    code: str,
    script: str | None,
    as_json: bool,
) -> None:
    """Check durable functions against the code here.

    Replays the history of each durable function that has not ended with the code that it has here:
    of the workflow ID, of those that a filter means, or of all that run or could be resumed. No
    step runs, and nothing is changed. Exit code 1 if one would ask for other steps than it did.
    """
    if workflow_id is not None and wanted is not None:
        raise click.UsageError("Name a workflow by its ID, or many by --filter.")
    load_script(script, code)
    reader = find_reader(storage)
    if workflow_id is not None:
        rows = [read_row(reader.storage, validate_workflow_id(workflow_id))]
    else:
        wanted = wanted or Filter()
        found = reader.rows(wanted.statuses or OPEN, conditions=wanted.conditions)
        rows = [row for row, _ in found]
    results = [each for row in rows for each in check_present_code(reader.storage, row)]
    if as_json:
        print_json([describe(each) for each in results])
    else:
        print_table(TITLES, map(cells, results))
    differing = sum(each.difference is not None for each in results)
    unknown = sum(bool(each.problem) for each in results)
    note(f"{len(results)} checked: {differing} would differ, {unknown} could not be checked.")
    if differing:
        raise click.ClickException(
            "Keep the steps of these, or guard the change with workflow.patched(...)."
        )
