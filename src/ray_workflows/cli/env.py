"""``ray-workflows env``: the recorded environment of a workflow, and the differences here."""

from __future__ import annotations

import json

import click
import msgspec

from ray_workflows._client.environments import get_environment
from ray_workflows.cli.clusters import find_reader
from ray_workflows.cli.parameters import json_option, storage_option, workflow_argument
from ray_workflows.cli.printing import (
    Command,
    format_time,
    note,
    print_fields,
    print_json,
    print_result,
    print_table,
    printable,
)

TITLES = ("WHAT", "RECORDED", "HERE")


@click.command(cls=Command)
@workflow_argument
@storage_option
@click.option("--diff", "with_diff", is_flag=True, help="Print how changed files differ.")
@json_option
def env(workflow_id: str, storage: str | None, with_diff: bool, as_json: bool) -> None:
    """Show the environment of the workflow ID.

    The recorded environment, and the differences here: versions of packages, and files of its
    code that were changed since. Needs no cluster.
    """
    if with_diff and as_json:
        raise click.UsageError("--json has the diffs already: leave --diff out.")
    reader = find_reader(storage)
    info = get_environment(reader, workflow_id)
    if as_json:
        print_json(msgspec.to_builtins(info))
        return
    print_fields(
        [
            ("workflow", printable(workflow_id)),
            ("python", info.python),
            ("ray", info.ray),
            ("ray_workflows", info.ray_workflows),
            ("platform", printable(info.platform)),
            ("runtime_env", printable(json.dumps(info.runtime_env)) if info.runtime_env else ""),
            ("packages", f"{len(info.packages)} ({sum(info.packages.values())} bytes)"),
            ("modules", printable(", ".join(sorted(info.modules)))),
            ("installed", printable(", ".join(map("==".join, info.installed.items())))),
        ]
    )
    for name, why in info.skipped.items():
        print_result(f"not stored: {printable(name)}: {printable(why)}")
    for change in info.resumed:
        what = "with another environment" if change.environment else "as it was"
        who = f"{format_time(change.at)} by {printable(change.by)}"
        print_result(f"resumed {who}: {change.code} code, {what}")
    if not info.python:
        note("Nothing was recorded: it was submitted by an older release.")
    if not info.differences:
        return
    print_result()
    rows = ((each.what, each.recorded, each.here) for each in info.differences)
    print_table(TITLES, (tuple(map(printable, row)) for row in rows))
    if with_diff:
        for text in info.diffs.values():
            print_result()
            print_result(printable_lines(text))


def printable_lines(text: str) -> str:
    """Text of several lines, each made `printable`."""
    return "\n".join(printable(line) for line in text.splitlines())
