"""What users see of tasks: their states, why they have not ended, and their attempts."""

from __future__ import annotations

import asyncio

import pytest

from ray_workflows._client.reader import Reader
from ray_workflows._client.reads import get_metadata, get_tasks
from ray_workflows._codec.journal import encode_entry
from ray_workflows._coordinator.liveness import this_holder
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import LISTENER, SIGNAL, TIMER, Backoff
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import AttemptOutcome, StartInfo, StartStatus, TaskInfo, TaskStatus
from ray_workflows._model.values import ErrorInfo, Value
from ray_workflows.storage import MemoryStorage
from ray_workflows.testing.builders import OK, make_holder
from tests.unit.body_driver import DURABLE, BodyDriver, step
from tests.unit.driver import Driver
from tests.unit.plans import plan

RETRIES = {"max_retries": 3, "backoff": Backoff(initial=60.0, maximum=60.0)}

CHAIN = plan(("a", ()), ("b", (0,)))


def stored(driver: Driver, *, held: bool = True) -> tuple[Reader, str]:
    """A reader of a storage that has a workflow as far as it is. ``held``: its holder lives."""
    storage = MemoryStorage(clock=lambda: driver.now)
    row = catalog_row(driver.state, 1)
    append = Append(
        workflow_id=row.workflow_id,
        incarnation=row.incarnation,
        expected_seq=0,
        commit_id="c",
        entry=encode_entry(driver.journal, row.workflow_id, row.incarnation, 1),
        catalog=row,
    )
    assert storage.commit([append]) == [OK]
    if held:
        me = this_holder("c1")
        fields = {"coordinator": "c1", "host": me.host, "pid": me.pid}
        holder = make_holder("h1", started_ticks=me.started_ticks, **fields)
        storage.renew_holder(holder, 15.0)
    return Reader(storage), row.workflow_id


def tasks_of(driver: Driver, *, held: bool = True, attempts: bool = False) -> list[TaskInfo]:
    """The tasks of a workflow that is stored as far as it is. ``held``: its holder lives."""
    return get_tasks(*stored(driver, held=held), attempts=attempts)


def states(driver: Driver, **how: bool) -> list[tuple[str, str | None]]:
    return [(task.status.value, task.reason) for task in tasks_of(driver, **how)]


def run(driver: Driver, task_id: str) -> None:
    """A worker says that it runs the current attempt."""
    start = driver.flying[driver.number(task_id)]
    driver.send(msg.AttemptRuns(start.task, start.epoch, start.attempt, started_at=driver.now))


def outcomes(task: TaskInfo) -> list[tuple[int, int, str, str | None]]:
    return [(a.attempt, a.epoch, a.outcome.value, a.error) for a in task.history]


# -- states --------------------------------------------------------------------------------


def test_a_task_is_queued_until_a_worker_says_that_it_runs() -> None:
    driver = Driver(CHAIN)
    queued = ("QUEUED", "attempt 1 was handed to Ray and does not run yet")
    waiting = ("WAITING", "it waits for 'a'")
    assert states(driver) == [queued, waiting]
    run(driver, "a")
    running = ("RUNNING", "a worker runs attempt 1 since 1970-01-01T00:16:40Z")
    assert states(driver) == [running, waiting]
    driver.succeed("a")
    assert states(driver) == [("SUCCESSFUL", None), queued]


