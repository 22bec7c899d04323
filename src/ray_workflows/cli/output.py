"""``ray-workflows output``: the output of a workflow or of a task of it."""

from __future__ import annotations

from typing import IO

import click

from ray_workflows._client.reads import import_directories, stored_output
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.parameters import (
    codec_option,
    json_option,
    storage_option,
    workflow_argument,
)
from ray_workflows.cli.printing import Command
from ray_workflows.cli.values import load, pickle_value, print_value


@click.command(cls=Command)
@workflow_argument
@storage_option
@codec_option
@click.option("--task-id", metavar="TASK", help="The output of this task of the workflow.")
@click.option(
    "--to",
    type=click.File("wb", lazy=True),
    help="Write the output to this file, for pickle.load. '-' is stdout.",
)
@json_option
def output(
    workflow_id: str,
    storage: str | None,
    task_id: str | None,
    to: IO[bytes] | None,
    as_json: bool,
) -> None:
    """Print the output of the workflow ID.

    It is printed as Python shows it. This unpickles what the tasks returned, which can run
    code: do it only with workflows that you trust. ObjectRefs in it are replaced by the values
    that they refer to. It does not wait.
    """
    if to is not None and as_json:
        raise click.UsageError("--to writes a pickle; leave --json out.")
    reader = find_reader(storage)
    value = load(
        lambda: stored_output(reader, workflow_id, task_id),
        lambda: import_directories(reader, workflow_id),
    )
    if to is None:
        print_value(value, as_json=as_json)
    else:
        to.write(pickle_value(value))
