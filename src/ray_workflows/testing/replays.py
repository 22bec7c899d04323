"""Replays recorded histories of durable functions against changed code."""

from __future__ import annotations

import os
from typing import Any

from ray_workflows._capture.dag import function_name
from ray_workflows._client.connection import wanted_storage
from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import Reader
from ray_workflows._client.replay_checks import body_of, recorded_bodies, replay
from ray_workflows._model.status import WORKFLOWS
from ray_workflows.storage.base import Storage
from ray_workflows.testing.environment import Environment


def check_replay(
    storage: Storage | Environment | str | os.PathLike[str],
    function: Any,
    *,
    workflow_id: str | None = None,
) -> int:
    """Check that a durable function still does what it did in workflows that have run.

    Runs it once for each recorded history of a function with its name, with the recorded arguments
    and outcomes, until it asks for something new or ends. No step runs, nothing is written, and no
    cluster is needed. Use it in a test, with a copy of a storage that has histories of the code
    that is deployed.

    Args:
        storage: where the workflows are: a storage, its directory or URL, or an `Environment`.
        function: the durable function as it is now.
        workflow_id: the workflow to check; by default, all in the storage.

    Returns:
        How many histories were replayed.

    Raises:
        NondeterminismError: it does something else; says what is recorded, what the code asks for,
            and the line.
        TypeError: it is no durable function.
        ValueError: no history is of a function with this name; names those that there are.
        WorkflowNotFoundError: there is no such workflow.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> from ray_workflows.testing import Environment, check_replay
        >>> @ray.remote
        ... def charge(order):
        ...     return f"{order} is charged"
        >>> @workflow.durable
        ... async def sell(order):
        ...     return await workflow.step(charge, order)
        >>> with Environment() as env:
        ...     _ = env.run(sell.bind("A7"), workflow_id="sale")
        ...     check_replay(env, sell, workflow_id="sale")
        1
    """
    body = body_of(function)
    if body is None:
        raise TypeError(f"check_replay() takes a durable function, not {function!r}.")
    found = storage_of(storage)
    if workflow_id is None:
        rows = [row for row, _ in Reader(found).rows(WORKFLOWS)]
    else:
        rows = [read_row(found, workflow_id)]
    name = function_name(body)
    checked, others = 0, set[str]()
    for row in rows:
        for recorded in recorded_bodies(found, row):
            if is_same(recorded.function.name, name):
                replay(found, recorded, body)
                checked += 1
            else:
                others.add(recorded.function.name)
    if not checked:
        known = f" It has histories of {', '.join(sorted(others))}." if others else ""
        where = f"Workflow {workflow_id!r}" if workflow_id is not None else f"{found.url}"
        raise ValueError(f"{where} has no history of {name}.{known}")
    return checked


def storage_of(given: Storage | Environment | str | os.PathLike[str]) -> Storage:
    """The storage that was given."""
    if isinstance(given, Environment):
        return given.storage
    return given if isinstance(given, Storage) else wanted_storage(given, None)


def is_same(recorded: str, name: str) -> bool:
    """Whether two names of functions mean the same one. A script's module is ``__main__``, and has
    another name where it is imported."""
    if recorded == name:
        return True
    module, _, qualname = recorded.partition(".")
    return module == "__main__" and name.endswith(f".{qualname}")
