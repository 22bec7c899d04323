"""Verbs for many workflows: each takes a filter, as `list_workflows` does, and says what became of
each workflow that the filter means.
"""

from __future__ import annotations

from typing import Any

from ray_workflows._arguments import check_flag, parse_resume_options
from ray_workflows._client import bulk
from ray_workflows._client.bulk import BulkResult
from ray_workflows._model.filters import parse_filter
from ray_workflows._model.ids import validate_signal_text

__all__ = ["BulkResult", "cancel_many", "delete_many", "fork_many", "resume_many", "signal_many"]


def cancel_many(filter: str, *, dry_run: bool = False) -> list[BulkResult]:
    """Cancel all workflows that match a filter.

    Args:
        filter: as for `list_workflows`. Without ``status=`` it means those that have not ended.
        dry_run: only list them.

    Returns:
        The id of each, with the error if it could not be canceled.

    Raises:
        InvalidFilterError: the filter can't be read. (It is a ValueError.)
        ValueError: the filter is empty; ``id=*`` means all.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> for number in range(3):
        ...     ref = workflow.run_async(
        ...         workflow.wait_for_signal("go"), workflow_id=f"waits-{number}"
        ...     )
        >>> [each.workflow_id for each in workflow.cancel_many("id=waits-*", dry_run=True)]
        ['waits-0', 'waits-1', 'waits-2']
        >>> [each.error for each in workflow.cancel_many("id=waits-*")]
        [None, None, None]
        >>> workflow.count_workflows("id=waits-* status=CANCELED")
        3
    """
    return bulk.cancel_many(parse_filter(filter), check_flag("dry_run", dry_run))


def delete_many(filter: str, *, dry_run: bool = False) -> list[BulkResult]:
    """Delete all workflows that match a filter, with all their stored data.

    Args:
        filter: as for `list_workflows`. Without ``status=`` it means those that are neither running
            nor pending.
        dry_run: only list them.

    Returns:
        The id of each, with the error if it could not be deleted.

    Raises:
        InvalidFilterError: the filter can't be read. (It is a ValueError.)
        ValueError: the filter is empty; ``id=*`` means all.

    Examples:
        >>> import ray_workflows as workflow
        >>> workflow.delete_many("status=FAILED ended<2020-01-31")
        []
    """
    return bulk.delete_many(parse_filter(filter), check_flag("dry_run", dry_run))


def signal_many(
    filter: str,
    name: str,
    value: Any = None,
    *,
    signal_id: str | None = None,
    dry_run: bool = False,
) -> list[BulkResult]:
    """Send all workflows that match a filter a signal, as `signal` does.

    Args:
        filter: as for `list_workflows`. Without ``status=`` it means those that take signals.
        name: what it is waited for by.
        value: what the node that waits produces.
        signal_id: as for `signal`, of each of them.
        dry_run: only list them.

    Returns:
        The id of each, with the error if it did not get the signal.

    Raises:
        InvalidFilterError: the filter can't be read. (It is a ValueError.)
        TypeError: a name or id that is not a string.
        ValueError: the filter is empty, or a name or id that can't be used.

    Examples:
        >>> import ray_workflows as workflow
        >>> workflow.signal_many("tag.team=nobody", "go")
        []
    """
    name = validate_signal_text("name", name)
    if signal_id is not None:
        signal_id = validate_signal_text("signal_id", signal_id)
    meant = parse_filter(filter)
    return bulk.signal_many(meant, name, value, signal_id, check_flag("dry_run", dry_run))


def resume_many(
    filter: str,
    *,
    canceled: bool = False,
    code: str = "recorded",
    runtime_env: dict[str, Any] | None = None,
    strict: bool = True,
    dry_run: bool = False,
) -> list[BulkResult]:
    """Resume all workflows that match a filter, as `resume_async` does.

    Args:
        filter: as for `list_workflows`. Without ``status=`` it means RESUMABLE and FAILED ones, and
            if ``canceled`` is set, CANCELED ones.
        canceled: also resume those that were canceled.
        code: as for `resume`.
        runtime_env: as for `resume`.
        strict: as for `resume`.
        dry_run: only list them.

    Returns:
        The id of each, with an ObjectRef of the output as ``value``, or with the error if it could
        not be resumed.

    Raises:
        InvalidFilterError: the filter can't be read. (It is a ValueError.)
        ValueError: the filter is empty; ``id=*`` means all.

    Examples:
        >>> import ray_workflows as workflow
        >>> workflow.resume_many("status=FAILED tag.team=nobody")
        []
    """
    resume_options = parse_resume_options(code, runtime_env, None, strict)
    canceled = check_flag("canceled", canceled)
    return bulk.resume_many(
        parse_filter(filter), canceled, resume_options, check_flag("dry_run", dry_run)
    )


def fork_many(
    filter: str,
    from_task: str,
    *,
    code: str = "recorded",
    strict: bool = True,
    dry_run: bool = False,
) -> list[BulkResult]:
    """Fork all workflows that match a filter from a task of this id, as `fork` does.

    Args:
        filter: as for `list_workflows`.
        from_task: id of the task to run again in each.
        code: as for `fork`.
        strict: as for `fork`.
        dry_run: only list them.

    Returns:
        The id of each, with the generated id of the new workflow as ``value``, or with the error
        if it could not be forked.

    Raises:
        InvalidFilterError: the filter can't be read. (It is a ValueError.)
        ValueError: the filter is empty; ``id=*`` means all.

    Examples:
        >>> import ray_workflows as workflow
        >>> workflow.fork_many("tag.team=nobody", "train", code="current")
        []
    """
    if not isinstance(from_task, str):
        raise TypeError(f"from_task must be a task id, not {type(from_task).__name__}.")
    resume_options = parse_resume_options(code, None, None, strict)
    return bulk.fork_many(
        parse_filter(filter), from_task, resume_options, check_flag("dry_run", dry_run)
    )
