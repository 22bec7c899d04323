"""`RetryPolicy`: when a failed task is tried again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ray_workflows._arguments import to_float
from ray_workflows._capture.options import to_hex
from ray_workflows.exceptions import TaskTimeoutError

#: One type of exceptions, or several.
ExceptionTypes = type[BaseException] | tuple[type[BaseException], ...] | list[type[BaseException]]


def exception_types(name: str, given: Any) -> tuple[type[BaseException], ...]:
    """Exception types as a tuple.

    Raises:
        TypeError: one is not an exception type.
    """
    types = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    for item in types:
        if not isinstance(item, type) or not issubclass(item, BaseException):
            raise TypeError(f"{name} takes exception types, not {item!r}.")
    return types


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed task is tried again. Given as ``workflow.options(retry=RetryPolicy())``.

    Counts and pauses are durable: they survive a crash of the coordinator or the cluster. Attempts
    whose worker died count too. Attempts whose node was lost or preempted, or that Ray's memory
    monitor ended because the node was short of memory, have a budget of their own
    (``preemptions``). Attempts that lost an input, or whose worker could not reach the storage for
    minutes, don't count. Between crashes in a row the pause is at least 1 s and doubles up to 60 s,
    whatever the policy says. The policy replaces Ray's ``max_retries`` and ``retry_exceptions``.

    Args:
        max_attempts: the most attempts, including the first; None: no limit.
        backoff: the pause before the second attempt, in seconds; it doubles with each attempt.
        max_backoff: the longest pause, in seconds.
        jitter: the part of each pause, from 0 to 1, that may be taken off at random, so that tasks
            that failed together are not retried together.
        retry_on: exception types that are retried, a type or a tuple of types.
        give_up_on: exception types among them that are not retried.
        preemptions: how often it is tried again after its node was lost or preempted, or short of
            memory; None: no limit. (Tasks without a policy: the same, but never with
            Ray's ``max_retries=0``, because such a task may have run before its node was lost.)

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an argument out of range.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> policy = workflow.RetryPolicy(max_attempts=3, backoff=0.01, give_up_on=ValueError)
        >>> @workflow.options(retry=policy)
        ... @ray.remote
        ... def flaky():
        ...     if workflow.current().attempt < 3:
        ...         raise ConnectionError("try again")
        ...     return workflow.current().attempt
        >>> workflow.run(flaky.bind())
        3
    """

    max_attempts: int | None = 3
    backoff: float = 1.0
    max_backoff: float = 60.0
    jitter: float = 0.1
    retry_on: ExceptionTypes = Exception
    give_up_on: ExceptionTypes = ()
    preemptions: int | None = None

    def __post_init__(self) -> None:
        attempts = self.max_attempts
        if attempts is not None:
            if isinstance(attempts, bool) or not isinstance(attempts, int):
                raise TypeError(f"max_attempts must be an integer or None, not {attempts!r}.")
            if attempts < 1:
                raise ValueError(
                    f"max_attempts counts the first attempt too and must be at least 1, not "
                    f"{attempts}. None is as often as it takes."
                )
        preemptions = self.preemptions
        if preemptions is not None:
            if isinstance(preemptions, bool) or not isinstance(preemptions, int):
                raise TypeError(f"preemptions must be an integer or None, not {preemptions!r}.")
            if preemptions < 0:
                raise ValueError(
                    f"preemptions must be 0 or more, not {preemptions}. None is as often as it "
                    f"takes."
                )
        for name, highest in (("backoff", math.inf), ("max_backoff", math.inf), ("jitter", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {value!r}.")
            if not (0 <= value <= highest and math.isfinite(to_float(value))):
                limits = "from 0 to 1" if name == "jitter" else "finite seconds, 0 or more"
                raise ValueError(f"{name} must be {limits}, not {value}.")
        exception_types("retry_on", self.retry_on)
        exception_types("give_up_on", self.give_up_on)

    def to_label(self) -> dict[str, Any]:
        """The policy as JSON-compatible data for a task's label, with pickled exception types."""
        retry_on = exception_types("retry_on", self.retry_on)
        give_up_on = exception_types("give_up_on", self.give_up_on)
        retries_timeouts = issubclass(TaskTimeoutError, retry_on) and not (
            give_up_on and issubclass(TaskTimeoutError, give_up_on)
        )
        return {
            "max_attempts": self.max_attempts,
            "backoff": float(self.backoff),
            "max_backoff": float(self.max_backoff),
            "jitter": float(self.jitter),
            "retry_on": to_hex(retry_on),
            "give_up_on": to_hex(give_up_on),
            "retry_timeouts": retries_timeouts,
            "preemptions": -1 if self.preemptions is None else self.preemptions,
        }
