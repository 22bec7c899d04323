"""``ray-workflows fork``: run a workflow again from one of its tasks, under a new id."""

from __future__ import annotations

import click

from ray_workflows._client import bulk, workflows
from ray_workflows._client.code_changes import CodeChanges
from ray_workflows._client.environments import ResumeOptions
from ray_workflows._client.outputs import read_row
from ray_workflows._model.filters import Filter
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows.cli.bulk import check_one_or_many, do_many, many_options
from ray_workflows.cli.clusters import connect
from ray_workflows.cli.messages import note_all_changes, note_changes
from ray_workflows.cli.parameters import (
    address_option,
    code_option,
    codec_option,
    json_option,
    storage_option,
)
from ray_workflows.cli.printing import Command, print_json, print_result, printable
from ray_workflows.cli.scripts import load_script, script_option
from ray_workflows.cli.waiting import START_SECONDS, within


@click.command(cls=Command)
@many_options
@storage_option
@codec_option
@address_option
@click.option("--from-task", metavar="TASK", required=True, help="The task to run again.")
@click.option("--new-id", metavar="ID", help="Id of the new workflow. Default: a generated one.")
@code_option
@script_option
@click.option("--no-strict", is_flag=True, help="Also if something that it needs is not here.")
@json_option
def fork(
    workflow_id: str | None,
    wanted: Filter | None,
    dry_run: bool,
    yes: bool,
    storage: str | None,
    address: str | None,
    from_task: str,
    new_id: str | None,
    code: str,
    script: str | None,
    no_strict: bool,
    as_json: bool,
) -> None:
    """Run the workflow ID again from one of its tasks.

    With --filter, those that a filter means. The run is a workflow of its own, which keeps all
    results but those of that task and of what is downstream of it. Prints the id of the new
    workflow, which goes on in the cluster.
    """
    check_one_or_many(workflow_id, wanted, dry_run, yes)
    if new_id is not None:
        if wanted is not None:
            raise click.UsageError("--new-id names one workflow, and --filter means many.")
        validate_workflow_id(new_id)
    load_script(script, code)
    connection = connect(storage, address)
    changes = CodeChanges(connection.storage)
    resume_options = ResumeOptions(code, strict=not no_strict)
    if wanted is not None:
        do_many(
            connection,
            wanted,
            bulk.forking(connection, from_task, resume_options, changes),
            done="forked",
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
            afterwards=lambda: note_all_changes(changes, "fork", "--from-task", from_task),
        )
        return
    assert workflow_id is not None
    what = f"{printable(workflow_id)} to be forked"

    def start() -> str:
        row = read_row(connection.storage, workflow_id)
        return workflows.forked(connection, row, from_task, new_id, resume_options, changes)

    created = within(START_SECONDS, what, start)
    note_changes(changes, "fork", workflow_id, "--from-task", from_task)
    if as_json:
        print_json({"workflow_id": created, "forked_from": workflow_id})
    else:
        print_result(created)
