"""The current attempt: set around user code, read by the public API."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple

import msgspec

from ray_workflows._executor.protocol import AttemptRequest, fencing_token

attempt: ContextVar[running | None] = ContextVar("ray_workflows_attempt", default=None)

#: True in the listener host, whose event loop awaits coroutines.
awaits_coroutines: ContextVar[bool] = ContextVar("ray_workflows_awaits", default=False)


class Outgoing(NamedTuple):
    """A message that user code sends if its attempt succeeds; see `Message`."""

    message_id: str
    target: str
    body: bytes


class running:
    """Scope of the user code of one attempt. A class: a generator takes three times as long."""

    __slots__ = ("metadata", "outgoing", "request", "sequence", "started", "step", "token")

    def __init__(self, request: AttemptRequest, sequence: int, step: str = "") -> None:
        """``step``: the path of the local step of a body."""
        self.request = request
        self.step = step
        #: The sequence of its batch.
        self.sequence = sequence
        #: The metadata that user code has added to its task.
        self.metadata: dict[str, Any] | None = None
        #: The messages that user code sends.
        self.outgoing: list[Outgoing] = []
        #: The ids of the workflows that it starts.
        self.started: set[str] = set()

    def __enter__(self) -> running:
        self.token = attempt.set(self)
        return self

    def __exit__(self, *raised: object) -> None:
        attempt.reset(self.token)


def current_attempt() -> AttemptRequest | None:
    """The attempt whose user code is running here, or None outside of workflows."""
    scope = attempt.get()
    return None if scope is None else scope.request


def add_metadata(metadata: dict[str, Any]) -> bool:
    """Add to the metadata of the task whose user code is running here; whether there is one."""
    scope = attempt.get()
    if scope is None:
        return False
    scope.metadata = {**(scope.metadata or {}), **metadata}
    return True


class CurrentTask(msgspec.Struct, frozen=True):
    """The running task.

    Attributes:
        workflow_id: the workflow.
        task_id: the task in it.
        attempt: 1 for the first attempt, counting those that ended with an error or a crash. Tasks
            whose worker died while it ran a batch of short tasks run again under the same number.
        epoch: a fencing token: an integer of at most 63 bits that is larger for every later
            execution of the task, under a new attempt number or the same one, by this coordinator
            or by another one that takes the workflow over. Only its order means anything. A
            service that keeps the largest epoch it has seen of each ``idempotency_key``, and
            refuses smaller ones, accepts nothing from an abandoned execution once a later one has
            written.
        last_end: why the execution before this one ended: ``raised``, ``crashed``, ``preempted``
            (its node was lost), ``timed_out``, ``lost_value`` (an input or its result was lost),
            ``lost_storage`` or ``canceled``; None if no execution is known to have ended. When a
            worker dies with a batch of short tasks, each of them that runs again is told so, for
            which of them had begun is not known. The loss of a coordinator is told to none.
        idempotency_key: the same for all attempts of this task, different for every other task,
            also for one of a workflow that was deleted and created again under its id.
    """

    workflow_id: str
    task_id: str
    attempt: int
    idempotency_key: str
    epoch: int = 0
    last_end: str | None = None


def current_task() -> CurrentTask | None:
    """The task whose user code is running here, or None outside of workflows."""
    scope = attempt.get()
    if scope is None:
        return None
    request = scope.request
    of_step = f"/{scope.step}" if scope.step else ""
    return CurrentTask(
        workflow_id=request.workflow_id,
        task_id=f"{request.task_id}{of_step}",
        attempt=request.attempt,
        idempotency_key=f"{request.incarnation}-{request.task}{of_step}",
        epoch=fencing_token(request.epoch, scope.sequence),
        last_end=request.last_end or None,
    )
