"""Commands: intentions derived from state. They are never stored; after a crash they are derived
again."""

from __future__ import annotations

import msgspec


class Command(msgspec.Struct, frozen=True):
    """Base of all commands."""


class StartAttempt(Command):
    """Run this attempt of a task."""

    task: int
    epoch: int
    attempt: int


class CancelAttempt(Command):
    """Stop the attempt of a task whose result nobody wants any more."""

    task: int


class WakeAt(Command):
    """Send `Wake` at this time: a timer or a retry is due."""

    at: float


class ReleaseValue(Command):
    """No consumer will ever ask for this task's value again."""

    task: int


class Settle(Command):
    """The workflow reached a terminal status: tell those who wait."""
