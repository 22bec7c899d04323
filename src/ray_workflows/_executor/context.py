"""Which attempt is running here: set around user code, read by the public API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ray_workflows._executor.protocol import AttemptRequest

attempt: ContextVar[AttemptRequest | None] = ContextVar("ray_workflows_attempt", default=None)

#: In the listener host coroutines are awaited by its own event loop.
awaits_coroutines: ContextVar[bool] = ContextVar("ray_workflows_awaits", default=False)


@contextmanager
def running(request: AttemptRequest) -> Iterator[None]:
    """Scope of the user code of one attempt."""
    token = attempt.set(request)
    try:
        yield
    finally:
        attempt.reset(token)


def current_attempt() -> AttemptRequest | None:
    """The attempt whose user code is running here, or None outside of workflows."""
    return attempt.get()
