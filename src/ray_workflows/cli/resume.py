"""``ray-workflows resume``: go on with a workflow."""

from __future__ import annotations

import json
from typing import Any

import click

from ray_workflows._client import bulk, environments
from ray_workflows._client.code_changes import CodeChanges
from ray_workflows._client.connection import Connection
from ray_workflows._client.environments import ResumeOptions
from ray_workflows._client.outputs import await_output
from ray_workflows._client.reads import import_directories
from ray_workflows._model.answers import Accepted, Finished
from ray_workflows._model.filters import Filter
from ray_workflows.cli.bulk import check_one_or_many, do_many, many_options
from ray_workflows.cli.clusters import NoClusterError, connect, local_cluster
from ray_workflows.cli.messages import command, explain_resume, note_all_changes, note_changes
from ray_workflows.cli.parameters import (
    address_option,
    code_option,
    codec_option,
    json_option,
    storage_option,
)
from ray_workflows.cli.printing import Command, note, printable
from ray_workflows.cli.scripts import load_script, script_option
from ray_workflows.cli.values import load, print_value
from ray_workflows.cli.waiting import START_SECONDS, within
from ray_workflows.exceptions import WorkflowError


def parse_runtime_env(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> dict[str, Any] | None:
    """Parse a JSON object."""
    if value is None:
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"It is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise click.BadParameter("It is not a JSON object.")
    return parsed


@click.command(cls=Command)
@many_options
@storage_option
@codec_option
@address_option
@click.option(
    "--local",
    is_flag=True,
    help="Start a Ray cluster of its own on this machine for it, and stop it afterwards.",
)
@click.option("--canceled", is_flag=True, help="Also if the workflow was canceled.")
@code_option
@script_option
@click.option(
    "--runtime-env",
    metavar="JSON",
    callback=parse_runtime_env,
    help="Fields of its runtime_env to replace, as JSON.",
)
@click.option("--no-strict", is_flag=True, help="Also if something that it needs is not here.")
@click.option("--no-wait", is_flag=True, help="Return when it goes on; do not wait for the output.")
@json_option
def resume(
    workflow_id: str | None,
    wanted: Filter | None,
    dry_run: bool,
    yes: bool,
    storage: str | None,
    address: str | None,
    local: bool,
    canceled: bool,
    code: str,
    script: str | None,
    runtime_env: dict[str, Any] | None,
    no_strict: bool,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Resume the workflow ID and print its output.

    With --filter, resume those that a filter means. Finished tasks do not run again. The output of
    one that has finished is printed at once. Many are not waited for; a filter without a status
    means those that are RESUMABLE or FAILED.
    """
    check_one_or_many(workflow_id, wanted, dry_run, yes)
    if wanted is not None and local:
        raise click.UsageError("--local runs one workflow, and --filter means many.")
    if local and no_wait:
        raise click.UsageError("--local runs it in this process: leave --no-wait out.")
    if local and address:
        raise click.UsageError("--local starts a cluster, --address names one: choose.")
    if no_wait and as_json:
        raise click.UsageError("--no-wait prints no output: leave --json out.")
    load_script(script, code)
    resume_options = ResumeOptions(code, runtime_env, {}, not no_strict)
    if wanted is not None:
        connection = connect(storage, address)
        changes = CodeChanges(connection.storage)
        do_many(
            connection,
            wanted,
            bulk.resuming(connection, canceled, resume_options, changes),
            done="resumed",
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
            afterwards=lambda: note_all_changes(changes, "resume"),
        )
        return
    assert workflow_id is not None
    try:
        if local:
            with local_cluster(storage) as connection:
                go_on(connection, workflow_id, canceled, resume_options, not no_wait, as_json)
        else:
            connection = connect(storage, address)
            go_on(connection, workflow_id, canceled, resume_options, not no_wait, as_json)
    except NoClusterError as error:
        raise click.ClickException(
            f"{error.message} To run it to its end in a cluster of its own: "
            f"{command('resume', workflow_id, '--local')}"
        ) from error
    except WorkflowError as error:
        raise click.ClickException(explain_resume(error, workflow_id)) from error


def go_on(
    connection: Connection,
    workflow_id: str,
    canceled: bool,
    resume_options: ResumeOptions,
    wait: bool,
    as_json: bool,
) -> None:
    """Resume one workflow, and print its output if ``wait``."""
    changes = CodeChanges(connection.storage)

    def start() -> Accepted | Finished:
        row = environments.row_to_resume(connection.storage, workflow_id)
        return environments.resume(connection, row, canceled, resume_options, changes.look)

    try:
        answer = within(START_SECONDS, f"{printable(workflow_id)} to be resumed", start)
        incarnation = answer.incarnation
        note_changes(changes, "resume", workflow_id)
        if not wait:
            note(f"{workflow_id} goes on. How far it is: {command('show', workflow_id)}")
            return
        value = load(
            lambda: await_output(
                connection, workflow_id, None, fresh=True, incarnation=incarnation
            ),
            lambda: import_directories(connection, workflow_id),
        )
    except KeyboardInterrupt:
        note(f"{workflow_id} is not canceled. How far it is: {command('show', workflow_id)}")
        raise
    print_value(value, as_json=as_json)
