"""`options`: options of a workflow task beyond Ray's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn, Protocol, TypeVar

import ray
from ray.remote_function import RemoteFunction

from ray_workflows._arguments import to_float
from ray_workflows._capture.depth import JSON_DEPTH, is_deeper_than
from ray_workflows._capture.options import read_label, write_label
from ray_workflows._codec.journal import ENCODER
from ray_workflows._model.catalog import Tag
from ray_workflows._model.tags import validate_tags
from ray_workflows._ray.private import LABELS, default_options
from ray_workflows.retry import RetryPolicy


class NotGiven:
    """The value of an omitted option: unlike None, it keeps the decorator's value."""

    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN: Any = NotGiven()


class RemoteTask(Protocol):
    """The type of a remote function, for type checkers.

    Ray's stubs have a class for each number of arguments, and none of these is the run-time class.
    """

    @property
    def bind(self) -> Callable[..., Any]:
        """A node of the function."""

    @property
    def remote(self) -> Callable[..., ray.ObjectRef[Any]]:
        """Classes have it too, but make handles, not ObjectRefs."""


F = TypeVar("F", bound=RemoteTask)


def validate_timeout(timeout: Any) -> float | None:
    """A timeout in seconds.

    Raises:
        TypeError: neither a number nor a timedelta.
        ValueError: not positive and finite.
    """
    if timeout is None:
        return None
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(
            f"timeout must be a number of seconds or a timedelta, not {type(timeout).__name__}."
        )
    seconds = to_float(timeout)
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout must be a positive, finite number of seconds, not {seconds}.")
    return seconds


def validate_metadata(metadata: Any) -> dict[str, Any]:
    """Check user metadata, and return it in stored form.

    Raises:
        ValueError: it is not a dict, or JSON or the journal can't represent it.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be a dict, not {type(metadata).__name__}.")
    if is_deeper_than(JSON_DEPTH, metadata):
        raise ValueError(
            f"metadata must be JSON serializable, and no more than {JSON_DEPTH} levels deep. Is "
            f"something in it a part of itself? What is so deep is a value: return it from a task."
        )
    try:
        stored: dict[str, Any] = json.loads(json.dumps(metadata, allow_nan=False))
        # MessagePack has no integers of more than 64 bits, and UTF-8 no surrogates.
        ENCODER.encode(stored)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"metadata must be JSON serializable, instead, we got "
            f"'{type(error).__name__}: {error}'. Use strings, numbers, lists and dicts."
        ) from None
    return stored


class MergingOptions:
    """``RemoteFunction.options`` of a decorated function: the decorator's options stay, except
    for those that the call names. (Ray's own method would replace all of ``_labels``, which has our
    options.)
    """

    def __init__(self, function: RemoteFunction, defaults: dict[str, Any]) -> None:
        self.function = function
        self.defaults = defaults

    def __call__(self, **task_options: Any) -> Any:
        """As Ray's ``.options(**task_options)``."""
        labels = task_options.get(LABELS)
        if labels is not None:
            merged = {**self.defaults, **read_label(task_options)}
            task_options[LABELS] = {**labels, **write_label(merged)}
        return RemoteFunction.options(self.function, **task_options)


