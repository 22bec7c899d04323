"""Inputs: what is asked of the engine or reported to it. Not yet facts; `decide` makes them so."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from ray_workflows._model.catalog import Tag
from ray_workflows._model.events import Event
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import EnvironmentChange, Plan
from ray_workflows._model.values import ErrorInfo, Value


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages. Reports come from workers as arrays."""


class Asked(Message, frozen=True):
    """Base of what is asked about one workflow, and answered once what follows is durable."""


class Submit(Asked, frozen=True):
    """Create the workflow, or go on with the one that has its id. Repeating it with its
    ``request_id`` is harmless.

    ``incarnation``: of the new one. ``history``: what a fork knows of its tasks from the start, as
    `fork_history` made it; a fork goes on with nothing that is there. ``change``: how a stored one
    goes on. ``asks_first``: its driver wants to look at that before. ``changes``: the incarnation
    that the driver has looked at, if it has. ``parent``: the workflow that starts it; it has room,
    because that one was given room.
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

    ``canceled``: also with one that was canceled. ``change``: see `WorkflowResumed`.
    ``incarnation``, here and below: of which workflow of this id; any if it is empty.
    """

    request_id: str = ""
    canceled: bool = False
    change: EnvironmentChange | None = None
    incarnation: str = ""


class Cancel(Asked, frozen=True):
    """Stop the workflow. Where another coordinator drives it, the wish is left in the journal."""

    incarnation: str = ""


class Signal(Asked, frozen=True):
    """Keep a signal for the workflow, whoever drives it. Repeating it is harmless.

    ``sole``: its name has this signal only; another one of the name is refused. ``most``: it is
    refused if that many signals are kept already; None: there is no limit. ``asks``: keep nothing;
    the answer is what it would be, or None where the signal would be kept.
    """

    name: str
    signal_id: str
    value: Value
    incarnation: str = ""
    sole: bool = False
    most: int | None = None
    asks: bool = False


class SetTags(Asked, frozen=True):
    """Lay tags over those of the workflow, whoever drives it; None takes one away. Repeating it is
    harmless."""

    tags: dict[str, Tag | None]
    incarnation: str = ""


class FindSignal(Asked, frozen=True):
    """The oldest signal of a name that is kept, and whether one was taken; changes nothing."""

    name: str
    incarnation: str = ""


class AcknowledgeSignals(Asked, frozen=True):
    """A listener has had the signals of a name: keep them no longer. Repeating it is harmless."""

    name: str
    incarnation: str = ""


class Claim(Message, frozen=True):
    """Take the workflow over, which nobody drives. ``may_wait``: where no more may run, it waits
    as PENDING."""

    may_wait: bool = False


class Start(Message, frozen=True):
    """Admit a pending workflow."""


class Release(Message, frozen=True):
    """Give the workflow up because it can't be driven; it reads as RESUMABLE."""

    error: ErrorInfo


class Delivered(Message, frozen=True):
    """The target of a message has answered; ``refusal``: that it does not take it, ever."""

    message_id: str
    refusal: ErrorInfo | None = None


class Wake(Message, frozen=True):
    """Time has passed: timers that are due go off, and signals that were kept are taken."""


class AttemptNews(Message, frozen=True):
    """Base of what is heard of an attempt. ``epoch`` counts the claims before it was started."""

    task: int
    epoch: int
    attempt: int
    started_at: float


class AttemptRuns(AttemptNews, frozen=True):
    """It has been running for a while. ``node``, here and below, as in `AttemptStarted`."""

    node: str = ""


class FoundUnplaceable(Message, frozen=True):
    """No node of the cluster can hold these tasks, whose attempts wait: why, or empty if one now
    can."""

    epoch: int
    tasks: tuple[int, ...]
    reason: str


class AttemptReport(AttemptNews, frozen=True):
    """Base of what an attempt reports when it ends."""

    ended_at: float


class AttemptReturned(AttemptReport, frozen=True, tag=True):
    """The task returned a value. ``metadata``, here and below: what it has added to its own.
    ``messages``: what it sends to others."""

    value: Value
    node: str = ""
    metadata: dict[str, Any] | None = None
    messages: tuple[OutboxMessage, ...] = ()


class AttemptReturnedPlan(AttemptReport, frozen=True, tag=True):
    """The task returned a continuation."""

    plan: Plan
    node: str = ""
    metadata: dict[str, Any] | None = None
    messages: tuple[OutboxMessage, ...] = ()


class AttemptRaised(AttemptReport, frozen=True, tag=True):
    """User code raised, or overran its timeout.

    ``retryable``: it matches the exceptions to retry, as judged where they can be unpickled.
    ``timed_out``: it overran its timeout.
    """

    error: ErrorInfo
    retryable: bool
    timed_out: bool = False
    node: str = ""


class Crash(Enum):
    """What ended the process of an attempt."""

    #: It died: the attempt may be to blame.
    KILLED = "killed"
    #: Its node was lost or preempted, or short of memory: nobody is to blame.
    PREEMPTED = "preempted"
    #: User code asked for it, as ``sys.exit`` does: that is an error of its own making.
    EXITED = "exited"


class AttemptCrashed(AttemptReport, frozen=True, tag=True):
    """The worker died before the attempt ended."""

    error: ErrorInfo
    crash: Crash = Crash.KILLED
    node: str = ""


class AttemptLostStorage(AttemptReport, frozen=True, tag=True):
    """The storage did not answer the worker for minutes, or the head of the cluster did not answer
    when the attempt was submitted: nobody's fault, so nothing is charged."""

    error: ErrorInfo
    node: str = ""


class AttemptLostInput(AttemptReport, frozen=True, tag=True):
    """An object the attempt needed was gone: nobody's fault, so nothing is charged.

    ``lost`` are the tasks whose results, not checkpointed, have to be computed again.
    """

    error: ErrorInfo
    lost: tuple[int, ...] = ()
    node: str = ""


class AttemptFoundCorruption(AttemptReport, frozen=True, tag=True):
    """What the attempt needed from storage is not what was written, or can't be loaded here."""

    error: ErrorInfo
    node: str = ""
