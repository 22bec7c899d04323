"""Whether a task that failed gets another attempt, and when. Judged from counts."""

from __future__ import annotations

import zlib

from ray_workflows._engine.state import Task

#: ``max_retries=-1``: as often as it takes.
UNLIMITED = -1


#: Pauses between crashes in a row, in seconds: the first one and the longest.
FIRST_FLOOR, LONGEST_FLOOR = 1.0, 60.0

#: Pauses double this often at most: far beyond any maximum that makes sense.
MAX_DOUBLINGS = 60


def next_attempt_at(task: Task, incarnation: str, now: float) -> float | None:
    """When the attempt after a charged failure may start, or None if there is none left."""
    limit = task.options.max_retries
    if limit == UNLIMITED or task.charged < limit:
        return now + pause(task, incarnation)
    return None


def after_preemption(task: Task, now: float) -> float | None:
    """When the attempt after the loss of a node may start, or None if there is none left. Nobody is
    to blame, so ``max_retries`` is not asked; but what must not be retried may have run there."""
    limit = task.options.preemptions
    if limit is None:
        limit = 0 if task.options.max_retries == 0 else UNLIMITED
    if limit == UNLIMITED or task.preempted < limit:
        return now + floor(task)
    return None


def after_crash(task: Task, incarnation: str, now: float) -> float | None:
    """When the attempt after a crash may start, or None if there is none left."""
    retry_at = next_attempt_at(task, incarnation, now)
    return None if retry_at is None else max(retry_at, now + floor(task))


def floor(task: Task) -> float:
    """How long to wait at least after an attempt that ended for no error of user code, in seconds:
    what kills each attempt at once must not fill the journal, whatever the policy says."""
    if not task.setbacks:
        return 0.0
    return min(FIRST_FLOOR * 2.0 ** min(task.setbacks - 1, MAX_DOUBLINGS), LONGEST_FLOOR)


def pause(task: Task, incarnation: str) -> float:
    """How long to wait before the next attempt, in seconds."""
    backoff = task.options.backoff
    if not backoff.initial:
        return 0.0
    full = min(backoff.initial * 2.0 ** min(task.charged, MAX_DOUBLINGS), backoff.maximum)
    # Spread by what never repeats, because a journal must replay without a random number.
    text = f"{incarnation}/{task.number}/{task.attempts}"
    return full * (1 - backoff.jitter * zlib.crc32(text.encode()) / 2**32)
