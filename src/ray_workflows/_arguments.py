"""Checks arguments of the public verbs, and converts them for `_client`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ray_workflows._client.environments import CURRENT, RECORDED, ResumeOptions
from ray_workflows._model.ids import plain_text
from ray_workflows._model.status import WorkflowStatus

#: A WorkflowStatus is a str, and a frozenset of them is a frozenset of str; a set is not.
StatusFilter = str | set[WorkflowStatus] | set[str] | frozenset[str] | None


def check_limit(name: str, value: int | None, minimum: int, what: str) -> None:
    """Raise if a limit is neither None, nor -1, nor an integer from ``minimum`` on."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"'{name}' must be None or an integer, not {type(value).__name__}.")
    if value < minimum and value != -1:
        raise ValueError(f"'{name}' must be a {what} integer or use -1 as infinity, not {value}.")


def check_flag(name: str, value: bool) -> bool:
    """The flag, or TypeError if it is no boolean."""
    if not isinstance(value, bool):
        raise TypeError(f"'{name}' must be True or False, not {value!r}.")
    return value


def check_order(order: str) -> bool:
    """Whether ``order`` is the newest first."""
    if order not in ("newest", "oldest"):
        raise ValueError(f"order must be 'newest' or 'oldest', not {order!r}.")
    return order == "newest"


def check_page(limit: int) -> int:
    """The most rows of a page."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an integer, not {type(limit).__name__}.")
    if limit < 1:
        raise ValueError(f"limit must be a positive integer, not {limit}.")
    return limit


def parse_status_filter(
    status_filter: StatusFilter,
) -> set[WorkflowStatus]:
    """The statuses that a filter allows."""
    if status_filter is None:
        return set(WorkflowStatus) - {WorkflowStatus.NONE}
    if isinstance(status_filter, str):
        status_filter = {status_filter}
    if not isinstance(status_filter, (set, frozenset)):
        raise TypeError(
            f"status_filter must be a WorkflowStatus or a set of them, not "
            f"{type(status_filter).__name__}."
        )
    for status in status_filter:
        if not isinstance(status, str):
            raise TypeError(
                f"status_filter contains element which is not a type of `WorkflowStatus or str`: "
                f"{status!r}"
            )
    statuses = {WorkflowStatus(status) for status in status_filter}
    if WorkflowStatus.NONE in statuses:
        raise ValueError("No workflow has the status NONE. Leave it out of status_filter.")
    return statuses


def to_float(number: float) -> float:
    """A number as a float; an integer that is too large for one is infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def parse_age(older_than: float | timedelta) -> float:
    """Seconds of an age."""
    seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(
            f"'older_than' must be seconds or a timedelta, not {type(older_than).__name__}."
        )
    seconds = to_float(seconds)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"'older_than' must be a non-negative, finite number, not {seconds}.")
    return seconds


def parse_prunable(
    statuses: WorkflowStatus | str | set[WorkflowStatus] | set[str] | None,
) -> set[WorkflowStatus] | None:
    """The statuses of workflows to delete."""
    if statuses is None:
        return None
    wanted = parse_status_filter(statuses)
    active = wanted & {*WorkflowStatus.non_terminating_status(), WorkflowStatus.NONE}
    if active or not wanted:
        raise ValueError(
            f"statuses={sorted(active) or 'set()'} can't be pruned. Name some of SUCCESSFUL, "
            f"FAILED, CANCELED and RESUMABLE; cancel() what is running first."
        )
    return wanted


def parse_keep(keep: int) -> int:
    """The number of workflows to keep."""
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise TypeError(f"'keep' must be an integer, not {type(keep).__name__}.")
    if keep < 0:
        raise ValueError(f"'keep' must be a non-negative integer, not {keep}.")
    return keep


def parse_resume_options(
    code: str,
    runtime_env: dict[str, Any] | None,
    task_options: dict[str, dict[str, Any]] | None,
    strict: bool,
) -> ResumeOptions:
    """The options of a resumption."""
    if code not in (RECORDED, CURRENT):
        raise ValueError(f"code must be 'recorded' or 'current', not {code!r}.")
    if runtime_env is not None and not isinstance(runtime_env, dict):
        raise TypeError(f"runtime_env must be a dict, not {type(runtime_env).__name__}.")
    if task_options is not None and not (
        isinstance(task_options, dict) and all(isinstance(v, dict) for v in task_options.values())
    ):
        raise TypeError("task_options must be a dict of dicts: Ray options by task id.")
    return ResumeOptions(
        plain_text(code), runtime_env, task_options or {}, check_flag("strict", strict)
    )


def parse_patterns(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of secret variables, or patterns of such."""
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"secret_env_vars must be a list of names, not {names!r}.")
    if any("," in name for name in names):
        raise ValueError("A name in secret_env_vars has a comma. Give them one by one.")
    return tuple(names)