def test_a_task_in_back_off_is_retrying_after_its_error() -> None:
    driver = Driver(plan(("a", (), RETRIES)))
    run(driver, "a")
    driver.fail("a", retryable=True)
    (task,) = tasks_of(driver)
    assert (task.status, task.error, task.retry_at) == (
        TaskStatus.RETRYING,
        "ValueError: boom",
        1060.0,
    )
    assert task.reason == (
        "attempt 1 failed (ValueError: boom); the next one starts at 1970-01-01T00:17:40Z"
    )
    # Its first attempt ran, the second one does not yet.
    driver.now = 1060.0
    (task,) = tasks_of(driver)
    assert (task.status, task.retry_at) == (TaskStatus.QUEUED, None)
    run(driver, "a")
    assert tasks_of(driver)[0].status is TaskStatus.RUNNING


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": TIMER, "duration": 60.0}, "it sleeps until 1970-01-01T00:17:40Z"),
        ({"kind": SIGNAL, "signal": "go"}, "it waits for the signal 'go'"),
        (
            {"kind": SIGNAL, "signal": "go", "timeout": 60.0},
            "it waits for the signal 'go', at the latest until 1970-01-01T00:17:40Z",
        ),
        ({"kind": LISTENER}, "it waits for an event"),
    ],
)
def test_what_has_nothing_to_run_is_waiting(options: dict[str, object], reason: str) -> None:
    assert states(Driver(plan(("a", (), options)))) == [("WAITING", reason)]


def test_a_long_list_of_inputs_is_cut() -> None:
    inputs = tuple((name, ()) for name in "abcde")
    driver = Driver(plan(*inputs, ("sum", (0, 1, 2, 3, 4))))
    assert tasks_of(driver)[-1].reason == "it waits for 'a', 'b', 'c' and 2 more"
    driver.succeed("a")
    driver.succeed("d")
    assert tasks_of(driver)[-1].reason == "it waits for 'b', 'c', 'e'"


def test_a_task_of_a_canceled_workflow_is_canceled() -> None:
    driver = Driver(CHAIN)
    run(driver, "a")
    driver.send(msg.Cancel())
    canceled = ("CANCELED", "its workflow was canceled")
    assert states(driver) == [canceled, canceled]
    driver.resume()
    assert [status for status, _ in states(driver)] == ["QUEUED", "WAITING"]


def test_a_task_of_a_workflow_that_timed_out_is_canceled() -> None:
    driver = Driver(CHAIN, timeout=60.0)
    driver.now += 60.0
    driver.send(msg.Wake())
    assert states(driver) == [("CANCELED", "its workflow ran into its timeout")] * 2


def test_tasks_of_a_failed_workflow() -> None:
    """An attempt beside the one that failed goes on; what has not begun waits."""
    driver = Driver(plan(("a", ()), ("b", ()), ("c", (0, 1))))
    run(driver, "b")
    driver.fail("a")
    failed, running, waiting = tasks_of(driver)
    assert (failed.status, failed.error) == (TaskStatus.FAILED, "ValueError: boom")
    assert running.status is TaskStatus.RUNNING
    assert (waiting.status, waiting.reason) == (
        TaskStatus.WAITING,
        "its workflow has failed: resume it",
    )
    # Its coordinator is lost: nobody starts what a failed workflow had running.
    assert tasks_of(driver, held=False)[1].reason == "nobody drives its workflow: resume it"


def test_a_task_of_a_pending_workflow_waits() -> None:
    reason = "its workflow is PENDING: as many others run as may"
    assert states(Driver(CHAIN, start=False)) == [("WAITING", reason)] * 2


def test_a_task_of_a_workflow_that_nobody_drives_waits() -> None:
    driver = Driver(CHAIN)
    run(driver, "a")
    assert states(driver, held=False) == [("WAITING", "nobody drives its workflow: resume it")] * 2


def test_a_worker_of_an_earlier_coordinator_runs_nothing() -> None:
    driver = Driver(CHAIN)
    run(driver, "a")
    driver.claim("h1-new")
    driver.claim("h1")
    assert states(driver)[0][0] == "QUEUED"


# -- attempts ------------------------------------------------------------------------------


