"""``ray-workflows repair``: rebuilds a workflow's catalog data from its journal."""

from __future__ import annotations

import click

from ray_workflows._client import repairs
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
def repair(workflow_id: str, storage: str | None, address: str | None, as_json: bool) -> None:
    """Rebuild the catalog data of the workflow ID.

    It is rebuilt from the journal: the catalog row, or in an object store or shared directory the
    pointer and the index entry. `doctor` names damage. Needs no cluster. If the journal is damaged
    too, nothing is changed.
    """
    validate_workflow_id(workflow_id)
    reader = find_reader(storage, address, changes=True)
    row = repairs.repair(reader.storage, workflow_id)
    if as_json:
        print_json({"workflow_id": workflow_id, "repaired": row is not None})
    elif row is None:
        print_result(f"{printable(workflow_id)} is what its journal says: nothing was changed.")
    else:
        print_result(f"Repaired {printable(workflow_id)}, which is {row.status.value}.")
