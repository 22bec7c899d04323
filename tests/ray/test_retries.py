"""Retry policies, timeouts, and cancel: what is stopped is really stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import is_running

QUICK = {"backoff": 0.01, "max_backoff": 0.02}

#: A timeout in which a worker on a busy machine does what takes no time, in seconds.
ENOUGH = 2.0


class Permanent(Exception):
    """Not worth another try."""


class Temporary(Exception):
    """Worth it."""


@ray.remote
def failing(marks: Marks, error: Exception, times: int):
    marks.add("ran")
    if marks.count("ran") <= times:
        raise error
    return marks.count("ran")


@ray.remote
def stubborn(marks: Marks, times: int):
    """Runs for ever on its first attempts, and swallows what Python could throw at it."""
    marks.add("ran")
    attempt = marks.count("ran")
    marks.add(f"attempt-{attempt}")
    while attempt <= times:
        try:
            time.sleep(0.05)
        except BaseException:
            continue
    # The one before it must be over by now.
    return [is_running(pid) for n in range(1, attempt) for pid in marks.pids(f"attempt-{n}")]


def with_policy(function, timeout=None, **policy):
    retry = workflow.RetryPolicy(**{**QUICK, **policy})
    return function.options(**workflow.options(retry=retry, timeout=timeout, task_id="task"))


def test_a_policy_counts_all_attempts(wid: str, marks: Marks) -> None:
    dag = with_policy(failing, max_attempts=4).bind(marks, Temporary("no"), 9)
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(dag, workflow_id=wid)
    assert isinstance(caught.value.__cause__, Temporary)
    assert marks.count("ran") == 4
    (task,) = workflow.get_tasks(wid)
    assert (task.attempts, task.status) == (4, workflow.TaskStatus.FAILED)


def test_a_policy_without_end(marks: Marks) -> None:
    dag = with_policy(failing, max_attempts=None).bind(marks, Temporary("no"), 9)
    assert workflow.run(dag) == 10


def test_types_that_are_tried_again_and_types_that_are_not(marks: Marks) -> None:
    policy = {"retry_on": (Temporary, OSError), "give_up_on": PermissionError}
    for error, runs in (
        (Temporary("again"), 2),
        (ConnectionError("a subclass"), 2),
        (Permanent("not named"), 1),
        (PermissionError("given up on"), 1),
    ):
        before = marks.count("ran")
        dag = with_policy(failing, max_attempts=2, **policy).bind(marks, error, 1000)
        with pytest.raises(workflow.WorkflowExecutionError):
            workflow.run(dag)
        assert marks.count("ran") - before == runs, error


def test_pauses_are_kept_and_no_worker_waits(wid: str, marks: Marks) -> None:
    dag = with_policy(failing, backoff=0.4, max_backoff=10, jitter=0).bind(marks, Temporary("n"), 2)
    started = time.monotonic()
    assert workflow.run(dag, workflow_id=wid) == 3
    assert time.monotonic() - started >= 0.4 + 0.8


def test_a_policy_on_the_decorator_and_types_by_value(marks: Marks) -> None:
    class Local(Exception):
        pass

    @workflow.options(retry=workflow.RetryPolicy(max_attempts=2, retry_on=[Local], **QUICK))
    @ray.remote
    def local(marks):
        marks.add("ran")
        raise Local

    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(local.bind(marks))
    assert marks.count("ran") == 2


def test_an_attempt_that_overruns_its_timeout_is_really_stopped(wid: str, marks: Marks) -> None:
    dag = with_policy(stubborn, timeout=ENOUGH, max_attempts=3).bind(marks, 2)
    assert workflow.run(dag, workflow_id=wid) == [False, False]
    (task,) = workflow.get_tasks(wid)
    assert task.attempts == 3
    assert marks.count("ran") == 3


def test_a_timeout_counts_from_when_the_attempt_runs(marks: Marks, gate: Gate) -> None:
    """Not from when it waits for a place to run."""

    @ray.remote(resources={"special": 2})
    def holding(marks: Marks, gate: Gate):
        marks.add("holding")
        gate.wait()

    @ray.remote(resources={"special": 2})
    def patient():
        return "ran"

    held = holding.remote(marks, gate)
    marks.wait_for("holding")
    ref = workflow.run_async(patient.options(**workflow.options(timeout=ENOUGH)).bind())
    assert ray.wait([ref], timeout=ENOUGH + 0.5)[0] == []
    gate.open()
    assert ray.get(ref) == "ran"
    ray.get(held)


def test_without_a_policy_a_timeout_is_retried_like_a_crash(wid: str, marks: Marks) -> None:
    function = stubborn.options(max_retries=1, **workflow.options(timeout=ENOUGH, task_id="slow"))
    with pytest.raises(workflow.WorkflowExecutionError, match="more than its timeout") as caught:
        workflow.run(function.bind(marks, 9), workflow_id=wid)
    cause = caught.value.__cause__
    assert isinstance(cause, workflow.TaskTimeoutError)
    assert isinstance(cause, TimeoutError)
    assert (cause.workflow_id, cause.task_id, cause.timeout) == (wid, "slow", ENOUGH)
    assert marks.count("ran") == 2


def test_a_policy_can_give_up_on_timeouts_and_they_can_be_caught(marks: Marks) -> None:
    retry = workflow.RetryPolicy(give_up_on=TimeoutError, **QUICK)
    options = workflow.options(
        timeout=timedelta(seconds=ENOUGH), retry=retry, catch_exceptions=True
    )
    value, error = workflow.run(stubborn.options(**options).bind(marks, 9))
    assert value is None
    assert isinstance(error, workflow.TaskTimeoutError)
    assert marks.count("ran") == 1


def test_the_timeout_of_a_workflow(wid: str, marks: Marks, tmp_path: Path) -> None:
    @ray.remote
    def both(*values):
        return values

    # With workers that run already: a cold start may take longer than the timeout.
    workflow.run(both.bind(failing.bind(marks, Temporary("no"), 0), with_policy(both).bind()))
    os.remove(os.path.join(marks.directory, "ran"))
    other = Marks(str(tmp_path / "other"))
    dag = both.bind(stubborn.bind(marks, 1), failing.bind(other, Temporary("no"), 0))
    with pytest.raises(workflow.WorkflowTimeoutError) as caught:
        workflow.run(dag, workflow_id=wid, timeout=4 * ENOUGH)
    assert isinstance(caught.value, workflow.WorkflowExecutionError)
    assert isinstance(caught.value, TimeoutError)
    assert workflow.get_status(wid) == workflow.FAILED
    with pytest.raises(ValueError, match="longer than its timeout"):
        workflow.get_output(wid)
    (pid,) = marks.pids("attempt-1")
    wait_until(lambda: not is_running(pid), "the stopped task is gone")
    # It has the whole time again, and what was done stays done.
    assert workflow.resume(wid) == ([False], 1)
    assert (marks.count("ran"), other.count("ran")) == (2, 1)


def test_cancel_really_stops_what_runs(wid: str, marks: Marks) -> None:
    """Also what does not listen, and what a task has started itself."""

    @ray.remote
    def child(marks: Marks):
        marks.add("child")
        while True:
            time.sleep(0.05)

    @ray.remote
    def parent(marks: Marks):
        marks.add("parent")
        return ray.get(child.remote(marks))

    @ray.remote
    def both(*values):
        return values

    dag = both.bind(parent.bind(marks), stubborn.bind(marks, 1))
    ref = workflow.run_async(dag, workflow_id=wid)
    for name in ("child", "parent", "ran"):
        marks.wait_for(name)
    workflow.cancel(wid)
    with pytest.raises(workflow.WorkflowCancellationError):
        ray.get(ref)
    pids = [pid for name in ("child", "parent", "ran") for pid in marks.pids(name)]
    assert len(pids) == 3
    wait_until(lambda: not any(map(is_running, pids)), "the tasks are gone")


def test_a_running_task_is_seen_to_run(wid: str, marks: Marks, gate: Gate) -> None:
    @ray.remote
    def held(marks: Marks, gate: Gate):
        marks.add("held")
        gate.wait()

    before = time.time()
    ref = workflow.run_async(held.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    wait_until(lambda: workflow.get_tasks(wid)[0].started_at is not None, "its start is known")
    (task,) = workflow.get_tasks(wid)
    assert task.status is workflow.TaskStatus.RUNNING
    assert before <= task.started_at <= time.time()
    assert task.ended_at is None
    gate.open()
    ray.get(ref)
    assert workflow.get_tasks(wid)[0].started_at == pytest.approx(task.started_at, abs=0.01)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: workflow.RetryPolicy(max_attempts=0), ValueError, "at least 1, not 0"),
        (lambda: workflow.RetryPolicy(max_attempts=-1), ValueError, "None is as often as it takes"),
        (lambda: workflow.RetryPolicy(max_attempts=2.0), TypeError, "an integer or None"),
        (lambda: workflow.RetryPolicy(backoff=-1), ValueError, "backoff must be finite seconds"),
        (lambda: workflow.RetryPolicy(max_backoff=float("nan")), ValueError, "max_backoff"),
        (lambda: workflow.RetryPolicy(max_backoff=float("inf")), ValueError, "max_backoff"),
        (lambda: workflow.RetryPolicy(jitter=1.5), ValueError, "jitter must be from 0 to 1"),
        (lambda: workflow.RetryPolicy(jitter="much"), TypeError, "jitter must be a number"),
        (lambda: workflow.RetryPolicy(retry_on="ValueError"), TypeError, "exception types"),
        (lambda: workflow.RetryPolicy(give_up_on=[int]), TypeError, "exception types"),
        (lambda: workflow.options(retry=3), TypeError, "must be a RetryPolicy, not int"),
        (lambda: workflow.options(timeout="1s"), TypeError, "seconds or a timedelta, not str"),
        (lambda: workflow.options(timeout=True), TypeError, "not bool"),
        (lambda: workflow.options(timeout=0), ValueError, "positive, finite"),
        (lambda: workflow.options(timeout=timedelta(0)), ValueError, "positive, finite"),
        (lambda: workflow.options(timeout=float("inf")), ValueError, "positive, finite"),
        (lambda: workflow.run(failing.bind(0, 0, 0), timeout=-1), ValueError, "positive, finite"),
        (lambda: workflow.run_async(failing.bind(0, 0, 0), timeout="1"), TypeError, "not str"),
    ],
)
def test_bad_policies_and_timeouts(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_policy_beside_rays_own_retries(wid: str) -> None:
    policy = workflow.options(retry=workflow.RetryPolicy())
    for own in ({"max_retries": 2}, {"retry_exceptions": True}):
        with pytest.raises(ValueError, match="both a retry policy"):
            workflow.run(failing.options(**own, **policy).bind(0, 0, 0), workflow_id=wid)
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(wid)