def test_attempts_are_listed_when_they_are_asked_for() -> None:
    driver = Driver(plan(("a", (), {"max_retries": 3}), ("b", (0,))))
    driver.fail("a", retryable=True)
    driver.now = 1002.0
    run(driver, "a")
    driver.now = 1005.0
    assert outcomes(tasks_of(driver, attempts=True)[0]) == [
        (1, 0, "raised", "ValueError: boom"),
        (2, 0, "running", None),
    ]
    driver.succeed("a")
    first, second = tasks_of(driver, attempts=True)[0].history
    assert (first.started_at, first.ended_at) == (1000.0, 1000.0)
    assert (second.outcome, second.ended_at) == (AttemptOutcome.RETURNED, 1005.0)
    assert all(task.history == () for task in tasks_of(driver))


def test_each_way_to_end_has_a_name() -> None:
    """Also of the last attempt, after which the task has failed."""
    error = ErrorInfo("E", "e")
    fields = {"error": error, "node": "ab12cd34"}
    ways: dict[str, tuple[type[msg.AttemptReport], dict[str, object]]] = {
        "raised": (msg.AttemptRaised, {"retryable": True}),
        "timed_out": (msg.AttemptRaised, {"retryable": True, "timed_out": True}),
        "crashed": (msg.AttemptCrashed, {}),
        "preempted": (msg.AttemptCrashed, {"crash": msg.Crash.PREEMPTED}),
        "lost_value": (msg.AttemptLostInput, {}),
        "lost_storage": (msg.AttemptLostStorage, {}),
    }
    for way, (kind, more) in ways.items():
        driver = Driver(plan(("a", (), {"max_retries": 1, "preemptions": 1})))
        driver.report(kind, "a", **fields, **more)
        (task,) = tasks_of(driver, attempts=True)
        assert [(a.outcome.value, a.node) for a in task.history] == [(way, "ab12cd34")]
        if way.startswith("lost"):
            continue
        driver.report(kind, "a", **fields, **more)
        (task,) = tasks_of(driver, attempts=True)
        assert task.status is TaskStatus.FAILED
        assert [a.outcome.value for a in task.history] == [way, way]


def test_where_an_attempt_runs_is_known_when_its_worker_has_died() -> None:
    driver = Driver(plan(("a", ())))
    start = driver.flying[0]
    news = msg.AttemptRuns(start.task, start.epoch, start.attempt, driver.now, node="ab12cd34")
    driver.send(news)
    reason = "a worker on node ab12cd34 runs attempt 1 since 1970-01-01T00:16:40Z"
    assert states(driver) == [("RUNNING", reason)]
    driver.crash("a")
    (task,) = tasks_of(driver, attempts=True)
    assert [(a.outcome.value, a.node) for a in task.history] == [("crashed", "ab12cd34")]


def test_an_attempt_that_lost_its_coordinator_was_interrupted() -> None:
    driver = Driver(CHAIN)
    run(driver, "a")
    driver.claim("h2")
    driver.succeed("a")
    assert outcomes(tasks_of(driver, held=False, attempts=True)[0]) == [
        (1, 0, "interrupted", None),
        (1, 1, "returned", None),
    ]


def test_an_attempt_that_was_stopped_was_canceled() -> None:
    driver = Driver(CHAIN)
    run(driver, "a")
    driver.send(msg.Cancel())
    driver.resume()
    driver.fail("a")
    assert outcomes(tasks_of(driver, attempts=True)[0]) == [
        (1, 0, "canceled", None),
        (2, 0, "raised", "ValueError: boom"),
    ]


def test_an_attempt_whose_input_was_lost_was_canceled() -> None:
    unstored = {"checkpoint": False}
    driver = Driver(plan(("a", (), unstored), ("b", (0,))))
    driver.succeed_unstored("a")
    run(driver, "b")
    driver.claim("h1", live=False)
    assert outcomes(tasks_of(driver, attempts=True)[1]) == [(1, 0, "canceled", None)]


def test_a_continuation_is_an_attempt_that_ended() -> None:
    driver = Driver(plan(("a", ())))
    driver.go_on("a", plan(("inner", ())))
    driver.succeed("inner")
    outer, inner = tasks_of(driver, attempts=True)
    assert (outer.status, inner.status) == (TaskStatus.SUCCESSFUL, TaskStatus.SUCCESSFUL)
    assert [a.outcome.value for a in (*outer.history, *inner.history)] == ["continued", "returned"]


