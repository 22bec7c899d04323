"""``ray-workflows doctor``: checks the health of storage and cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click
import msgspec
import ray

from ray_workflows._client.connection import Connection
from ray_workflows._client.reader import Reader
from ray_workflows.cli import checks
from ray_workflows.cli.checks import Finding, Level
from ray_workflows.cli.clusters import NoClusterError, SeveralClustersError, attach
from ray_workflows.cli.limits import limited
from ray_workflows.cli.parameters import address_option, json_option, storage_option
from ray_workflows.cli.printing import Command, print_json, print_table, printable
from ray_workflows.cli.stores import is_named, named, open_reader
from ray_workflows.cli.waiting import NoAnswerError


@click.command(cls=Command)
@storage_option
@address_option
@click.option(
    "--deep", is_flag=True, help="Also read every journal and every stored result for damage."
)
@json_option
@click.pass_context
def doctor(
    ctx: click.Context, storage: str | None, address: str | None, deep: bool, as_json: bool
) -> None:
    """Check the health of storage and cluster.

    Checks Ray, cluster, coordinator, storage and workflows; each problem has a remedy. Exits
    with 1 if there is a problem. Needs no cluster, and changes nothing.
    """
    findings = list(examine(storage, address, deep))
    healthy = all(finding.level is not Level.PROBLEM for finding in findings)
    if as_json:
        print_json({"ok": healthy, "checks": msgspec.to_builtins(findings)})
    else:
        print_table(("CHECK", "", "FOUND", "REMEDY"), map(cells, findings))
    if not healthy:
        ctx.exit(1)


def cells(finding: Finding) -> tuple[str, ...]:
    """A finding for people."""
    message, remedy = printable(finding.message), printable(finding.remedy)
    return finding.name, finding.level.value, message, remedy


def examine(spec: str | None, address: str | None, deep: bool) -> Iterator[Finding]:
    """The findings of all checks."""
    yield from checks.check_ray(ray.__version__)
    reader: Reader | None = None
    for found in examine_cluster(address):
        if isinstance(found, Connection):
            reader = found
        else:
            yield found
    if reader is None or (is_named(spec) and named(spec).url != reader.storage.url):
        if reader is not None:
            message = f"The cluster's workflows are elsewhere: in {reader.storage.url}."
            yield checks.note("storage", message)
        try:
            reader = open_reader(spec)
        except click.ClickException as error:
            remedy = "Name the storage with --storage; one is created by the first run."
            yield checks.problem("storage", error.message, remedy)
            return
    reader = limited(reader)
    try:
        yield from checks.check_storage(reader.storage)
        yield from checks.check_workflows(reader)
        if deep:
            yield from checks.check_journals(reader)
    except NoAnswerError as error:
        yield checks.problem("storage", error.message, "Check it, then try again.")


def examine_cluster(address: str | None) -> Iterator[Connection | Finding]:
    """The cluster, and its coordinator."""
    named = address or os.environ.get("RAY_ADDRESS")
    try:
        attach(address)
    except NoClusterError as error:
        if named:
            remedy = "Start it, or leave --address and $RAY_ADDRESS out."
            yield checks.problem("cluster", error.message, remedy)
        else:
            yield checks.note("cluster", "None runs here. Reading needs none.")
    except SeveralClustersError as error:
        yield checks.note("cluster", f"None was checked. {error.message}")
    except click.ClickException as error:
        remedy = "Use its versions of Python and Ray, and its token; or name another cluster."
        yield checks.problem("cluster", error.message, remedy)
    else:
        yield checks.ok("cluster", f"Connected to {ray.get_runtime_context().gcs_address}.")
        yield from checks.find_coordinator()
