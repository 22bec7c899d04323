"""The group of all commands. It turns errors into a message and an exit code."""

from __future__ import annotations

import io
import queue
import sys
from typing import Any

import click

from ray_workflows._version import __version__
from ray_workflows.cli import waiting
from ray_workflows.cli.cancel import cancel
from ray_workflows.cli.check import check
from ray_workflows.cli.copy import copy
from ray_workflows.cli.delete import delete
from ray_workflows.cli.doctor import doctor
from ray_workflows.cli.env import env
from ray_workflows.cli.fork import fork
from ray_workflows.cli.list import list_workflows
from ray_workflows.cli.messages import explain
from ray_workflows.cli.output import output
from ray_workflows.cli.prune import prune
from ray_workflows.cli.repair import repair
from ray_workflows.cli.resume import resume
from ray_workflows.cli.show import show
from ray_workflows.cli.signal import signal
from ray_workflows.exceptions import WorkflowError


class Commands(click.Group):
    """Turns errors of ours into messages on stderr and exit code 1, without a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        try:
            return super().main(*args, **kwargs)
        except SystemExit as end:
            if waiting.abandoned:
                waiting.end_process(end.code)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        for stream in (sys.stdout, sys.stderr):
            # For a character that the terminal can't show, print its number and no traceback.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except (WorkflowError, queue.Full) as error:
            raise click.ClickException(explain(error)) from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="list, show, output, env, check and doctor read a storage and need no cluster.",
)
@click.version_option(__version__, prog_name="ray-workflows")
def main() -> None:
    """Look at durable workflows on Ray, and act on them."""


for command in (
    *(list_workflows, show, output, env, resume, cancel, signal, delete, fork, prune, copy),
    *(check, doctor, repair),
):
    main.add_command(command)
