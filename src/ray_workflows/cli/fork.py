"""``ray-workflows fork``: run a workflow again from one of its tasks, under a new id."""

from __future__ import annotations

import click

from ray_workflows._client import workflows
from ray_workflows._client.code_changes import CodeChanges
from ray_workflows._client.environments import Wishes
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows.cli.clusters import connect
from ray_workflows.cli.messages import note_changes
from ray_workflows.cli.parameters import (
    address_option,
    code_option,
    codec_option,
    json_option,
    storage_option,
    workflow_argument,
)
from ray_workflows.cli.printing import Command, print_json, print_result, printable
from ray_workflows.cli.scripts import load_script, script_option
from ray_workflows.cli.waiting import START_SECONDS, within


@click.command(cls=Command)
@workflow_argument
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
    workflow_id: str,
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

    The run is a workflow of its own, which keeps all results but those of that task and of what
    is downstream of it. Prints the id of the new workflow, which goes on in the cluster.
    """
    for given in (workflow_id, new_id):
        if given is not None:
            validate_workflow_id(given)
    load_script(script, code)
    connection = connect(storage, address)
    changes = CodeChanges(connection.storage)
    wishes = Wishes(code, strict=not no_strict)
    what = f"{printable(workflow_id)} to be forked"
    start = (connection, workflow_id, from_task, new_id, wishes, changes)
    created = within(START_SECONDS, what, workflows.forked, *start)
    note_changes(changes, "fork", workflow_id, "--from-task", from_task)
    if as_json:
        print_json({"workflow_id": created, "forked_from": workflow_id})
    else:
        print_result(created)