def test_the_traceback_of_an_attempt_is_whole() -> None:
    driver = Driver(plan(("a", ())))
    error = ErrorInfo("ValueError", "boom", traceback="Traceback:\n  line 5\n")
    driver.report(msg.AttemptRaised, "a", error=error, retryable=False)
    (attempt,) = tasks_of(driver, attempts=True)[0].history
    assert attempt.traceback == "Traceback:\n  line 5\n"


def test_an_undisturbed_value_needs_no_reason() -> None:
    driver = Driver(CHAIN)
    driver.report(msg.AttemptReturned, "a", value=Value(b"v"))
    driver.succeed("b")
    assert states(driver) == [("SUCCESSFUL", None)] * 2


# -- metadata ------------------------------------------------------------------------------


def test_what_a_task_added_is_shown_beside_what_it_was_given() -> None:
    driver = Driver(plan(("a", (), {"metadata": {"team": "vision", "loss": None}}), ("b", (0,))))
    driver.report(msg.AttemptReturned, "a", value=Value(b"v"), metadata={"loss": 0.5})
    driver.report(
        msg.AttemptReturnedPlan, "b", plan=plan(("inner", ())), metadata={"continued": True}
    )
    reader, workflow_id = stored(driver)
    found = {task: get_metadata(reader, workflow_id, task)["user_metadata"] for task in ("a", "b")}
    assert found == {"a": {"team": "vision", "loss": 0.5}, "b": {"continued": True}}


# -- started workflows ---------------------------------------------------------------------


def test_what_a_task_has_started_is_there_or_refused_or_on_its_way() -> None:
    driver = Driver(CHAIN)
    messages = tuple(
        OutboxMessage(f"id-{name}", name, Value(b"submission"))
        for name in ("there", "refused", "on its way")
    )
    driver.report(msg.AttemptReturned, "a", value=Value(b"v"), messages=messages)
    refusal = ErrorInfo("WorkflowAlreadyExistsError", "Workflow 'refused' exists already.")
    driver.send(msg.Delivered("id-there"))
    driver.send(msg.Delivered("id-refused", refusal))
    a, b = tasks_of(driver)
    assert a.starts == (
        StartInfo("there", StartStatus.STARTED),
        StartInfo(
            "refused",
            StartStatus.REFUSED,
            "WorkflowAlreadyExistsError: Workflow 'refused' exists already.",
        ),
        StartInfo("on its way", StartStatus.PENDING),
    )
    assert (a.status, a.error) == (TaskStatus.SUCCESSFUL, None)
    assert b.starts == ()


def test_what_a_continued_task_has_started_is_its_own() -> None:
    driver = Driver(plan(("a", ())))
    messages = (OutboxMessage("id", "child", Value(b"submission")),)
    driver.report(
        msg.AttemptReturnedPlan, "a", plan=plan(("x", ()), ("y", (0,))), messages=messages
    )
    driver.succeed("x")
    driver.succeed("y")
    # The workflow does not end before it is handed over.
    driver.send(msg.Delivered("id"))
    starts = {task.task_id: task.starts for task in tasks_of(driver)}
    assert starts == {"a": (StartInfo("child", StartStatus.STARTED),), "x": (), "y": ()}
    assert driver.state.status is WorkflowStatus.SUCCESSFUL


def test_a_step_that_its_body_canceled_at_once_is_no_task() -> None:
    async def body() -> bytes:
        task = asyncio.ensure_future(step("never"))
        await asyncio.sleep(0)
        task.cancel()
        return await step("a")

    driver = BodyDriver(plan(("f", (), DURABLE)), {"f": body})
    assert [task.task_id for task in tasks_of(driver)] == ["f", "f/a"]
