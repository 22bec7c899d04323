"""Messages: requests and reports to the engine. `decide` turns them into events."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from ray_workflows._model.catalog import Tag
from ray_workflows._model.events import Event
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import EMPTY_PLAN, EnvironmentChange, Plan
from ray_workflows._model.steps import CanceledStep, EndedStep, Step, StepRecord
from ray_workflows._model.values import ErrorInfo, Value


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages. Reports come from workers as arrays."""


class Asked(Message, frozen=True):
    """Base of requests about one workflow. They are answered when their events are durable."""


class Submit(Asked, frozen=True):
    """Create the workflow, or go on with the one that has its id. Repeating it with its
    ``request_id`` is harmless.

    ``incarnation``: of the new workflow. ``history``: the events that a fork begins with, from
    `fork_history`; a fork never goes on with an existing workflow. ``change``: the change with
    which an existing workflow goes on. ``asks_first``: the driver wants to check an existing
    workflow before it goes on. ``changes``: the incarnation that the driver has checked, if any.
    ``parent``: the workflow that starts it; the limits don't apply to it, because its parent was
    admitted.
    """

    plan: Plan
    metadata: dict[str, Any]
    incarnation: str = ""
    request_id: str = ""
    timeout: float | None = None
    history: tuple[Event, ...] | None = None
    change: EnvironmentChange | None = None
    asks_first: bool = False
    changes: str = ""
    tags: dict[str, Tag] = {}
    parent: str = ""


class Resume(Asked, frozen=True):
    """Go on with a workflow that failed, was canceled, or lost its coordinator. Repeating it with
    its ``request_id`` is harmless.

    ``canceled``: also if it was canceled. ``change``: see `WorkflowResumed`.
    ``incarnation``, here and below: of the workflow that is meant; empty: any with this id.
    """

    request_id: str = ""
    canceled: bool = False
    change: EnvironmentChange | None = None
    incarnation: str = ""


class Cancel(Asked, frozen=True):
    """Stop the workflow. If another coordinator drives it, append a request to the journal."""

    incarnation: str = ""


class Signal(Asked, frozen=True):
    """Keep a signal for the workflow, whichever coordinator drives it. Repeating it is harmless.

    ``sole``: refuse the signal if its name has another one. ``most``: refuse it if that many
    signals are kept already; None: no limit. ``asks``: keep nothing; answer as if it were to be
    kept, or None if it would be.
    """

    name: str
    signal_id: str
    value: Value
    incarnation: str = ""
    sole: bool = False
    most: int | None = None
    asks: bool = False


class SetTags(Asked, frozen=True):
    """Set tags of the workflow, whichever coordinator drives it; None removes one. Repeating it is
    harmless."""

    tags: dict[str, Tag | None]
    incarnation: str = ""


class FindSignal(Asked, frozen=True):
    """Ask for the oldest kept signal of a name, and whether one was taken; changes nothing."""

    name: str
    incarnation: str = ""


class AcknowledgeSignals(Asked, frozen=True):
    """A listener has the signals of a name: stop keeping them. Repeating it is harmless."""

    name: str
    incarnation: str = ""


class Claim(Message, frozen=True):
    """Take over a workflow that no live coordinator drives. ``may_wait``: over the limit of running
    workflows, it waits as PENDING."""

    may_wait: bool = False


class Start(Message, frozen=True):
    """Admit a pending workflow."""


class Release(Message, frozen=True):
    """Give the workflow up because it can't be driven; it reads as RESUMABLE."""

    error: ErrorInfo


class Delivered(Message, frozen=True):
    """The target of a message has answered; ``refusal``: why it will never take it."""

    message_id: str
    refusal: ErrorInfo | None = None


class Wake(Message, frozen=True):
    """Time has passed: due timers fire, and waiting tasks take kept signals."""


class AttemptNews(Message, frozen=True):
    """Base of reports about an attempt. ``epoch`` counts the claims before it was started."""

    task: int
    epoch: int
    attempt: int
    started_at: float


