"""``ray-workflows env``: what a workflow remembers of where it was submitted, and what differs."""

from __future__ import annotations

import json
from typing import Any

import click
import msgspec

from ray_workflows._client.environments import (
    Remembered,
    describe_environment,
    recorded_code,
    remembered,
)
from ray_workflows._environment.compare import changed_modules, diff, look, other_versions
from ray_workflows._environment.record import Record
from ray_workflows.cli.parameters import json_option, storage_option, workflow_argument
from ray_workflows.cli.printing import (
    format_time,
    note,
    print_fields,
    print_json,
    print_table,
    printable,
)
from ray_workflows.cli.stores import open_reader
from ray_workflows.storage import Storage

TITLES = ("WHAT", "RECORDED", "HERE")


@click.command()
@workflow_argument
@storage_option
@click.option("--diff", "with_diff", is_flag=True, help="Print how changed files differ.")
@json_option
def env(workflow_id: str, storage: str | None, with_diff: bool, as_json: bool) -> None:
    """Show the environment of the workflow ID.

    What was recorded when it was submitted, and how it differs from what is here: versions of
    packages, and files of its code that were changed since. Needs no cluster.
    """
    if with_diff and as_json:
        raise click.UsageError("--json has the diffs already: leave --diff out.")
    reader = open_reader(storage)
    found = remembered(reader, workflow_id)
    info = describe_environment(found)
    differences = compare(found)
    if as_json:
        diffs = dict(all_diffs(reader.storage, found))
        print_json({**msgspec.to_builtins(info), "differences": differences, "diffs": diffs})
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
    for change in info.resumed:
        what = "with another environment" if change.environment else "as it was"
        who = f"{format_time(change.at)} by {printable(change.by)}"
        click.echo(f"resumed {who}: {change.code} code, {what}")
    if found.record is None:
        note("Nothing was recorded: it was submitted by an older release.")
    if not differences:
        return
    click.echo()
    print_table(TITLES, (tuple(map(printable, row.values())) for row in differences))
    if with_diff:
        for _, text in all_diffs(reader.storage, found):
            click.echo()
            click.echo(printable_lines(text))


def compare(found: Remembered) -> list[dict[str, str]]:
    """What is another here than what was recorded."""
    record = found.record
    if record is None:
        return []
    rows = [
        {"what": name, "recorded": theirs, "here": ours or "missing"}
        for name, theirs, ours in other_versions(record, look(record.installed))
    ]
    for name, how in changed_modules(record).items():
        rows.append({"what": name, "recorded": record.modules[name].digest[:12], "here": how})
    return rows


def all_diffs(storage: Storage, found: Remembered) -> list[tuple[str, str]]:
    """The files that were changed since, and how they differ."""
    record: Record | None = found.record
    if record is None:
        return []
    changed = [name for name, how in changed_modules(record).items() if how == "changed"]
    if not changed:
        return []
    code: Any = recorded_code(storage, found.state.environment)
    return [(name, diff(record, name, code)) for name in changed]


def printable_lines(text: str) -> str:
    """Text of several lines, each as `printable` makes it."""
    return "\n".join(printable(line) for line in text.splitlines())
