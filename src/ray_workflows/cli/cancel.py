"""``ray-workflows cancel``: stop a workflow."""

from __future__ import annotations

import click

from ray_workflows._client import bulk, removal
from ray_workflows._client.connection import Connection
from ray_workflows._client.outputs import read_row
from ray_workflows._model.filters import Filter
from ray_workflows.cli.bulk import check_one_or_many, do_many, many_options
from ray_workflows.cli.clusters import connect
from ray_workflows.cli.parameters import (
    address_option,
    codec_option,
    json_option,
    storage_option,
)
from ray_workflows.cli.printing import Command, print_json, print_result, printable
from ray_workflows.cli.waiting import CLUSTER_SECONDS, within


@click.command(cls=Command)
@many_options
@storage_option
@codec_option
@address_option
@json_option
def cancel(
    workflow_id: str | None,
    wanted: Filter | None,
    dry_run: bool,
    yes: bool,
    storage: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Stop the workflow ID, or those that a filter means.

    Their running tasks are stopped; what they have stored stays. A filter without a status means
    those that have not ended.
    """
    check_one_or_many(workflow_id, wanted, dry_run, yes)
    connection = connect(storage, address)
    if wanted is not None:
        do_many(
            connection,
            wanted,
            bulk.canceling(connection),
            done="canceled",
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
        return
    assert workflow_id is not None
    within(CLUSTER_SECONDS, "the coordinator to cancel it", cancel_one, connection, workflow_id)
    if as_json:
        print_json({"workflow_id": workflow_id, "canceled": True})
    else:
        print_result(f"Canceled {printable(workflow_id)}.")


def cancel_one(connection: Connection, workflow_id: str) -> None:
    """Stop a workflow."""
    removal.cancel(connection, read_row(connection.storage, workflow_id))
