"""The current attempt: set around user code, read by the public API."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple

import msgspec

from ray_workflows._executor.protocol import AttemptRequest

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

    __slots__ = ("metadata", "outgoing", "request", "token")

    def __init__(self, request: AttemptRequest) -> None:
        self.request = request
        #: The metadata that user code has added to its task.
        self.metadata: dict[str, Any] | None = None
        #: The messages that user code sends.
        self.outgoing: list[Outgoing] = []

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
        attempt: 1 for the first attempt, counting those that ended with an error or a crash.
        epoch: a fencing token: it grows with each attempt and with each coordinator that takes the
            workflow over. A service that keeps the largest epoch it has seen and refuses smaller
            ones accepts no write of an abandoned attempt.
        last_end: why the attempt before this one ended: ``raised``, ``crashed``, ``preempted``
            (its node was lost), ``timed_out``, ``lost_value`` (an input or its result was lost),
            ``lost_storage`` or ``canceled``; None for the first attempt.
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
    request = current_attempt()
    if request is None:
        return None
    return CurrentTask(
        workflow_id=request.workflow_id,
        task_id=request.task_id,
        attempt=request.attempt,
        idempotency_key=f"{request.incarnation}-{request.task}",
        # Neither ever decreases, and each new attempt increases one of them.
        epoch=request.epoch + request.attempt,
        last_end=request.last_end or None,
    )
