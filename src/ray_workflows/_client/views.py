"""Views of a workflow for users, folded from its journal."""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._coordinator.recovery import does_not_follow
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import Frame, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.plan import TaskOptions
from ray_workflows._model.steps import EndedStep, step_id
from ray_workflows._model.tasks import AttemptInfo, AttemptOutcome, StartInfo, StartStatus
from ray_workflows._model.values import ErrorInfo, Outcome
from ray_workflows.storage.base import Storage
from ray_workflows.storage.histories import History

#: Events that end an attempt.
AttemptEnd = (
    ev.TaskSucceeded | ev.TaskContinued | ev.TaskFailed | ev.AttemptFailed | ev.AttemptSuspended
)


def outcome_of(event: AttemptEnd) -> AttemptOutcome:
    """The outcome of an ended attempt."""
    if isinstance(event, ev.TaskSucceeded):
        return AttemptOutcome.RETURNED
    if isinstance(event, ev.TaskContinued):
        return AttemptOutcome.CONTINUED
    if isinstance(event, ev.AttemptSuspended):
        return AttemptOutcome.SUSPENDED
    if event.why:
        return AttemptOutcome(event.why)
    # Release 0.1.0 recorded only whether it was charged.
    lost = isinstance(event, ev.AttemptFailed) and not event.charged
    return AttemptOutcome.LOST_VALUE if lost else AttemptOutcome.RAISED


class TaskView:
    """A task, by the journal. ``upstream`` are task ids."""

    __slots__ = (
        "attempts",
        "checkpoint",
        "ended_at",
        "error",
        "history",
        "last_error",
        "metadata",
        "node",
        "number",
        "options",
        "outcome",
        "running",
        "started_at",
        "starts",
        "task_id",
        "unplaceable",
        "upstream",
    )

    def __init__(
        self, number: int, task_id: str, options: TaskOptions, checkpoint: bool, upstream: list[str]
    ) -> None:
        self.number = number
        self.task_id = task_id
        self.options = options
        self.upstream = upstream
        #: The given metadata, and the task's additions.
        self.metadata: dict[str, Any] = options.metadata
        self.checkpoint = checkpoint
        self.attempts = 0
        self.outcome: Outcome | None = None
        self.error: ErrorInfo | None = None
        #: The error of the last attempt, if it failed.
        self.last_error: ErrorInfo | None = None
        #: The attempt that a worker has reported as running, with its epoch.
        self.running = (0, 0)
        #: The node of that attempt.
        self.node = ""
        #: Why no node can hold it, after the epoch of that report.
        self.unplaceable = (0, "")
        self.started_at: float | None = None
        self.ended_at: float | None = None
        #: Its attempts, if the view records them.
        self.history: list[AttemptInfo] = []
        #: The workflows that it has started, by the ids of its messages.
        self.starts: dict[str, StartInfo] = {}


