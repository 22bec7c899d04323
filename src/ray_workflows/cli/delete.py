"""``ray-workflows delete``: remove a workflow."""

from __future__ import annotations

import click

from ray_workflows._client import removal
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.parameters import (
    address_option,
    json_option,
    storage_option,
    workflow_argument,
)
from ray_workflows.cli.printing import Command, print_json, print_result, printable


@click.command(cls=Command)
@workflow_argument
@storage_option
@address_option
@json_option
def delete(workflow_id: str, storage: str | None, address: str | None, as_json: bool) -> None:
    """Delete the workflow ID.

    All that it has stored goes with it. Needs no cluster. A running or pending one is not
    deleted: cancel it first.
    """
    validate_workflow_id(workflow_id)
    reader = find_reader(storage, address, changes=True)
    removal.delete(reader, workflow_id)
    if as_json:
        print_json({"workflow_id": workflow_id, "deleted": True})
    else:
        print_result(f"Deleted {printable(workflow_id)} from {reader.storage.url}.")
