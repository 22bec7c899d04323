"""Steps of durable functions: what a body asks for, and what comes back.

A durable function is a task whose code, the *body*, asks for steps while it runs. An attempt may
end before the body does; the next attempt runs the body again, and gives it the recorded outcomes.
"""

from __future__ import annotations

from enum import IntEnum, unique

import msgspec

from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.values import Outcome


@unique
class StepKind(IntEnum):
    """Where the result of a step comes from."""

    #: Tasks of a plan: Ray tasks, timers, signals, listeners, other durable functions.
    PLAN = 0
    #: A plain function, which the process of the body ran.
    LOCAL = 1
    #: A value that the body made itself, such as a seed. It is known at once.
    MARK = 2
    #: Another workflow, which the body started. Its id is known at once, and is kept as of a mark.
    START = 3


def step_id(task_id: str, path: str) -> str:
    """The id of a step, from that of its body's task: a base, if it is a task."""
    return f"{task_id}/{path}"


class Step(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A step, as its body asked for it.

    ``path`` is its identity in the body: the asyncio task that asked, the name of the function, and
    a count of the steps with this name there. ``digest``: of the arguments; empty if they can't be
    compared. ``turn``: how many outcomes the body had taken when it asked.
    """

    path: str
    name: str
    digest: str
    turn: int
    kind: StepKind


class StepRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A recorded step. ``mark``: the value of a mark, or the id of a started workflow.
    ``canceled``: the turn in which the body canceled the step. ``again``: its outcome was
    discarded, because the body was tried again after an error, so the body has to ask for it again.
    """

    step: Step
    mark: Outcome | None = None
    canceled: int | None = None
    again: bool = False


class StepOutcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The durable outcome of a step. ``at``: when it became so, in seconds since 1970."""

    path: str
    at: float
    outcome: Outcome


class CanceledStep(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A step that its body no longer waits for, since this turn."""

    path: str
    turn: int


class EndedStep(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A local step that has ended; the times are in seconds since 1970. ``messages``: to other
    workflows."""

    step: Step
    outcome: Outcome
    started_at: float
    ended_at: float
    messages: tuple[OutboxMessage, ...] = ()


class History(msgspec.Struct, frozen=True, array_like=True):
    """What a body has done in earlier attempts.

    ``steps`` are in the order in which they were recorded, ``outcomes`` in the order in which the
    body takes them. ``began``: when it was first called, in seconds since 1970; 0.0 if that is not
    recorded.
    """

    steps: tuple[StepRecord, ...] = ()
    outcomes: tuple[StepOutcome, ...] = ()
    began: float = 0.0
