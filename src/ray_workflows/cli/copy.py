"""``ray-workflows copy``: copy workflows to another storage."""

from __future__ import annotations

import click

from ray_workflows._client.copies import Copying
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.limits import LimitedStorage
from ray_workflows.cli.messages import explain
from ray_workflows.cli.parameters import address_option, json_option, storage_option
from ray_workflows.cli.printing import Command, count, note, print_json, print_result, printable
from ray_workflows.exceptions import WorkflowError
from ray_workflows.storage.urls import storage_from_urls


@click.command(cls=Command)
@click.argument("workflow_id", metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="Copy all workflows of the storage.")
@click.option(
    "--to",
    metavar="DIR|URL",
    required=True,
    help="The storage to copy to. It is created if it is not there.",
)
@click.option("--to-blobs", metavar="DIR|URL", help="Where its values are, if not there.")
@storage_option
@address_option
@json_option
def copy(
    workflow_id: str | None,
    everything: bool,
    to: str,
    to_blobs: str | None,
    storage: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Copy the workflow ID, or all, to another storage.

    Prints the IDs of new copies. Needs no cluster, and deletes nothing. Running and pending
    workflows are not copied. Run the command again to complete an interrupted copy.
    """
    if everything == (workflow_id is not None):
        raise click.UsageError("Name a workflow, or say --all.")
    if workflow_id is not None:
        validate_workflow_id(workflow_id)
    reader = find_reader(storage, address, changes=True)
    target = LimitedStorage(storage_from_urls(to, to_blobs))
    copying = Copying(reader.storage, target)
    copying.open(workflow_id)
    copied: list[str] = []
    failed: list[str] = []

    def arrived(name: str) -> None:
        copied.append(name)
        if not as_json:
            print_result(printable(name))

    if workflow_id is not None:
        if copying.copy(workflow_id):
            arrived(workflow_id)
    else:
        for name, error in copying.copy_all():
            if error is None:
                arrived(name)
            else:
                failed.append(name)
                note(f"Error: {explain(error) if isinstance(error, WorkflowError) else error}")
    if as_json:
        print_json(copied)
    note(f"{count(len(copied))} copied from {reader.storage.url} to {target.url}.")
    if failed:
        raise click.ClickException(f"{count(len(failed))} not copied, for the reasons above.")
