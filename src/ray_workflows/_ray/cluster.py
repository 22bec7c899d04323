"""Whether this process runs in the cluster, or outside as a Ray Client (``ray://``).

A Ray Client reaches one server of the cluster, but not its disks or its network; and its own files
and variables mean nothing there. So functions that need the cluster are called in the cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.client import ray as ray_client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def is_outside() -> bool:
    """Whether this process is a Ray Client."""
    return bool(ray_client.is_connected())


class Refused:
    """An error that `answer` returns."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def answer(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function. An error is returned, because Ray would wrap it and lose its causes."""
    try:
        return function(*args)
    except Exception as error:
        return Refused(error)


def call_on(node_id: str | None, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of this package in a Ray task.

    Args:
        node_id: Ray's hex id of the node; None for any.
        function: found by its name there.
        args: ObjectRefs among them stay ObjectRefs.

    Raises:
        ray.exceptions.RayError: the node is gone, or the task died.
        Exception: what the function raised.
    """
    remote = answer
    if node_id is not None:
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        remote = answer.options(scheduling_strategy=strategy)
    result = ray.get(remote.remote(function, args))
    if isinstance(result, Refused):
        raise result.error
    return result


def call_inside(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of this package here, or from a Ray Client on the node of its server.

    Raises:
        Exception: what the function raised.
    """
    if not is_outside():
        return function(*args)
    return call_on(ray.get_runtime_context().get_node_id(), function, *args)
