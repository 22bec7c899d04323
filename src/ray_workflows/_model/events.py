"""Events: committed facts, in the past tense. The journal is a sequence of these and nothing else.

Encoded as tagged arrays: a field may be added at the end with a default, never moved or removed.
``at`` is the coordinator's wall clock in seconds since 1970. ``task`` is a task's number.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._model.catalog import Tag
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import EnvironmentChange, Plan
from ray_workflows._model.values import ErrorInfo, Outcome, Value


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all events."""

    at: float


class WorkflowSubmitted(Event, frozen=True, tag="workflow-submitted"):
    """The workflow exists: acknowledged and durable. It is pending until it is started.

    ``task_ids`` are the ids of the plan's tasks, which are numbered from 0. ``timeout`` is how
    long it may run from each start, in seconds. ``parent``: the workflow that started it.
    """

    plan: Plan
    task_ids: tuple[str, ...]
    metadata: dict[str, Any]
    holder: str
    request_id: str = ""
    timeout: float | None = None
    tags: dict[str, Tag] = {}
    parent: str = ""


class WorkflowClaimed(Event, frozen=True, tag="workflow-claimed"):
    """A coordinator took the workflow over; attempts of the former holder no longer count."""

    holder: str


class WorkflowStarted(Event, frozen=True, tag="workflow-started"):
    """Admitted: its tasks may run."""


class WorkflowResumed(Event, frozen=True, tag="workflow-resumed"):
    """A failed or canceled workflow goes on: failed tasks get a fresh retry budget.

    ``change``: who resumed it, and what is different from now on. ``request_id``: by which request,
    if it was a user's.
    """

    holder: str
    change: EnvironmentChange | None = None
    request_id: str = ""


class WorkflowCanceled(Event, frozen=True, tag="workflow-canceled"):
    """Stopped on request."""


class CancelRequested(Event, frozen=True, tag="cancel-requested"):
    """Somebody who does not hold the workflow asked to cancel it."""


class WorkflowSucceeded(Event, frozen=True, tag="workflow-succeeded"):
    """The end, with the output (again) so that it can be read from the last entry alone."""

    output: Outcome


class WorkflowFailed(Event, frozen=True, tag="workflow-failed"):
    """An error that nobody caught ended the workflow. ``task_id`` names the task, if one did."""

    error: ErrorInfo
    task_id: str | None = None


class WorkflowTimedOut(Event, frozen=True, tag="workflow-timed-out"):
    """It ran longer than it may: its attempts are stopped, and it has failed."""


class WorkflowReleased(Event, frozen=True, tag="workflow-released"):
    """The coordinator gave the workflow up: it reads as RESUMABLE, with this error."""

    error: ErrorInfo


class AttemptStarted(Event, frozen=True, tag="attempt-started"):
    """An attempt has been running for a while. For those who look on: nothing follows from it.

    ``node``, here and below: the first digits of the id of the node that it runs on; empty in
    journals of 0.1.0, and where it is not known.
    """

    task: int
    attempt: int
    started_at: float
    node: str = ""


class TasksUnplaceable(Event, frozen=True, tag="tasks-unplaceable"):
    """No node of the cluster can hold these tasks: why, or empty if one now can. For those who look
    on: nothing follows from it."""

    tasks: tuple[int, ...]
    reason: str


class AttemptFailed(Event, frozen=True, tag="attempt-failed"):
    """An attempt ended with an error and the task goes on at ``retry_at``.

    ``charged``: it counts against ``max_retries`` (a lost input does not). ``why``: how it ended,
    an `AttemptOutcome`; empty in journals of 0.1.0.
    """

    task: int
    attempt: int
    error: ErrorInfo
    charged: bool
    retry_at: float
    started_at: float = 0.0
    why: str = ""
    node: str = ""


class TaskSucceeded(Event, frozen=True, tag="task-succeeded"):
    """The one committed result of a task. ``metadata``, here and below: what the task has added to
    the metadata that it was given. ``messages``: what it sends to others, once this is durable."""

    task: int
    attempt: int
    value: Value
    started_at: float = 0.0
    ended_at: float = 0.0
    node: str = ""
    metadata: dict[str, Any] | None = None
    messages: tuple[OutboxMessage, ...] = ()


