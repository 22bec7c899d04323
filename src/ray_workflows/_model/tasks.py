"""Public records about tasks and attempts."""

from __future__ import annotations

from enum import Enum, unique

import msgspec


@unique
class TaskStatus(str, Enum):
    """Status of a task. A ``str``, as `WorkflowStatus`. `TaskInfo.reason` says more."""

    #: It waits: for results of other tasks, a time, a signal or an event, or because no coordinator
    #: drives its workflow.
    WAITING = "WAITING"
    #: It can run and was handed to Ray; no worker has reported that it runs.
    QUEUED = "QUEUED"
    #: A worker runs it. Workers report attempts that take longer than a quarter of a second.
    RUNNING = "RUNNING"
    #: An attempt failed, and the next one starts at `TaskInfo.retry_at`.
    RETRYING = "RETRYING"
    #: It returned a continuation, whose output will be its result.
    CONTINUED = "CONTINUED"
    #: Its result is stored, or no task needs its unstored result any more.
    SUCCESSFUL = "SUCCESSFUL"
    #: Its last attempt failed.
    FAILED = "FAILED"
    #: It was stopped with its workflow, which was canceled or ran into its timeout. It runs when
    #: the workflow is resumed.
    CANCELED = "CANCELED"
    #: It belonged to a continuation that an error ended.
    ABANDONED = "ABANDONED"

    def __str__(self) -> str:
        return self.value


@unique
class AttemptOutcome(str, Enum):
    """The outcome of an attempt. A ``str``, as `WorkflowStatus`."""

    #: A worker runs it.
    RUNNING = "running"
    #: It returned a value.
    RETURNED = "returned"
    #: It returned a continuation.
    CONTINUED = "continued"
    #: It only waited for steps of a durable function, and gave its worker back.
    SUSPENDED = "suspended"
    #: User code raised.
    RAISED = "raised"
    #: Its worker died, or it ended its worker.
    CRASHED = "crashed"
    #: Its node was lost or preempted, or short of memory.
    PREEMPTED = "preempted"
    #: It overran its timeout.
    TIMED_OUT = "timed_out"
    #: An object that it needed was lost.
    LOST_VALUE = "lost_value"
    #: Its worker could not reach the storage for minutes.
    LOST_STORAGE = "lost_storage"
    #: It was stopped: its workflow was canceled or ended, or its result was no longer needed.
    CANCELED = "canceled"
    #: The coordinator that had started it was lost; its later reports were ignored.
    INTERRUPTED = "interrupted"

    def __str__(self) -> str:
        return self.value


class AttemptInfo(msgspec.Struct, frozen=True):
    """One attempt of a task, as the journal tells it.

    Attributes:
        attempt: its number, from 1. An attempt that was interrupted is followed by one with the
            same number and a higher epoch.
        epoch: how often the workflow had changed hands when it started, from 0.
        outcome: how it ended, or that it runs.
        started_at: when it started, in seconds since 1970; None if it never reached a worker.
        ended_at: when it ended; None if it runs, or if its end was not recorded.
        error: type and message of its error.
        traceback: the whole traceback of its error, as text.
        node: the first 8 digits of the id of the node it ran on, as ``ray list nodes`` shows it;
            empty if it is not known.
    """

    attempt: int
    epoch: int
    outcome: AttemptOutcome
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    traceback: str = ""
    node: str = ""


@unique
class StartStatus(str, Enum):
    """What became of a workflow that a task has started. A ``str``, as `WorkflowStatus`."""

    #: It is handed over until it is there.
    PENDING = "PENDING"
    #: It was made, once.
    STARTED = "STARTED"
    #: It was not made and will not be: `StartInfo.error` says why.
    REFUSED = "REFUSED"

    def __str__(self) -> str:
        return self.value


class StartInfo(msgspec.Struct, frozen=True):
    """A workflow that a task has started with `start`.

    Attributes:
        workflow_id: its id.
        status: what became of it.
        error: type and message of the error for which it was refused; None if it was not.
    """

    workflow_id: str
    status: StartStatus
    error: str | None = None


class TaskInfo(msgspec.Struct, frozen=True):
    """A task of a workflow, as its journal tells it.

    Attributes:
        task_id: its id in the workflow.
        status: its status.
        attempts: how many attempts have ended, with any outcome.
        started_at: when the newest known attempt started, in seconds since 1970.
        ended_at: when its last attempt ended.
        upstream: ids of the tasks whose results it takes.
        error: type and message of its error, also of one that was caught or is retried.
        reason: why it has not ended: what it waits for, or since when and where it runs. None if it
            has.
        retry_at: when the next attempt starts of a task that is RETRYING.
        history: its attempts, the oldest first; empty without ``get_tasks(attempts=True)``.
        starts: the workflows that it has started, in that order. Their own ends are theirs:
            `list_workflows("parent=...")` shows them.
    """

    task_id: str
    status: TaskStatus
    attempts: int
    started_at: float | None
    ended_at: float | None
    upstream: tuple[str, ...]
    error: str | None
    reason: str | None = None
    retry_at: float | None = None
    history: tuple[AttemptInfo, ...] = ()
    starts: tuple[StartInfo, ...] = ()
