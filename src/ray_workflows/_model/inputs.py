"""Inputs: what is asked of the engine or reported to it. Not yet facts; `decide` makes them so."""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._model.plan import Plan
from ray_workflows._model.values import ErrorInfo, Value


class Input(msgspec.Struct, frozen=True):
    """Base of all inputs."""


class Submit(Input):
    """Create the workflow. ``start``: admit it at once, else it waits as PENDING."""

    plan: Plan
    metadata: dict[str, Any]
    holder: str
    start: bool
    request_id: str = ""


class Claim(Input):
    """Take the workflow over for ``holder``."""

    holder: str


class Start(Input):
    """Admit a pending workflow."""


class Resume(Input):
    """Go on with a workflow that failed, was canceled, or lost its coordinator.

    ``start``: admit it at once, else it waits as PENDING.
    """

    holder: str
    start: bool


class Cancel(Input):
    """Stop the workflow."""


class Release(Input):
    """Give the workflow up because it can't be driven; it reads as RESUMABLE."""

    error: ErrorInfo


class Wake(Input):
    """Time has passed: timers and retries that are due go on."""


class AttemptReport(Input):
    """Base of what an attempt reports. ``epoch`` counts the claims before it was started."""

    task: int
    epoch: int
    attempt: int
    started_at: float
    ended_at: float


class AttemptReturned(AttemptReport):
    """The task returned a value. ``value`` is None if it was not to be stored."""

    value: Value | None


class AttemptReturnedPlan(AttemptReport):
    """The task returned a continuation."""

    plan: Plan


class AttemptRaised(AttemptReport):
    """User code raised. ``retryable``: it matches ``retry_exceptions``, as judged in the worker."""

    error: ErrorInfo
    retryable: bool


class AttemptCrashed(AttemptReport):
    """The worker died (killed, out of memory, node lost) before the attempt ended."""

    error: ErrorInfo


class AttemptLostInput(AttemptReport):
    """An object the attempt needed was gone: nobody's fault, so nothing is charged."""

    error: ErrorInfo


class LoseValues(Input):
    """Results that were not checkpointed are gone."""

    tasks: tuple[int, ...]
