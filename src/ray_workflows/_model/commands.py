"""Commands: intentions derived from state. They are never stored; after a crash they are derived
again."""

from __future__ import annotations

import msgspec

from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.values import Value


class Command(msgspec.Struct, frozen=True, gc=False):
    """Base of all commands."""


class StartAttempt(Command, frozen=True):
    """Run this attempt of a task, not before a time. Starting it twice is starting it once."""

    task: int
    epoch: int
    attempt: int
    not_before: float = 0.0


class CancelAttempt(Command, frozen=True):
    """Stop the attempt of a task whose result nobody wants any more."""

    task: int


class WakeAt(Command, frozen=True):
    """Send `Wake` at this time: a timer is due, or (at once) a signal can be taken."""

    at: float


class ReleaseValue(Command, frozen=True):
    """One task's hold on a value ends: no consumer will ask for it again on its account."""

    value: Value


class Deliver(Command, frozen=True):
    """Bring a message to its target, which takes it once, however often it comes."""

    message: OutboxMessage


class Settle(Command, frozen=True):
    """The workflow reached a terminal status: tell those who wait."""
