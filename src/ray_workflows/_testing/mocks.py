"""Mocks: what runs in place of the functions of some tasks."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from ray.remote_function import RemoteFunction

from ray_workflows._capture.dag import function_name
from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._ray.private import remote_body

#: What `Environment.mock` replaces: a function in all its tasks, or the task of an id.
Target = Callable[..., Any] | str


class Mock:
    """Replaces the functions of some tasks, the next ``times`` times."""

    def __init__(self, target: Target, action: Callable[..., Any], times: int | None) -> None:
        self.task_id: str | None = target if isinstance(target, str) else None
        self.function: str | None = (
            None if isinstance(target, str) else function_name(body_of(target))
        )
        self.action = action
        self.times = times
        self.used = False

    def fits(self, request: AttemptRequest) -> bool:
        """Whether the mock replaces the function of an attempt."""
        if self.times == 0:
            return False
        if self.task_id is not None:
            return request.task_id == self.task_id
        return request.function.name == self.function


def body_of(target: Any) -> Callable[..., Any]:
    """The function behind a remote function, or the function itself."""
    if isinstance(target, RemoteFunction):
        return remote_body(target)
    if not isinstance(target, FunctionType):
        raise TypeError(
            f"A mock is for a remote function as it is decorated, a function, or the id of a task, "
            f"not for {target!r}."
        )
    body: Callable[..., Any] = target
    return body


def is_exception(value: Any) -> bool:
    """Whether ``raise`` accepts the value."""
    if isinstance(value, type):
        return issubclass(value, BaseException)
    return isinstance(value, BaseException)
