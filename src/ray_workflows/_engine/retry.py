"""Whether a task that failed gets another attempt, and when. Judged from counts alone."""

from __future__ import annotations

from ray_workflows._engine.state import Task

#: ``max_retries=-1``: as often as it takes.
UNLIMITED = -1


def next_attempt_at(task: Task, now: float) -> float | None:
    """When the attempt after a charged failure may start, or None if there is none left."""
    limit = task.options.max_retries
    if limit == UNLIMITED or task.charged < limit:
        return now
    return None
