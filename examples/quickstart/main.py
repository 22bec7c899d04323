"""The quickstart: the features one by one, then a workflow that loses its machine half way.

    python examples/quickstart/main.py

This script stands outside. It lets ``program.py`` run with a Ray cluster of its own, kills both
with SIGKILL when half of the work is stored, starts the program again on a new cluster, and checks
that nothing stored was lost or done twice. It exits with an error if any of that does not hold.

Where to read on: ``basics.py`` for the features, ``tested.py`` for how a workflow is tested,
``stdlib_report.py`` for the workflow, and ``program.py`` for what a user writes to start and to
resume it.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster import Machine
from ray_workflows._client.views import WorkflowView
from ray_workflows.storage import SqliteStorage
from stdlib_report import (
    WORKFLOW_ID,
    Report,
    read_executions,
    report_without_workflow,
    stdlib_directory,
)
from tested import run_test

PROGRAM = str(Path(__file__).with_name("program.py"))

#: How often storage is looked at, in seconds: often enough to see the middle of a short run.
POLL_SECONDS = 0.02

#: Fewer would prove little.
MIN_TASKS = 300

console = Console()


class Journal:
    """What is stored of the workflow, read past Ray: when it matters, no cluster is left to ask.

    This is the one place of the quickstart that looks behind the public API.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.storage = SqliteStorage(directory)
        self.view: WorkflowView | None = None
        self.seen = self.stamps()

    def stamps(self) -> list[int]:
        """Changes when something is written."""
        stamps = []
        for name in ("workflows.sqlite", "workflows.sqlite-wal"):
            with contextlib.suppress(FileNotFoundError):
                stamps.append((self.directory / name).stat().st_mtime_ns)
        return stamps

    def follow(self) -> None:
        """Read what was written since the last time, if anything was.

        After the crash this leaves it to the new cluster to open the database first: whoever
        does so has to tidy up what the crash left, and that is part of what is shown here.
        """
        stamps = self.stamps()
        if stamps != self.seen:
            self.seen = stamps
            self.read()

    def read(self) -> None:
        """Read what has been committed since the last time."""
        try:
            if self.view is None:
                row = self.storage.read_catalog(WORKFLOW_ID)
                if row is None:
                    return
                self.view = WorkflowView(self.storage, row)
            self.view.read()
        finally:
            # It opens again by itself; nothing is held in between.
            self.storage.close()

    @property
    def tasks(self) -> set[str]:
        """The ids of the tasks that are known by now."""
        return set(self.view.tasks) if self.view is not None else set()

    @property
    def committed(self) -> set[str]:
        """The ids of the tasks whose result, or continuation, is stored."""
        if self.view is None:
            return set()
        tasks = self.view.tasks.values()
        return {task.task_id for task in tasks if task.ended_at and not task.error}


class Crash(NamedTuple):
    """What was found right after the power cut, with nothing running any more."""

    killed: int
    tasks: set[str]
    committed: set[str]
    executions: list[str]


def show_progress() -> Progress:
    """A bar that counts committed tasks."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tasks committed"),
        TimeElapsedColumn(),
        console=console,
    )


def run_until_half(home: Path) -> Crash:
    """Start the program, and cut its power when half of the workflow's tasks are committed."""
    journal = Journal(home / "storage")
    with Machine([PROGRAM, "start", str(home)]) as machine:
        while len(journal.tasks) <= 1:  # Until the survey has found the files.
            check(machine.is_running(), "the program ended before its workflow had begun")
            time.sleep(POLL_SECONDS)
            journal.follow()
        total = len(journal.tasks)
        check(total >= MIN_TASKS, f"only {total} tasks: {stdlib_directory()} has too few sources")
        console.print("\n[bold]A report about the standard library, one task a file[/]")
        with show_progress() as progress:
            bar = progress.add_task("first cluster", total=total)
            while len(journal.committed) < total / 2:
                check(machine.is_running(), "the program ended before its power could be cut")
                time.sleep(POLL_SECONDS)
                journal.follow()
                progress.update(bar, completed=len(journal.committed))
            killed = machine.cut_power()
            # Only now can nobody commit any more. A copy is read, so that the new cluster finds
            # everything exactly as the crash left it.
            found = Journal(Path(shutil.copytree(home / "storage", home / "evidence")))
            found.read()
            progress.update(bar, completed=len(found.committed))
    return Crash(killed, found.tasks, found.committed, read_executions(home / "executions.log"))


