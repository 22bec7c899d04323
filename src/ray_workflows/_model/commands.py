"""Commands: actions derived from the state. They are never stored: after a crash the engine derives
them again."""

from __future__ import annotations

import msgspec

from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.steps import StepOutcome
from ray_workflows._model.values import Value


class Command(msgspec.Struct, frozen=True, gc=False):
    """Base of all commands."""


class StartAttempt(Command, frozen=True):
    """Run this attempt of a task, not before a time. Starting it again has no effect."""

    task: int
    epoch: int
    attempt: int
    not_before: float = 0.0


class GiveOutcome(Command, frozen=True):
    """Give a running body the outcome of a step. ``number``: how many it was given before."""

    task: int
    number: int
    outcome: StepOutcome


class CancelAttempt(Command, frozen=True):
    """Stop the attempt of a task whose result is no longer needed."""

    task: int


class WakeAt(Command, frozen=True):
    """Send `Wake` at this time: a timer is due, or (at once) a signal can be taken."""

    at: float


class ReleaseValue(Command, frozen=True):
    """Drop one task's reference to a live value: this task needs it no more."""

    value: Value


class Deliver(Command, frozen=True):
    """Deliver a message to its target. Repeated deliveries have no further effect."""

    message: OutboxMessage


class Settle(Command, frozen=True):
    """The workflow reached a terminal status: answer the callers that wait for it."""
