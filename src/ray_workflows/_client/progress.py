"""Shows the progress of a workflow on standard error: a bar on a terminal, lines in a log."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ray_workflows._client.reader import Observation, Reader
from ray_workflows._client.task_states import task_status
from ray_workflows._client.views import WorkflowView
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.tasks import TaskStatus

#: Seconds between two updates: on a terminal, and in a log.
BAR_SECONDS, LINE_SECONDS = 0.25, 10.0

#: Updates take at most this part of the time.
BUSY_PART = 0.1

#: Statuses of tasks that need not run again.
DONE = (TaskStatus.SUCCESSFUL, TaskStatus.CONTINUED, TaskStatus.ABANDONED)

#: Statuses of other counted tasks, and the word for each.
NOTED = {
    TaskStatus.RUNNING: "running",
    TaskStatus.QUEUED: "queued",
    TaskStatus.RETRYING: "retrying",
    TaskStatus.FAILED: "failed",
}


def has_widgets() -> bool:
    """Whether a notebook has the widgets without which it can't show a bar."""
    return importlib.util.find_spec("ipywidgets") is not None


class ProgressDisplay:
    """Shows the progress of one workflow. A context manager; call `update` inside."""

    def __init__(self, reader: Reader, row: CatalogRow) -> None:
        self.storage = reader.storage
        self.workflow_id = row.workflow_id
        self.view = WorkflowView(reader.storage, row)
        self.console = Console(stderr=True)
        self.started_at = time.monotonic()
        self.shown = ""
        self.bar: Progress | None = None
        if self.console.is_terminal or (self.console.is_jupyter and has_widgets()):
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeElapsedColumn(),
                console=self.console,
            )
            self.line = self.bar.add_task(self.workflow_id, total=None, note="")

    def __enter__(self) -> ProgressDisplay:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.update()
        if self.bar is not None:
            self.bar.stop()

    def update(self) -> float:
        """Show the present progress. Returns the seconds until the next update."""
        began = time.monotonic()
        self.view.read()
        seen = Observation(self.view.state.status, driven=True, now=self.storage.now())
        tasks = self.view.tasks.values()
        counts = Counter(task_status(self.view, task, seen) for task in tasks)
        done = sum(counts[status] for status in DONE)
        notes = [f"{counts[status]} {word}" for status, word in NOTED.items() if counts[status]]
        self.show(done, len(self.view.tasks), ", ".join(notes))
        usual = LINE_SECONDS if self.bar is None else BAR_SECONDS
        return max(usual, (time.monotonic() - began) / BUSY_PART)

    def show(self, done: int, total: int, note: str) -> None:
        if self.bar is not None:
            self.bar.update(self.line, completed=done, total=total, note=note)
            return
        text = f"{self.workflow_id}: {done} of {total} tasks done" + (f", {note}" if note else "")
        if text != self.shown:
            self.shown = text
            seconds = time.monotonic() - self.started_at
            line = f"{text} ({seconds:.0f} s)"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
