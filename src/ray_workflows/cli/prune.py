"""``ray-workflows prune``: delete what ended long ago."""

from __future__ import annotations

import click

from ray_workflows._client import removal
from ray_workflows._client.reader import Reader
from ray_workflows._environment.shared_items import PACKAGE, collect
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.cli.bulk import ask
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.parameters import (
    address_option,
    json_option,
    parse_duration,
    storage_option,
)
from ray_workflows.cli.printing import Command, count, note, print_json, print_result, printable

PRUNABLE = [*(status.value for status in removal.ENDED), WorkflowStatus.RESUMABLE.value]


@click.command(cls=Command)
@storage_option
@address_option
@click.option(
    "--older-than",
    type=parse_duration,
    metavar="DURATION",
    required=True,
    help="Delete what ended longer ago than this: 30d, 12h, 90m, 45s or 2w.",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(PRUNABLE, case_sensitive=False),
    multiple=True,
    help="Only workflows of this status. Can be given several times. Default: all but RESUMABLE.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Leave so many of them, those that ended last.",
)
@click.option("--dry-run", is_flag=True, help="Only print which would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def prune(
    storage: str | None,
    address: str | None,
    older_than: float,
    statuses: tuple[str, ...],
    keep: int,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete workflows that ended long ago.

    All that they have stored goes with them, and so do the packages of code that no workflow uses
    any more. Needs no cluster. Prints their IDs. Running and pending ones are never deleted.
    """
    reader = find_reader(storage, address, changes=True)
    wanted = {WorkflowStatus(status.upper()) for status in statuses} or None
    found = removal.find_prunable(reader, older_than, wanted, keep)
    if found and not dry_run and not yes:
        ask(f"Delete {count(len(found))} from {reader.storage.url}?")
    names = [row.workflow_id for row in found] if dry_run else removal.prune_rows(reader, found)
    deleted = []
    for workflow_id in names:
        deleted.append(workflow_id)
        if not as_json:
            print_result(printable(workflow_id))
    if as_json:
        print_json(deleted)
    done = "to be deleted" if dry_run else "deleted"
    note(f"{count(len(deleted))} {done} from {reader.storage.url}.")
    if not dry_run:
        remove_unused(reader)


def remove_unused(reader: Reader) -> None:
    """Remove the packages of code that no workflow uses any more, and say how many."""
    removed = sum(1 for name in collect(reader.storage) if name.startswith(f"{PACKAGE}/"))
    if removed:
        packages = "1 package" if removed == 1 else f"{removed} packages"
        note(f"{packages} of code removed, which no workflow uses any more.")
