"""``ray-workflows signal``: send a workflow a signal."""

from __future__ import annotations

import functools
import json
import reprlib
from typing import Any

import click

import ray_workflows
from ray_workflows._client import bulk
from ray_workflows._model.filters import Filter
from ray_workflows._model.ids import validate_signal_text
from ray_workflows.cli.bulk import check_one_or_many, do_many, filter_option
from ray_workflows.cli.clusters import connect
from ray_workflows.cli.messages import command
from ray_workflows.cli.parameters import (
    address_option,
    codec_option,
    json_option,
    storage_option,
)
from ray_workflows.cli.printing import Command, print_json, print_result, printable
from ray_workflows.cli.waiting import CLUSTER_SECONDS, within
from ray_workflows.exceptions import SignalRefusedError


def parse_value(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    """Parse the value, which is JSON."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        short = reprlib.repr(text)
        raise click.BadParameter(f"{short} is not JSON ({error}). A text is '\"text\"'.") from None


def parse_text(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """Check the name or the id of a signal."""
    try:
        return None if text is None else validate_signal_text(str(param.human_readable_name), text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def parse_name(text: str) -> str:
    """Check the name of a signal."""
    try:
        return validate_signal_text("name", text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'NAME'") from None


@click.command(cls=Command)
@click.argument("words", metavar="[ID] NAME", nargs=-1)
@filter_option
@click.option("--dry-run", is_flag=True, help="With --filter: only print which.")
@click.option("--yes", is_flag=True, help="With --filter: do not ask.")
@storage_option
@codec_option
@address_option
@click.option(
    "--value", metavar="JSON", callback=parse_value, help="Its value, as JSON. Default: null."
)
@click.option(
    "--signal-id",
    metavar="TEXT",
    callback=parse_text,
    help="Sent again with the same one, it is the same signal. Default: a new one.",
)
@json_option
def signal(
    words: tuple[str, ...],
    wanted: Filter | None,
    dry_run: bool,
    yes: bool,
    storage: str | None,
    address: str | None,
    value: Any,
    signal_id: str | None,
    as_json: bool,
) -> None:
    """Send the workflow ID the signal NAME.

    With --filter, those that a filter means. It is kept until a task of the workflow takes it, and
    taken once. A filter without a status means those that take signals.
    """
    if len(words) != (2 if wanted is None else 1):
        raise click.UsageError("Give an ID and the NAME of a signal, or --filter and the NAME.")
    name = parse_name(words[-1])
    workflow_id = words[0] if wanted is None else None
    check_one_or_many(workflow_id, wanted, dry_run, yes)
    connection = connect(storage, address)
    if wanted is not None:
        do_many(
            connection,
            wanted,
            bulk.signaling(connection, name, value, signal_id),
            done="signaled",
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
        return
    assert workflow_id is not None
    try:
        send = functools.partial(ray_workflows.signal, signal_id=signal_id)
        within(CLUSTER_SECONDS, "the coordinator to take it", send, workflow_id, name, value)
    except SignalRefusedError as error:
        message = f"Workflow {workflow_id!r} is {error.status}: it takes no signals."
        if error.status == "CANCELED":
            again = command("resume", workflow_id, "--canceled", "--no-wait")
            message += f" To go on nevertheless: {again}"
        raise click.ClickException(message) from error
    if as_json:
        print_json({"workflow_id": workflow_id, "name": name, "sent": True})
    else:
        print_result(f"Sent {printable(name)} to {printable(workflow_id)}.")
