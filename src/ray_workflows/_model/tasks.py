"""What users see of a task."""

from __future__ import annotations

from enum import Enum, unique

import msgspec


@unique
class TaskStatus(str, Enum):
    """Status of a task. A ``str``, as `WorkflowStatus`."""

    #: Some of its inputs are not there yet.
    WAITING = "WAITING"
    #: It can run: it is queued or running on Ray, or, if nobody drives the workflow, it will be.
    RUNNING = "RUNNING"
    #: It returned a continuation, whose output will be its result.
    CONTINUED = "CONTINUED"
    #: Its result is stored, or was needed and is needed no more.
    SUCCESSFUL = "SUCCESSFUL"
    #: Its last attempt failed.
    FAILED = "FAILED"
    #: It belonged to a continuation that an error ended, and was given up.
    ABANDONED = "ABANDONED"

    def __str__(self) -> str:
        return self.value


class TaskInfo(msgspec.Struct, frozen=True):
    """A task of a workflow, as its journal tells it.

    Attributes:
        task_id: its id in the workflow.
        status: where it stands.
        attempts: how many attempts have ended, with whatever result.
        started_at: when the newest attempt started that is known to have, in seconds since 1970.
        ended_at: when its last attempt ended.
        upstream: ids of the tasks whose results it takes.
        error: type and message of its error, also of one that was caught.
    """

    task_id: str
    status: TaskStatus
    attempts: int
    started_at: float | None
    ended_at: float | None
    upstream: tuple[str, ...]
    error: str | None
