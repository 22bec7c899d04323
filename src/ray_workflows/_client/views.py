"""Views: what users see of a workflow, folded from its journal. They change nothing."""

from __future__ import annotations

from typing import Any

from ray_workflows._codec.journal import events_of
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import Frame, Phase, Task, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.plan import TaskOptions
from ray_workflows._model.tasks import TaskInfo, TaskStatus
from ray_workflows._model.values import ErrorInfo, Outcome
from ray_workflows.storage.base import Storage


class TaskView:
    """A task as its journal tells it. ``upstream`` are task ids."""

    __slots__ = (
        "attempts",
        "checkpoint",
        "ended_at",
        "error",
        "number",
        "options",
        "outcome",
        "started_at",
        "task_id",
        "upstream",
    )

    def __init__(self, task: Task, upstream: list[str]) -> None:
        self.number = task.number
        self.task_id = task.task_id
        self.options: TaskOptions = task.options
        self.upstream = upstream
        self.checkpoint = task.checkpoint
        self.attempts = 0
        self.outcome: Outcome | None = None
        self.error: ErrorInfo | None = None
        self.started_at: float | None = None
        self.ended_at: float | None = None


class WorkflowView:
    """Folds a journal with the engine, and keeps of every task what the engine may forget."""

    def __init__(self, workflow_id: str, incarnation: str) -> None:
        self.state = WorkflowState(workflow_id, incarnation)
        self.seq = 0
        self.tasks: dict[str, TaskView] = {}
        self.by_number: dict[int, TaskView] = {}
        #: For each frame, the tasks whose result it is: its parent, and those whose continuation
        #: took their place.
        self.results_of: dict[int, list[int]] = {}

    def read(self, storage: Storage) -> bool:
        """Fold what was appended since the last time; whether there was anything."""
        entries = storage.read_journal(self.state.incarnation, self.seq)
        for entry in entries:
            for event in events_of(entry, self.state.workflow_id):
                self.observe(event)
                before = self.state.next_frame
                evolve(self.state, event)
                if self.state.next_frame > before:
                    self.add_frame(self.state.frames[before])
            self.seq = entry.seq
        return bool(entries)

    def add_frame(self, frame: Frame) -> None:
        numbers = range(frame.first, frame.first + len(frame.plan.tasks))
        ids = {number: self.state.tasks[number].task_id for number in numbers}
        for number in numbers:
            task = self.state.tasks[number]
            view = TaskView(task, [ids[n] for n in task.upstream])
            self.tasks[task.task_id] = view
            self.by_number[number] = view

    def observe(self, event: ev.Event) -> None:
        """Take what the event says about tasks, before the engine folds them away."""
        if isinstance(event, (ev.TaskSucceeded, ev.TaskContinued, ev.TaskFailed)):
            view = self.by_number[event.task]
            view.started_at, view.ended_at = event.started_at, event.ended_at
            view.attempts += 1
        if isinstance(event, ev.SignalTaken):
            view = self.by_number[event.task]
            view.started_at, view.ended_at = event.started_at, event.at
            view.attempts += 1
            value = self.state.signals[event.name][event.signal_id]
            self.resolve(event.task, Outcome(value=value))
        if isinstance(event, ev.AttemptStarted):
            self.by_number[event.task].started_at = event.started_at
        if isinstance(event, ev.AttemptFailed):
            view = self.by_number[event.task]
            view.started_at = event.started_at
            view.attempts += 1
        if isinstance(event, ev.TaskSucceeded):
            self.resolve(event.task, Outcome(value=event.value))
        elif isinstance(event, ev.TaskFailed):
            self.by_number[event.task].error = event.error
        elif isinstance(event, ev.TaskContinued):
            task = self.state.tasks[event.task]
            waiting = [event.task]
            if task.is_output:
                waiting += self.results_of.pop(task.frame.number, [])
            self.results_of[self.state.next_frame] = waiting
        elif isinstance(event, ev.ErrorCaught):
            outcome = Outcome(error=event.error, wrapped=True)
            if event.frame is None:
                self.resolve(event.task, outcome)
            else:
                self.resolve_frame(event.frame, outcome)
        elif isinstance(event, ev.ValuesLost):
            for number in event.tasks:
                self.by_number[number].outcome = None

    def resolve(self, number: int, outcome: Outcome) -> None:
        task = self.state.tasks[number]
        outcome = outcome.wrap_if(task.options.catch_exceptions)
        self.by_number[number].outcome = outcome
        self.by_number[number].error = None
        if task.is_output:
            self.resolve_frame(task.frame.number, outcome)

    def resolve_frame(self, frame: int, outcome: Outcome) -> None:
        outcome = outcome.wrap_if(self.state.frames[frame].wraps)
        for number in self.results_of.pop(frame, []):
            self.by_number[number].outcome = outcome


def task_infos(view: WorkflowView) -> list[TaskInfo]:
    """Every task of a workflow, in the order they came to be."""
    return [
        TaskInfo(
            task_id=task.task_id,
            status=task_status(view.state, task),
            attempts=task.attempts,
            started_at=task.started_at,
            ended_at=task.ended_at,
            upstream=tuple(task.upstream),
            error=None if error is None else f"{error.type_name}: {error.message}",
        )
        for task in view.by_number.values()
        for error in [task.error or (task.outcome.error if task.outcome is not None else None)]
    ]


STATUSES = {
    Phase.WAITING: TaskStatus.WAITING,
    Phase.ACTIVE: TaskStatus.RUNNING,
    Phase.TIMING: TaskStatus.RUNNING,
    Phase.EXPECTING: TaskStatus.RUNNING,
    Phase.CONTINUED: TaskStatus.CONTINUED,
    Phase.SUCCEEDED: TaskStatus.SUCCESSFUL,
    Phase.FAILED: TaskStatus.FAILED,
}


def task_status(state: WorkflowState, view: TaskView) -> TaskStatus:
    if view.outcome is not None:
        return TaskStatus.SUCCESSFUL
    task = state.tasks.get(view.number)
    if task is not None:
        return STATUSES[task.phase]
    if view.error is not None:
        return TaskStatus.FAILED
    # The engine let it go: as a continuation in tail position that others took further, or with
    # a continuation that was given up.
    return TaskStatus.CONTINUED if view.attempts and view.ended_at else TaskStatus.ABANDONED


def task_metadata(view: TaskView) -> dict[str, Any]:
    """The metadata of a task, in the shape users know."""
    options = view.options
    stats = {}
    if view.started_at is not None:
        stats["start_time"] = view.started_at
    if view.ended_at is not None:
        stats["end_time"] = view.ended_at
    return {
        "task_id": view.task_id,
        "task_options": {
            "task_type": "FUNCTION",
            "max_retries": options.max_retries,
            "catch_exceptions": options.catch_exceptions,
            "retry_exceptions": options.retry_exceptions,
            "checkpoint": view.checkpoint,
            "ray_options": dict(options.ray),
        },
        "user_metadata": dict(options.metadata),
        "workflow_refs": view.upstream,
        "stats": stats,
    }
