"""Shared code of the commands that take an ID or, in its place, a filter for many workflows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from ray_workflows._client import bulk
from ray_workflows._client.bulk import BulkResult, Verb
from ray_workflows._client.reader import Reader
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.filters import Filter, parse_filter
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows.cli.parameters import Command
from ray_workflows.cli.printing import count, note, one_line, print_json, print_result, printable
from ray_workflows.exceptions import InvalidFilterError


def read_filter(ctx: click.Context, param: click.Parameter, text: str | None) -> Filter | None:
    """Parse ``--filter``."""
    try:
        return None if text is None else parse_filter(text)
    except InvalidFilterError as error:
        raise click.BadParameter(str(error)) from None


filter_option = click.option(
    "--filter",
    "wanted",
    metavar="FILTER",
    callback=read_filter,
    help="Those that a filter means, such as 'status=FAILED tag.team=vision id=order-*'.",
)


def many_options(command: Command) -> Command:
    """The options for many workflows in place of one."""
    for option in (
        click.option("--yes", is_flag=True, help="With --filter: do not ask."),
        click.option("--dry-run", is_flag=True, help="With --filter: only print which."),
        filter_option,
        click.argument("workflow_id", metavar="[ID]", required=False),
    ):
        command = option(command)
    return command


def check_one_or_many(
    workflow_id: str | None, wanted: Filter | None, dry_run: bool, yes: bool
) -> None:
    """Raise unless there is an ID or a filter."""
    if (workflow_id is None) == (wanted is None):
        raise click.UsageError("Name a workflow by its ID, or many by --filter.")
    if wanted is None and (dry_run or yes):
        raise click.UsageError("--dry-run and --yes go with --filter.")
    if workflow_id is not None:
        validate_workflow_id(workflow_id)


def do_many(
    reader: Reader,
    wanted: Filter,
    verb: Verb,
    *,
    done: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    afterwards: Callable[[], None] | None = None,
) -> None:
    """Apply a verb to each workflow that matches a filter, and print the results.

    Args:
        reader: of the storage.
        wanted: the filter.
        verb: is applied to each workflow.
        done: the participle of the verb, such as ``canceled``.
        dry_run: only print the ids.
        yes: do not ask.
        as_json: print one document.
        afterwards: is called after the last workflow.
    """

    def agree(targets: list[CatalogRow]) -> bool:
        if targets and not dry_run and not yes:
            ask(f"{count(len(targets))} in {reader.storage.url} will be {done}. Go on?")
        return not dry_run

    try:
        results = bulk.do_many(reader, wanted, verb, agree)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    failed = [each for each in results if each.error is not None]
    if as_json:
        print_json([describe(each) for each in results])
    else:
        for each in results:
            if each.error is None:
                given = f"\t{printable(each.value)}" if isinstance(each.value, str) else ""
                print_result(f"{printable(each.workflow_id)}{given}")
    for each in failed:
        note(f"{printable(each.workflow_id)}: {one_line(str(each.error))}")
    note(f"{count(len(results) - len(failed))} {'to be ' * dry_run}{done}.")
    if afterwards is not None and not dry_run:
        afterwards()
    if failed:
        raise click.ClickException(f"{count(len(failed))} could not be {done}.")


def ask(question: str) -> None:
    """Ask the user for confirmation.

    Raises:
        click.UsageError: stdin is not a terminal.
        click.Abort: the answer is no.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask: say --yes, or --dry-run.")
    click.confirm(question, abort=True, err=True)


def describe(result: BulkResult) -> dict[str, Any]:
    """A result as a JSON object."""
    error = None if result.error is None else one_line(str(result.error))
    value = result.value if isinstance(result.value, str) else None
    return {"workflow_id": result.workflow_id, "value": value, "error": error}