class WorkflowView:
    """Folds a journal with the engine, and keeps facts about every task that the engine forgets.

    ``attempts``: also record every attempt of every task.
    """

    def __init__(self, storage: Storage, row: CatalogRow, *, attempts: bool = False) -> None:
        self.history = History(storage, row)
        self.state = WorkflowState(row.workflow_id, row.incarnation)
        self.records_attempts = attempts
        self.tasks: dict[str, TaskView] = {}
        self.by_number: dict[int, TaskView] = {}
        #: How many there are; they have negative numbers.
        self.local_steps = 0
        #: For each frame, the tasks that have its result: its parent, and tasks whose tail
        #: continuation replaced their frame.
        self.results_of: dict[int, list[int]] = {}
        #: The senders of undelivered messages, by message id.
        self.senders: dict[str, TaskView] = {}

    @property
    def seq(self) -> int:
        """The number of the last folded entry."""
        return self.history.chain.seq

    def read(self) -> bool:
        """Fold new entries. Returns whether there were any.

        Raises:
            WorkflowNotFoundError: the workflow was deleted.
            StorageCorruptError: the journal is damaged; names the entry.
        """
        before = self.seq
        for entry, events in self.history.read():
            try:
                for event in events:
                    self.fold(event)
            except Exception as error:
                raise does_not_follow(self.state.workflow_id, entry.seq, error) from error
        return self.seq > before

    def fold(self, event: ev.Event) -> None:
        self.observe(event)
        before, epoch = self.state.next_frame, self.state.epoch
        evolve(self.state, event)
        if self.records_attempts:
            if self.state.epoch > epoch:
                self.close_attempts(AttemptOutcome.INTERRUPTED)
            elif isinstance(event, (ev.WorkflowCanceled, ev.WorkflowTimedOut)):
                self.close_attempts(AttemptOutcome.CANCELED)
        for number in range(before, self.state.next_frame):
            frame = self.state.frames.get(number)
            if frame is not None:
                self.add_frame(frame)
            # Else it is that of a step which its body canceled at once: none of its tasks ran.

    def add_frame(self, frame: Frame) -> None:
        numbers = range(frame.first, frame.first + len(frame.plan.tasks))
        ids = {number: self.state.tasks[number].task_id for number in numbers}
        for number in numbers:
            task = self.state.tasks[number]
            upstream = [ids[n] for n in task.upstream]
            self.add(TaskView(number, task.task_id, task.options, task.checkpoint, upstream))

    def add(self, view: TaskView) -> None:
        self.tasks[view.task_id] = view
        self.by_number[view.number] = view

    def add_local_step(self, event: ev.StepsEnded, ended: EndedStep) -> None:
        """Record a step that ran in the process of its body. The engine has no task for it."""
        task_id = step_id(self.state.tasks[event.task].task_id, ended.step.path)
        self.local_steps += 1
        view = TaskView(-self.local_steps, task_id, TaskOptions(), True, [])
        view.started_at, view.ended_at = ended.started_at, ended.ended_at
        view.attempts = 1
        error = ended.outcome.error
        if error is None:
            view.outcome = ended.outcome
        view.error = error
        self.add(view)
        outcome = AttemptOutcome.RETURNED if error is None else AttemptOutcome.RAISED
        self.record(view, 1, outcome, ended.started_at, ended.ended_at, error, event.node)

    def observe(self, event: ev.Event) -> None:
        """Record facts about tasks in an event, before the engine drops the tasks."""
        if isinstance(event, (ev.TaskSucceeded, ev.TaskContinued, ev.TaskFailed)):
            self.end_attempt(event, event.ended_at)
        elif isinstance(event, ev.SignalTaken):
            view = self.by_number[event.task]
            view.started_at, view.ended_at = event.started_at, event.at
            view.attempts += 1
            value = self.state.signals[event.name][event.signal_id]
            self.resolve(event.task, Outcome(value=value))
        elif isinstance(event, ev.AttemptStarted):
            view = self.by_number[event.task]
            view.started_at = event.started_at
            view.running = (self.state.epoch, event.attempt)
            view.node = event.node
            running = AttemptOutcome.RUNNING
            self.record(view, event.attempt, running, event.started_at, node=event.node)
        elif isinstance(event, ev.AttemptFailed):
            self.end_attempt(event, event.at)
        elif isinstance(event, ev.TasksUnplaceable):
            for number in event.tasks:
                self.by_number[number].unplaceable = (self.state.epoch, event.reason)
        elif isinstance(event, ev.Delivered):
            self.delivered(event)
        elif isinstance(event, ev.AttemptSuspended):
            self.end_attempt(event, event.ended_at)
        elif isinstance(event, ev.StepsEnded):
            for each in event.ended:
                self.add_local_step(event, each)
        if isinstance(event, ev.Sending) and event.messages:
            self.sent(event)
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
                wrapped = self.state.frames[event.frame].wraps
                self.resolve_frame(event.frame, Outcome(error=event.error, wrapped=wrapped))
        elif isinstance(event, ev.ValuesLost):
            for number in event.tasks:
                self.by_number[number].outcome = None

    def end_attempt(self, event: AttemptEnd, ended_at: float) -> None:
        view = self.by_number[event.task]
        error = event.error if isinstance(event, (ev.TaskFailed, ev.AttemptFailed)) else None
        view.started_at = event.started_at
        if isinstance(event, (ev.TaskSucceeded, ev.TaskContinued)) and event.metadata:
            view.metadata = {**view.metadata, **event.metadata}
        if not isinstance(event, (ev.AttemptFailed, ev.AttemptSuspended)):
            view.ended_at = ended_at
        view.attempts += 1
        view.unplaceable = (0, "")
        view.last_error = error
        outcome = outcome_of(event)
        self.record(view, event.attempt, outcome, event.started_at, ended_at, error, event.node)

    def sent(self, event: ev.Sending) -> None:
        """Record that a task has started workflows."""
        view = self.by_number[event.task]
        for message in event.messages:
            view.starts[message.message_id] = StartInfo(message.target, StartStatus.PENDING)
            self.senders[message.message_id] = view

    def delivered(self, event: ev.Delivered) -> None:
        """Record that a started workflow exists, or was refused for ever."""
        starts = self.senders.pop(event.message_id).starts
        refused = event.refusal is not None
        starts[event.message_id] = msgspec.structs.replace(
            starts[event.message_id],
            status=StartStatus.REFUSED if refused else StartStatus.STARTED,
            error=describe_error(event.refusal),
        )

    def close_attempts(self, outcome: AttemptOutcome) -> None:
        """Record that all running attempts have ended, at an unknown time."""
        for view in self.by_number.values():
            close_attempt(view, outcome)

    def record(
        self,
        view: TaskView,
        attempt: int,
        outcome: AttemptOutcome,
        started_at: float,
        ended_at: float | None = None,
        error: ErrorInfo | None = None,
        node: str = "",
    ) -> None:
        """Record an attempt, or replace its earlier record."""
        if not self.records_attempts:
            return
        found = AttemptInfo(
            attempt=attempt,
            epoch=self.state.epoch,
            outcome=outcome,
            started_at=started_at or None,
            ended_at=ended_at,
            error=describe_error(error),
            traceback="" if error is None else error.traceback,
            node=node,
        )
        if view.history and view.history[-1].outcome is AttemptOutcome.RUNNING:
            last = view.history[-1]
            if last.attempt == attempt:
                # The report for a dead worker does not name its node.
                view.history[-1] = msgspec.structs.replace(found, node=node or last.node)
                return
            close_attempt(view, AttemptOutcome.CANCELED)
        view.history.append(found)

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


def close_attempt(view: TaskView, outcome: AttemptOutcome) -> None:
    """Record that the last attempt, if it was running, has ended at an unknown time."""
    if view.history and view.history[-1].outcome is AttemptOutcome.RUNNING:
        view.history[-1] = msgspec.structs.replace(view.history[-1], outcome=outcome)


def describe_error(error: ErrorInfo | None) -> str | None:
    """Type and message of an error."""
    return None if error is None else f"{error.type_name}: {error.message}"


def task_metadata(view: TaskView) -> dict[str, Any]:
    """The metadata of a task, in the form of ``ray.workflow``."""
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
        "user_metadata": dict(view.metadata),
        "workflow_refs": view.upstream,
        "stats": stats,
    }
