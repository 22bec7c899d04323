"""How results are printed: tables on a terminal, tab-separated lines in a pipe, JSON if asked.

Only results go to stdout: while a command runs, output of Ray and of user code goes to stderr. Ids
and errors are users' text: characters that could move the cursor or reverse the line are shown as
escapes.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

STYLES = {
    "RUNNING": "cyan",
    "PENDING": "blue",
    "SUCCESSFUL": "green",
    "FAILED": "red",
    "CANCELED": "yellow",
    "RESUMABLE": "magenta",
    "problem": "red",
    "ok": "green",
}

#: The most characters of an error in a listing.
LINE_LENGTH = 300

#: The key in a command's context for the stdout that it was started with.
RESULTS = "ray_workflows.results"


class Command(click.Command):
    """A command with a stdout of its own.

    Ray prints warnings of its nodes on the stdout of a driver whatever ``log_to_driver`` says,
    and modules that a value needs may print when they are imported. That must not come between the
    results, which programs read.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        ctx.meta[RESULTS] = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            return super().invoke(ctx)


def results() -> TextIO:
    """The stdout that the running command was started with."""
    stream: TextIO = click.get_current_context().meta[RESULTS]
    return stream


def print_result(text: str = "") -> None:
    """Print a line of the result."""
    click.echo(text, file=results())


def print_json(document: Any) -> None:
    """Print one JSON document, in ASCII."""
    print_result(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Print a remark on stderr."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """The text on one line, with escapes for non-printable characters."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def count(number: int) -> str:
    """A number of workflows in words, such as "2 workflows"."""
    return f"{number} workflow" if number == 1 else f"{number} workflows"


def one_line(text: str) -> str:
    """The first line of a message, cut to `LINE_LENGTH`."""
    start = text[: 4 * LINE_LENGTH].lstrip()
    line = start.splitlines()[0] if start else ""
    return line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH]} ..."


def first_line(text: str | None) -> str:
    """As `one_line`, in printable characters."""
    return printable(one_line(text or ""))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. In a pipe: a line for each row, without titles and colors."""
    if not results().isatty():
        for row in rows:
            print_result("\t".join(row))
        return
    # Imported here, because that takes longer than most commands.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console(file=results()).print(table)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    rows = [(name, value) for name, value in fields if value]
    if results().isatty():
        width = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            print_result(click.style(name.ljust(width), bold=True) + value)
    else:
        for name, value in rows:
            print_result(f"{name}\t{value}")


def format_time(seconds: float | None) -> str:
    """A moment in the time zone of this machine."""
    if seconds is None:
        return ""
    try:
        moment = datetime.datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):
        # A timeout may exceed any calendar.
        return f"{seconds:.3g} s after 1970"
    return moment.isoformat(sep=" ", timespec="seconds")


def format_duration(seconds: float | None) -> str:
    """A duration with its two largest units."""
    if seconds is None:
        return ""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    left = round(seconds)
    for unit, size, smaller, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if left >= size:
            return f"{left // size} {unit} {left % size // part} {smaller}"
    return f"{left} s"


def duration(started_at: float | None, ended_at: float | None) -> float | None:
    """Seconds between two moments; 0 if clocks disagree and it would be negative."""
    if started_at is None or ended_at is None:
        return None
    return max(0.0, ended_at - started_at)
