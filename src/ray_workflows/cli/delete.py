"""``ray-workflows delete``: remove a workflow."""

from __future__ import annotations

import click

from ray_workflows._client import bulk, removal
from ray_workflows._client.outputs import read_row
from ray_workflows._model.filters import Filter
from ray_workflows.cli.bulk import check_one_or_many, do_many, many_options
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.parameters import (
    address_option,
    json_option,
    storage_option,
)
from ray_workflows.cli.printing import Command, print_json, print_result, printable
from ray_workflows.cli.prune import remove_unused


@click.command(cls=Command)
@many_options
@storage_option
@address_option
@json_option
def delete(
    workflow_id: str | None,
    wanted: Filter | None,
    dry_run: bool,
    yes: bool,
    storage: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Delete the workflow ID, or those that a filter means.

    All that they have stored goes with them. Needs no cluster. A running or pending one is not
    deleted: cancel it first. A filter without a status means those that are neither.
    """
    check_one_or_many(workflow_id, wanted, dry_run, yes)
    reader = find_reader(storage, address, changes=True)
    if wanted is not None:
        do_many(
            reader,
            wanted,
            bulk.deleting(reader),
            done="deleted",
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
            afterwards=lambda: remove_unused(reader),
        )
        return
    assert workflow_id is not None
    removal.delete(reader, read_row(reader.storage, workflow_id))
    if as_json:
        print_json({"workflow_id": workflow_id, "deleted": True})
    else:
        print_result(f"Deleted {printable(workflow_id)} from {reader.storage.url}.")
    remove_unused(reader)
