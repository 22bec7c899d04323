"""Any duration that users give works or is refused where it is given, with a message."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any

import pytest

import ray_workflows as workflow
from ray_workflows._arguments import parse_age
from ray_workflows._client.task_states import moment
from ray_workflows.cli.printing import format_time
from ray_workflows.options import validate_timeout

#: What somebody may mean by "for ever".
LONG = [1e10, 1e300, datetime.timedelta.max, 10**30]
#: What is no duration.
NONE = [math.nan, math.inf, -math.inf, 10**400, -(10**400), -1, datetime.timedelta.min]

TAKERS: dict[str, Callable[[Any], Any]] = {
    "timeout": validate_timeout,
    "older_than": parse_age,
    "wait_for_signal": lambda given: workflow.wait_for_signal("s", timeout=given),
    "sleep": workflow.sleep,
    "backoff": lambda given: workflow.RetryPolicy(backoff=given),
    "max_backoff": lambda given: workflow.RetryPolicy(max_backoff=given),
}
TIMEDELTAS = ("timeout", "older_than", "wait_for_signal")


@pytest.mark.parametrize("given", LONG, ids=str)
@pytest.mark.parametrize("name", TAKERS)
def test_long_ones_are_taken(name: str, given: Any) -> None:
    if isinstance(given, datetime.timedelta) and name not in TIMEDELTAS:
        with pytest.raises(TypeError, match="number"):
            TAKERS[name](given)
    else:
        TAKERS[name](given)


@pytest.mark.parametrize("given", NONE, ids=lambda given: str(given)[:10])
@pytest.mark.parametrize("name", TAKERS)
def test_what_is_none_is_refused(name: str, given: Any) -> None:
    if name == "sleep" and given == -1:
        workflow.sleep(given)  # As `time` has it: over at once.
        return
    with pytest.raises((ValueError, TypeError), match=r"must be|takes a"):
        TAKERS[name](given)


@pytest.mark.parametrize("given", ["1", None, True, [1.0], 1j], ids=str)
@pytest.mark.parametrize("name", TAKERS)
def test_what_is_no_number_is_refused(name: str, given: Any) -> None:
    if given is None and name in ("timeout", "wait_for_signal"):
        TAKERS[name](given)
        return
    with pytest.raises(TypeError, match=r"number|seconds"):
        TAKERS[name](given)


@pytest.mark.parametrize("show", [moment, format_time])
def test_times_beyond_the_calendar_are_shown(show: Callable[[float], str]) -> None:
    assert "1e+300" in show(1e300)
    assert show(0.0).startswith(("1970", "1969"))