class AttemptRuns(AttemptNews, frozen=True):
    """The attempt has been running for a while. ``node``, here and below: as in
    `AttemptStarted`."""

    node: str = ""


class BodyProgress(AttemptNews, frozen=True):
    """The body of a durable function asks for steps, cancels some, or has the outcomes of local
    ones.

    ``began``: when the body was first called. ``opened``: steps of kind PLAN; their tasks are those
    of ``plan``, one after the other, and ``sizes`` says how many each step has. ``messages``: to
    other workflows; they belong to ``marks``.
    """

    began: float
    opened: tuple[Step, ...] = ()
    plan: Plan = EMPTY_PLAN
    sizes: tuple[int, ...] = ()
    marks: tuple[StepRecord, ...] = ()
    canceled: tuple[CanceledStep, ...] = ()
    ended: tuple[EndedStep, ...] = ()
    node: str = ""
    messages: tuple[OutboxMessage, ...] = ()


class FoundUnplaceable(Message, frozen=True):
    """No node of the cluster can hold these waiting tasks: why, or empty if one now can."""

    epoch: int
    tasks: tuple[int, ...]
    reason: str


class AttemptReport(AttemptNews, frozen=True):
    """Base of reports of an attempt's end."""

    ended_at: float


class AttemptReturned(AttemptReport, frozen=True, tag=True):
    """The task returned a value. ``metadata``, here and below: the task's additions to its own.
    ``messages``: to other workflows. ``told``: how often a body has reported progress before."""

    value: Value
    node: str = ""
    metadata: dict[str, Any] | None = None
    messages: tuple[OutboxMessage, ...] = ()
    told: int = 0


class AttemptReturnedPlan(AttemptReport, frozen=True, tag=True):
    """The task returned a continuation. If its only task has no name, it is the task itself, begun
    anew."""

    plan: Plan
    node: str = ""
    metadata: dict[str, Any] | None = None
    messages: tuple[OutboxMessage, ...] = ()
    told: int = 0


class AttemptSuspended(AttemptReport, frozen=True, tag=True):
    """The body of a durable function only waits for steps, and gives its worker back. ``taken``:
    how many outcomes it has taken; ``told``: how often it has reported progress."""

    taken: int
    told: int
    node: str = ""


#: Ends of an attempt of a body that come after all of its progress.
BodyEnd = AttemptReturned | AttemptReturnedPlan | AttemptSuspended


class AttemptRaised(AttemptReport, frozen=True, tag=True):
    """User code raised, or overran its timeout.

    ``retryable``: it matches the exceptions to retry, as the worker judged, which can unpickle
    them. ``timed_out``: it overran its timeout. ``step``: the path of the step whose error it is,
    if it is one of a body's.
    """

    error: ErrorInfo
    retryable: bool
    timed_out: bool = False
    node: str = ""
    step: str = ""


class Crash(Enum):
    """What ended the process of an attempt."""

    #: The process died: the attempt may be to blame.
    KILLED = "killed"
    #: Its node was lost or preempted, or short of memory: the attempt is not to blame.
    PREEMPTED = "preempted"
    #: User code ended it, as ``sys.exit`` does: an error of the attempt.
    EXITED = "exited"


class AttemptCrashed(AttemptReport, frozen=True, tag=True):
    """The worker died before the attempt ended."""

    error: ErrorInfo
    crash: Crash = Crash.KILLED
    node: str = ""


class AttemptLostStorage(AttemptReport, frozen=True, tag=True):
    """The storage did not answer the worker for minutes, or the head of the cluster did not answer
    when the attempt was submitted. The attempt is not charged."""

    error: ErrorInfo
    node: str = ""


class AttemptLostInput(AttemptReport, frozen=True, tag=True):
    """An object that the attempt needed was lost. The attempt is not charged.

    ``lost``: the tasks whose unstored results have to be computed again.
    """

    error: ErrorInfo
    lost: tuple[int, ...] = ()
    node: str = ""


class AttemptFoundCorruption(AttemptReport, frozen=True, tag=True):
    """Stored data that the attempt needed is damaged, or can't be loaded here."""

    error: ErrorInfo
    node: str = ""
