"""``ray-workflows cancel``: stop a workflow."""

from __future__ import annotations

import click

from ray_workflows._client import removal
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows.cli.clusters import connect
from ray_workflows.cli.parameters import (
    address_option,
    codec_option,
    json_option,
    storage_option,
    workflow_argument,
)
from ray_workflows.cli.printing import Command, print_json, print_result, printable
from ray_workflows.cli.waiting import CLUSTER_SECONDS, within


@click.command(cls=Command)
@workflow_argument
@storage_option
@codec_option
@address_option
@json_option
def cancel(workflow_id: str, storage: str | None, address: str | None, as_json: bool) -> None:
    """Stop the workflow ID.

    Its running tasks are stopped; what it has stored stays.
    """
    validate_workflow_id(workflow_id)
    connection = connect(storage, address)
    within(CLUSTER_SECONDS, "the coordinator to cancel it", removal.cancel, connection, workflow_id)
    if as_json:
        print_json({"workflow_id": workflow_id, "canceled": True})
    else:
        print_result(f"Canceled {printable(workflow_id)}.")
