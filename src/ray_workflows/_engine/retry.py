"""Whether a task that failed gets another attempt, and when. Judged from counts."""

from __future__ import annotations

import zlib

from ray_workflows._engine.state import Task

#: ``max_retries=-1``: as often as it takes.
UNLIMITED = -1


#: Pauses double this often at most: far beyond any maximum that makes sense.
MAX_DOUBLINGS = 60


def next_attempt_at(task: Task, incarnation: str, now: float) -> float | None:
    """When the attempt after a charged failure may start, or None if there is none left."""
    limit = task.options.max_retries
    if limit == UNLIMITED or task.charged < limit:
        return now + pause(task, incarnation)
    return None


def pause(task: Task, incarnation: str) -> float:
    """How long to wait before the next attempt, in seconds."""
    backoff = task.options.backoff
    if not backoff.initial:
        return 0.0
    full = min(backoff.initial * 2.0 ** min(task.charged, MAX_DOUBLINGS), backoff.maximum)
    # Spread by what never repeats, because a journal must replay without a random number.
    text = f"{incarnation}/{task.number}/{task.attempts}"
    return full * (1 - backoff.jitter * zlib.crc32(text.encode()) / 2**32)
