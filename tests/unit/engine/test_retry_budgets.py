"""What an attempt that ended without a result is charged to, and when the next one starts."""

from __future__ import annotations

import pytest

from ray_workflows._capture.options import retry_options
from ray_workflows._engine.retry import FIRST_FLOOR, LONGEST_FLOOR
from ray_workflows._model import messages as msg
from ray_workflows._model.plan import Backoff
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import ErrorInfo
from ray_workflows.retry import RetryPolicy
from tests.unit.driver import Driver
from tests.unit.plans import plan

GONE = ErrorInfo("Gone", "gone")


def driver(**options: object) -> Driver:
    return Driver(plan(("a", (), options)))


def crash(d: Driver, kind: msg.Crash) -> float:
    """How long the next attempt has to wait; -1 if there is none."""
    d.report(msg.AttemptCrashed, "a", error=GONE, crash=kind)
    return wait(d)


def lose_storage(d: Driver) -> float:
    d.report(msg.AttemptLostStorage, "a", error=GONE)
    return wait(d)


def wait(d: Driver) -> float:
    return d.flying[0].not_before - d.now if 0 in d.flying else -1


def test_the_loss_of_a_node_is_not_charged_to_retries() -> None:
    d = driver(max_retries=1)
    for _ in range(20):
        assert crash(d, msg.Crash.PREEMPTED) >= 0
    # Its one retry is still there.
    assert crash(d, msg.Crash.KILLED) >= 0
    assert crash(d, msg.Crash.KILLED) == -1
    assert d.state.status is WorkflowStatus.FAILED


@pytest.mark.parametrize(
    ("max_retries", "preemptions", "allowed"), [(5, 2, 2), (0, 2, 2), (5, 0, 0)]
)
def test_preemptions_have_a_budget_of_their_own(
    max_retries: int, preemptions: int, allowed: int
) -> None:
    d = driver(max_retries=max_retries, preemptions=preemptions)
    waits = [crash(d, msg.Crash.PREEMPTED) for _ in range(allowed + 1)]
    assert [each >= 0 for each in waits] == [True] * allowed + [False]


def test_what_must_not_be_retried_is_not_after_the_loss_of_its_node() -> None:
    """It may have run there."""
    assert crash(driver(max_retries=0), msg.Crash.PREEMPTED) == -1
    assert crash(driver(max_retries=0, preemptions=-1), msg.Crash.PREEMPTED) == 0


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_storage_that_is_away_is_charged_to_nobody(max_retries: int) -> None:
    d = driver(max_retries=max_retries, preemptions=0)
    for _ in range(50):
        assert lose_storage(d) >= 0
    d.succeed("a")
    assert d.state.status is WorkflowStatus.SUCCESSFUL


@pytest.mark.parametrize("initial", [0.0, 0.01])
def test_crashes_in_a_row_wait_longer_whatever_the_policy_says(initial: float) -> None:
    d = driver(max_retries=-1, backoff=Backoff(initial, initial, 0.0))
    waits = [crash(d, msg.Crash.KILLED) for _ in range(10)]
    assert waits[0] == pytest.approx(initial)
    assert waits[1:7] == pytest.approx([FIRST_FLOOR * 2**n for n in range(6)])
    assert waits[7:] == pytest.approx([LONGEST_FLOOR] * 3)


def test_every_kind_of_setback_counts_and_an_error_of_user_code_ends_the_row() -> None:
    d = driver(max_retries=-1)
    ends = [lambda: crash(d, msg.Crash.PREEMPTED), lambda: crash(d, msg.Crash.KILLED)]
    waits = [end() for end in (*ends, lambda: lose_storage(d))]
    assert waits == pytest.approx([0, FIRST_FLOOR, 2 * FIRST_FLOOR])
    d.fail("a", retryable=True)
    assert wait(d) <= 0
    assert crash(d, msg.Crash.KILLED) == 0


def test_an_exit_is_charged_and_caught_when_no_retry_is_left() -> None:
    d = driver(max_retries=1, catch_exceptions=True)
    assert crash(d, msg.Crash.EXITED) >= 0
    assert crash(d, msg.Crash.EXITED) == -1
    assert d.state.status is WorkflowStatus.SUCCESSFUL
    assert d.state.output is not None
    assert d.state.output.error == GONE


def test_a_fresh_start_of_a_failed_workflow_has_fresh_budgets() -> None:
    d = driver(max_retries=1, preemptions=1)
    crash(d, msg.Crash.PREEMPTED)
    assert crash(d, msg.Crash.PREEMPTED) == -1
    d.resume()
    assert crash(d, msg.Crash.PREEMPTED) == 0


ENDS = {
    "raised": lambda d: d.fail("a", retryable=True),
    "crashed": lambda d: crash(d, msg.Crash.KILLED),
    "preempted": lambda d: crash(d, msg.Crash.PREEMPTED),
    "lost_storage": lose_storage,
    "lost_value": lambda d: d.report(msg.AttemptLostInput, "a", error=GONE),
    "timed_out": lambda d: d.report(
        msg.AttemptRaised, "a", error=GONE, retryable=True, timed_out=True
    ),
}


@pytest.mark.parametrize("why", ENDS)
def test_the_next_attempt_knows_why_the_last_one_ended(why: str) -> None:
    d = driver(max_retries=-1)
    assert d.state.tasks[0].last_end == ""
    ENDS[why](d)
    assert d.state.tasks[0].last_end == why


def test_an_attempt_that_was_stopped_ended_so() -> None:
    d = driver()
    d.send(msg.Cancel())
    d.resume()
    assert d.state.tasks[0].last_end == "canceled"


def test_a_policy_says_how_often_a_preempted_task_is_tried_again() -> None:
    assert RetryPolicy().to_label()["preemptions"] == -1
    assert RetryPolicy(preemptions=2).to_label()["preemptions"] == 2
    with pytest.raises(ValueError, match="preemptions must be 0 or more"):
        RetryPolicy(preemptions=-1)
    for wrong in (True, 1.5, "2"):
        with pytest.raises(TypeError, match="preemptions must be an integer"):
            RetryPolicy(preemptions=wrong)  # type: ignore[arg-type]


def test_a_policy_in_a_function_that_0_1_0_stored_is_read() -> None:
    label = RetryPolicy(max_attempts=2).to_label()
    assert retry_options({}, label, where="task")["preemptions"] == -1
    del label["preemptions"]
    assert retry_options({}, label, where="task")["preemptions"] is None
