"""Events: committed facts, in the past tense. The journal is a sequence of these and nothing else.

Encoded as tagged arrays: a field may be added at the end with a default, never moved or removed.
``at`` is the coordinator's wall clock in seconds since 1970. ``task`` is a task's number.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._model.catalog import Tag
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import EMPTY_PLAN, EnvironmentChange, Plan
from ray_workflows._model.steps import CanceledStep, EndedStep, Step, StepRecord
from ray_workflows._model.values import ErrorInfo, Outcome, Value


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all events."""

    at: float


class WorkflowSubmitted(Event, frozen=True, tag="workflow-submitted"):
    """The workflow exists: acknowledged and durable. It is pending until it is started.

    ``task_ids`` are the ids of the plan's tasks, which are numbered from 0. ``timeout``: how
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
    """A coordinator took the workflow over. Reports of the former holder's attempts are ignored."""

    holder: str


class WorkflowStarted(Event, frozen=True, tag="workflow-started"):
    """Admitted: its tasks may run."""


class WorkflowResumed(Event, frozen=True, tag="workflow-resumed"):
    """A failed or canceled workflow goes on: failed tasks get a fresh retry budget.

    ``change``: the user and the changes that hold from now on. ``request_id``: of the user's
    request, if there was one.
    """

    holder: str
    change: EnvironmentChange | None = None
    request_id: str = ""


class WorkflowCanceled(Event, frozen=True, tag="workflow-canceled"):
    """Stopped on request."""


class CancelRequested(Event, frozen=True, tag="cancel-requested"):
    """A coordinator that does not hold the workflow was asked to cancel it."""


class WorkflowSucceeded(Event, frozen=True, tag="workflow-succeeded"):
    """The end. Repeats the output, so that readers need the last entry alone."""

    output: Outcome


class WorkflowFailed(Event, frozen=True, tag="workflow-failed"):
    """An uncaught error ended the workflow. ``task_id`` names the task that raised it, if any."""

    error: ErrorInfo
    task_id: str | None = None


class WorkflowTimedOut(Event, frozen=True, tag="workflow-timed-out"):
    """It ran longer than its timeout: its attempts are stopped, and it has failed."""


class WorkflowReleased(Event, frozen=True, tag="workflow-released"):
    """The coordinator gave the workflow up: it reads as RESUMABLE, with this error."""

    error: ErrorInfo


class AttemptStarted(Event, frozen=True, tag="attempt-started"):
    """An attempt has been running for a while. Only for views: the engine does nothing about it.

    ``node``, here and below: the first digits of the id of the node that it runs on; empty in
    journals of 0.1.0, and if it is not known.
    """

    task: int
    attempt: int
    started_at: float
    node: str = ""


class TasksUnplaceable(Event, frozen=True, tag="tasks-unplaceable"):
    """No node of the cluster can hold these tasks: why, or empty if one now can. Only for views:
    the engine does nothing about it."""

    tasks: tuple[int, ...]
    reason: str


class AttemptFailed(Event, frozen=True, tag="attempt-failed"):
    """An attempt ended with an error and the task goes on at ``retry_at``.

    ``charged``: it counts against ``max_retries`` (a lost input does not). ``why``: how it ended,
    an `AttemptOutcome`; empty in journals of 0.1.0. ``step``, here and below: the path of the step
    of a body whose error it is.
    """

    task: int
    attempt: int
    error: ErrorInfo
    charged: bool
    retry_at: float
    started_at: float = 0.0
    why: str = ""
    node: str = ""
    step: str = ""


class TaskSucceeded(Event, frozen=True, tag="task-succeeded"):
    """The one committed result of a task. ``metadata``, here and below: the task's additions to the
    metadata that it was given. ``messages``: to other workflows, sent once this is durable."""

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
    step: str = ""


class ErrorCaught(Event, frozen=True, tag="error-caught"):
    """``catch_exceptions`` turned the error of ``task`` into a result.

    Of the task itself (``frame`` is None), or of the task whose continuation ``frame`` is; the
    rest of that continuation is abandoned.
    """

    task: int
    frame: int | None
    error: ErrorInfo