class TaskContinued(Event, frozen=True, tag="task-continued"):
    """The task returned a plan; the plan's output becomes its result.

    The plan's tasks are numbered from ``first`` and named ``task_ids``.
    """

    task: int
    attempt: int
    plan: Plan
    task_ids: tuple[str, ...]
    first: int
    started_at: float = 0.0
    ended_at: float = 0.0
    node: str = ""
    metadata: dict[str, Any] | None = None
    messages: tuple[OutboxMessage, ...] = ()


class TaskFailed(Event, frozen=True, tag="task-failed"):
    """The last attempt of a task failed. ``why``: as in `AttemptFailed`."""

    task: int
    attempt: int
    error: ErrorInfo
    started_at: float = 0.0
    ended_at: float = 0.0
    why: str = ""
    node: str = ""


class ErrorCaught(Event, frozen=True, tag="error-caught"):
    """``catch_exceptions`` turned the error of ``task`` into a result.

    Of the task itself (``frame`` is None), or of the task whose continuation ``frame`` is; the
    rest of that continuation is abandoned.
    """

    task: int
    frame: int | None
    error: ErrorInfo


class ValuesLost(Event, frozen=True, tag="values-lost"):
    """Results that were not checkpointed are gone: these tasks run again."""

    tasks: tuple[int, ...]


class SignalReceived(Event, frozen=True, tag="signal-received"):
    """Somebody sent the workflow a signal. It is kept until a task takes it.

    ``signal_id`` is unique among the signals of a name.
    """

    name: str
    signal_id: str
    value: Value


class SignalTaken(Event, frozen=True, tag="signal-taken"):
    """The signal's value is the result of ``task``, which has waited for it since
    ``started_at``."""

    task: int
    name: str
    signal_id: str
    started_at: float


class SignalAcknowledged(Event, frozen=True, tag="signal-acknowledged"):
    """A listener has had the signal, and its result is durable: the signal is kept no longer."""

    name: str
    signal_id: str


class StateSaved(Event, frozen=True, tag="state-saved"):
    """The state after this entry, of which it is the last event: nobody who wants that state need
    read the entries before. Nothing follows from it.

    ``version`` is that of the records in ``lifecycle``, what holds of the workflow as a whole, and
    ``tasks``, the rest; None if that was not saved, and then ``last_whole`` is the number of the
    last entry before with both, or 0.
    """

    version: int
    lifecycle: bytes
    tasks: bytes | None = None
    last_whole: int = 0


class TagsSet(Event, frozen=True, tag="tags-set"):
    """These are the tags of the workflow from now on, and no others."""

    tags: dict[str, Tag]


#: How a workflow ends.
End = WorkflowSucceeded | WorkflowFailed | WorkflowTimedOut | WorkflowCanceled


class WorkflowEnding(Event, frozen=True, tag="workflow-ending"):
    """Its attempts are stopped, and ``end`` follows when its messages are delivered."""

    end: End


class Delivered(Event, frozen=True, tag="delivered"):
    """The target of a message knows it. ``refusal``: or it refuses it, for ever, and why."""

    message_id: str
    refusal: ErrorInfo | None = None


AnyEvent = (
    WorkflowSubmitted
    | WorkflowClaimed
    | WorkflowStarted
    | WorkflowResumed
    | WorkflowCanceled
    | CancelRequested
    | WorkflowSucceeded
    | WorkflowFailed
    | WorkflowTimedOut
    | WorkflowReleased
    | AttemptStarted
    | TasksUnplaceable
    | AttemptFailed
    | TaskSucceeded
    | TaskContinued
    | TaskFailed
    | ErrorCaught
    | ValuesLost
    | SignalReceived
    | SignalTaken
    | SignalAcknowledged
    | StateSaved
    | TagsSet
    | WorkflowEnding
    | Delivered
)