def run_to_the_end(home: Path, crash: Crash) -> set[str]:
    """Start the program again, let it resume the workflow; return the tasks committed at last."""
    journal = Journal(home / "storage")
    with Machine([PROGRAM, "resume", str(home)]) as machine, show_progress() as progress:
        bar = progress.add_task(
            "second cluster, resumed", total=len(crash.tasks), completed=len(crash.committed)
        )
        while machine.is_running():
            time.sleep(POLL_SECONDS)
            journal.follow()
            if journal.view is not None:
                progress.update(bar, completed=len(journal.committed))
        journal.read()
        progress.update(bar, completed=len(journal.committed))
    return journal.committed


def check(holds: bool, message: str) -> None:
    """Exit with an error unless a condition holds."""
    if not holds:
        raise SystemExit(f"FAILED: {message}")


def judge(crash: Crash, after: list[str], committed_at_last: set[str], equal: bool) -> None:
    """Print what happened, and exit with an error if it is not what was promised.

    Args:
        crash: what was found after the power cut.
        after: the executions after it, as the log on disk has them.
        committed_at_last: the tasks that are committed in the end.
        equal: whether the result is that of an uninterrupted run.
    """
    ran_again = [task for task in after if task in crash.committed]
    uncommitted = set(crash.executions) - crash.committed
    not_run = crash.tasks - crash.committed - set(after)
    doubled = [task for task, count in Counter(after).items() if count > 1]

    table = Table(title="What the power cut did", title_justify="left")
    table.add_column("")
    table.add_column("found", justify="right")
    table.add_column("expected", justify="right")
    table.add_row("tasks committed before the kill", str(len(crash.committed)), "")
    table.add_row("  these ran again after it", str(len(ran_again)), "0", style="bold")
    table.add_row("tasks begun before the kill, not committed", str(len(uncommitted)), "")
    table.add_row(
        "  these ran again after it", str(len(uncommitted & set(after))), str(len(uncommitted))
    )
    table.add_row(
        "tasks run after the kill",
        str(len(set(after))),
        str(len(crash.tasks) - len(crash.committed)),
    )
    table.add_row("  these ran more than once", str(len(doubled)), "0")
    table.add_row("tasks committed in the end", str(len(committed_at_last)), str(len(crash.tasks)))
    table.add_row("result equal to an uninterrupted run", "yes" if equal else "NO", "yes")
    console.print(table)

    check(not ran_again, f"tasks ran again that were committed: {sorted(ran_again)[:5]}")
    check(crash.committed <= set(crash.executions), "the log misses executions of committed tasks")
    check(not not_run, f"tasks never ran that were not committed: {sorted(not_run)[:5]}")
    check(not doubled, f"tasks ran twice without need: {sorted(doubled)[:5]}")
    check(committed_at_last == crash.tasks, "not all tasks are committed in the end")
    check(equal, "the result differs from that of an uninterrupted run")


def print_report(report: Report) -> None:
    """What the workflow was about."""
    imports = ", ".join(f"{name} ({count})" for name, count in report.imports.most_common(5))
    console.print(
        f"{report.files} files, {report.lines:,} lines, {report.comments:,} comments, "
        f"{report.functions:,} functions, {report.classes:,} classes; most imported: {imports}\n",
        highlight=False,
    )


def main() -> None:
    """Run everything in a directory that is removed afterwards."""
    started = time.monotonic()
    # Both end this script through the `with` blocks, which clean up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("Stopped."))
    # Below /tmp because Ray puts sockets there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="quickstart-", dir="/tmp") as name:
        home = Path(name)
        runs = len(run_test().points)
        console.print(
            f"[bold]A test without a cluster[/]: {runs} runs of an order, each with a crash at "
            f"another place, all with the same result\n"
        )
        console.print("[bold]The features, one by one[/]")
        crash = run_until_half(home)
        console.print(
            f"[red]Power cut:[/] SIGKILL to {crash.killed} processes, the program and its whole "
            f"cluster."
        )
        committed_at_last = run_to_the_end(home, crash)
        report: Report = pickle.loads((home / "report.pickle").read_bytes())
        print_report(report)
        with console.status("Making the same report without interruption, in plain Python"):
            expected = report_without_workflow()
        after = read_executions(home / "executions.log")[len(crash.executions) :]
        judge(crash, after, committed_at_last, equal=report == expected)
    console.print(
        f"[green]Nothing that was stored ran again.[/] ({time.monotonic() - started:.0f} s)"
    )


if __name__ == "__main__":
    main()