class StepsAsked(Event, frozen=True, tag="steps-asked"):
    """The body of ``task`` asked for steps, or canceled some.

    ``began``: when the body was first called. The tasks of ``plan`` are numbered from ``first`` and
    named ``task_ids``; they are those of the steps in ``opened``, one step after the other, each of
    which has as many as ``sizes`` says. ``marks``: values that the body made itself; in a fork also
    other steps without tasks: canceled ones, and those that are to be asked for again.
    ``messages``: to other workflows, sent once this is durable; each has a mark.
    """

    task: int
    attempt: int
    began: float
    opened: tuple[Step, ...] = ()
    plan: Plan = EMPTY_PLAN
    sizes: tuple[int, ...] = ()
    task_ids: tuple[str, ...] = ()
    first: int = 0
    marks: tuple[StepRecord, ...] = ()
    canceled: tuple[CanceledStep, ...] = ()
    messages: tuple[OutboxMessage, ...] = ()


class StepsEnded(Event, frozen=True, tag="steps-ended"):
    """Local steps of the body of ``task`` ended. ``began``: as in `StepsAsked`."""

    task: int
    attempt: int
    began: float
    ended: tuple[EndedStep, ...]
    node: str = ""

    @property
    def messages(self) -> tuple[OutboxMessage, ...]:
        """To other workflows, sent once this is durable."""
        return tuple([message for each in self.ended for message in each.messages])


class AttemptSuspended(Event, frozen=True, tag="attempt-suspended"):
    """The body of ``task`` has taken ``taken`` outcomes and waits for the next one. Its attempt
    ended; another one runs the body again when there is an outcome."""

    task: int
    attempt: int
    taken: int
    started_at: float = 0.0
    ended_at: float = 0.0
    node: str = ""


class ValuesLost(Event, frozen=True, tag="values-lost"):
    """Unstored results are lost: these tasks run again."""

    tasks: tuple[int, ...]


class SignalReceived(Event, frozen=True, tag="signal-received"):
    """The workflow was sent a signal. It is kept until a task takes it.

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
    """A listener has the signal in its durable result: the signal is no longer kept."""

    name: str
    signal_id: str


class StateSaved(Event, frozen=True, tag="state-saved"):
    """A snapshot: the state after this entry, whose last event it is. A reader that needs only the
    state starts here. Folding ignores it.

    ``version`` is that of the records in ``lifecycle`` and ``tasks``. ``lifecycle`` has the state
    of the workflow as a whole, ``tasks`` the rest. ``tasks`` is None if only the lifecycle was
    saved; then ``last_whole`` is the number of the last earlier entry with both, or 0.
    """

    version: int
    lifecycle: bytes
    tasks: bytes | None = None
    last_whole: int = 0


class TagsSet(Event, frozen=True, tag="tags-set"):
    """The complete tags of the workflow from now on."""

    tags: dict[str, Tag]


#: Events that open tasks: their plan, and the ids of its tasks.
Opening = WorkflowSubmitted | TaskContinued | StepsAsked

#: Events that may send messages to other workflows.
Sending = TaskSucceeded | TaskContinued | StepsAsked | StepsEnded

#: How a workflow ends.
End = WorkflowSucceeded | WorkflowFailed | WorkflowTimedOut | WorkflowCanceled


class WorkflowEnding(Event, frozen=True, tag="workflow-ending"):
    """Its attempts are stopped, and ``end`` follows when its messages are delivered."""

    end: End


class Delivered(Event, frozen=True, tag="delivered"):
    """The target of a message has it. ``refusal``: why the target refuses it, for ever."""

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
    | StepsAsked
    | StepsEnded
    | AttemptSuspended
    | ValuesLost
    | SignalReceived
    | SignalTaken
    | SignalAcknowledged
    | StateSaved
    | TagsSet
    | WorkflowEnding
    | Delivered
)
