"""What the code of a body calls, behind the public functions."""

from __future__ import annotations

import inspect
from typing import Any

from ray_workflows._executor.worker.bodies.attempt import BodyAttempt, current_attempt
from ray_workflows._executor.worker.bodies.body import Asked


def running(what: str) -> BodyAttempt:
    """The body whose code calls.

    Raises:
        RuntimeError: the caller is none.
    """
    attempt = current_attempt.get()
    if attempt is None:
        raise RuntimeError(
            f"{what} is for the code of a durable function (@workflow.durable), and none runs here."
        )
    return attempt


def line_of_caller() -> str:
    """Where the user's code calls a function of this package, as ``file:line``."""
    frame = inspect.currentframe()
    assert frame is not None
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("ray_workflows.", "asyncio.")
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def ask(
    attempt: BodyAttempt,
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
) -> Asked:
    """Ask for a step."""
    return attempt.step(target, args, kwargs, options, line_of_caller())
