"""Decides from counts whether and when a failed task gets another attempt."""

from __future__ import annotations

import zlib

from ray_workflows._engine.state import Task
from ray_workflows._model.plan import BODY

#: ``max_retries=-1``: without limit.
UNLIMITED = -1


#: Pauses between crashes in a row, in seconds: the first one and the longest.
FIRST_FLOOR, LONGEST_FLOOR = 1.0, 60.0

#: The most doublings of a pause: far beyond any sensible maximum.
MAX_DOUBLINGS = 60


def next_attempt_at(task: Task, incarnation: str, now: float) -> float | None:
    """When the attempt after a charged failure may start, or None if there is none left."""
    limit = task.options.max_retries
    if limit == UNLIMITED or task.charged < limit:
        return now + pause(task, incarnation)
    return None


def after_preemption(task: Task, now: float) -> float | None:
    """When the attempt after the loss of a node may start, or None if there is none left. The task
    is not to blame, so ``max_retries`` does not apply. But a task that must not be retried may have
    run there, and gets no further attempt; a body may always run again."""
    limit = task.options.preemptions
    if limit is None:
        repeats = task.options.max_retries != 0 or task.options.kind == BODY
        limit = UNLIMITED if repeats else 0
    if limit == UNLIMITED or task.preempted < limit:
        return now + floor(task)
    return None


def after_crash(task: Task, incarnation: str, now: float) -> float | None:
    """When the attempt after a crash may start, or None if there is none left."""
    retry_at = next_attempt_at(task, incarnation, now)
    return None if retry_at is None else max(retry_at, now + floor(task))


def floor(task: Task) -> float:
    """The least pause after an attempt that ended without an error of user code, in seconds. It
    holds whatever the policy says, so that attempts that die at once don't fill the journal."""
    if not task.setbacks:
        return 0.0
    return min(FIRST_FLOOR * 2.0 ** min(task.setbacks - 1, MAX_DOUBLINGS), LONGEST_FLOOR)


def pause(task: Task, incarnation: str) -> float:
    """How long to wait before the next attempt, in seconds."""
    backoff = task.options.backoff
    if not backoff.initial:
        return 0.0
    full = min(backoff.initial * 2.0 ** min(task.charged, MAX_DOUBLINGS), backoff.maximum)
    # Jitter from unique names: a journal must replay without random numbers.
    text = f"{incarnation}/{task.number}/{task.attempts}"
    return full * (1 - backoff.jitter * zlib.crc32(text.encode()) / 2**32)