class options:
    """Options of a workflow task: a decorator, and arguments for ``func.options(**...)``.

    Args:
        task_id: the task's id in its workflow; by default ``module.qualname``. A second task with
            the same id gets ``_1`` appended, and so on.
        metadata: kept with the task, returned by ``get_metadata``; JSON-compatible.
        tags: of each workflow whose root is this task, in addition to those given to ``run``.
        catch_exceptions: the task's result is ``(value, None)``, or ``(None, exception)`` if it
            raised; also for errors in continuations it returns. Default False.
        checkpoint: store the result. Default: as the task whose continuation this is, else True.
            False: it is computed again if it is lost while still needed.
        retry: a `RetryPolicy`, in place of Ray's ``max_retries`` and ``retry_exceptions``.
        timeout: how long one attempt may run, in seconds or as a timedelta. An attempt that
            overruns it is stopped (its worker is killed), and fails with `TaskTimeoutError`. It is
            retried as after a crash, or as the policy says.
        batch: False: it never shares a Ray task, and so a worker's death, with others.
            Default True: tasks of functions known to be short, without resources of their own,
            share Ray tasks.

    Raises:
        TypeError: a retry or timeout of a wrong type.
        ValueError: an unknown option, or one with a value it can't have.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @workflow.options(catch_exceptions=True)
        ... @ray.remote
        ... def div(a, b):
        ...     return a / b
        >>> node = div.options(**workflow.options(task_id="by_zero")).bind(1, 0)
        >>> value, error = workflow.run(node)
        >>> isinstance(error, ZeroDivisionError)
        True
    """

    def __init__(
        self,
        *,
        task_id: str | None = NOT_GIVEN,
        metadata: dict[str, Any] | None = NOT_GIVEN,
        tags: dict[str, Tag] | None = NOT_GIVEN,
        catch_exceptions: bool | None = NOT_GIVEN,
        checkpoint: bool | None = NOT_GIVEN,
        retry: RetryPolicy | None = NOT_GIVEN,
        timeout: float | timedelta | None = NOT_GIVEN,
        batch: bool | None = NOT_GIVEN,
        **unknown: NoReturn,
    ) -> None:
        known: dict[str, Any] = {
            "task_id": task_id,
            "metadata": metadata,
            "tags": tags,
            "catch_exceptions": catch_exceptions,
            "checkpoint": checkpoint,
            "retry": retry,
            "timeout": timeout,
            "batch": batch,
        }
        if unknown:
            raise ValueError(
                f"Invalid option keywords {sorted(unknown)} for workflow tasks. "
                f"Valid ones are {list(known)}."
            )
        workflow_options = {k: v for k, v in known.items() if v is not NOT_GIVEN}
        task_id = workflow_options.get("task_id")
        if task_id is not None and (not isinstance(task_id, str) or not task_id):
            raise ValueError(f"task_id must be a non-empty string, not {task_id!r}.")
        for name in ("catch_exceptions", "checkpoint", "batch"):
            value = workflow_options.get(name)
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, not {value!r}.")
        if "metadata" in workflow_options:
            workflow_options["metadata"] = validate_metadata(workflow_options["metadata"])
        if "tags" in workflow_options:
            workflow_options["tags"] = validate_tags(workflow_options["tags"])
        if workflow_options.get("retry") is not None:
            if not isinstance(retry, RetryPolicy):
                raise TypeError(f"retry must be a RetryPolicy, not {type(retry).__name__}.")
            workflow_options["retry"] = retry.to_label()
        if "timeout" in workflow_options:
            workflow_options["timeout"] = validate_timeout(timeout)
        self.options = workflow_options

    def keys(self) -> tuple[str, ...]:
        """For ``**``."""
        return (LABELS,)

    def __getitem__(self, key: str) -> dict[str, str]:
        return {LABELS: write_label(self.options)}[key]

    def __call__(self, function: F) -> F:
        """Decorate a remote function.

        Raises:
            ValueError: it is not a function decorated with ``@ray.remote``.
        """
        if not isinstance(function, RemoteFunction):
            raise ValueError(
                "Only apply 'workflow.options' to Ray remote functions: put it above @ray.remote."
            )
        set_default_options(function, self.options)
        return function


def set_default_options(function: RemoteFunction, ours: dict[str, Any]) -> None:
    """Add our options to those that the function has from ``@ray.remote``."""
    defaults = default_options(function)
    merged = {**read_label(defaults), **ours}
    defaults[LABELS] = {**(defaults.get(LABELS) or {}), **write_label(merged)}
    function.options = MergingOptions(function, merged)
