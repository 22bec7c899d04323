"""The states a workflow can be in, as users see them."""

from __future__ import annotations

from enum import Enum, unique


@unique
class WorkflowStatus(str, Enum):
    """Status of a workflow. A ``str``: ``get_status(...) == "RUNNING"`` holds."""

    #: No status: no workflow has it. Old code names it.
    NONE = "NONE"
    #: A live coordinator drives it.
    RUNNING = "RUNNING"
    #: Stopped by ``cancel``.
    CANCELED = "CANCELED"
    #: Its output is stored.
    SUCCESSFUL = "SUCCESSFUL"
    #: A task's error ended it. It can be resumed.
    FAILED = "FAILED"
    #: It was running or pending when its coordinator was lost. It can be resumed.
    RESUMABLE = "RESUMABLE"
    #: Accepted and durable, queued behind ``max_running_workflows``.
    PENDING = "PENDING"

    @classmethod
    def non_terminating_status(cls) -> tuple[WorkflowStatus, ...]:
        """The statuses of a workflow that has not ended and has a holder."""
        return cls.RUNNING, cls.PENDING

    def __str__(self) -> str:
        return self.value


#: The statuses of workflows. NONE is the status of the library's own rows.
WORKFLOWS = tuple(status for status in WorkflowStatus if status is not WorkflowStatus.NONE)
