"""The outbox: what a task sends is sent if its result is committed, once, and before the end."""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._engine.commands import commands, due_at
from ray_workflows._engine.fork import fork_history
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted
from ray_workflows._model.commands import Command, Deliver, StartAttempt
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import ErrorInfo, Value
from ray_workflows.exceptions import WorkflowAlreadyExistsError
from tests.unit.driver import BOOM, Driver
from tests.unit.plans import plan

RUNNING, SUCCESSFUL = WorkflowStatus.RUNNING, WorkflowStatus.SUCCESSFUL
FAILED, CANCELED = WorkflowStatus.FAILED, WorkflowStatus.CANCELED


def message(name: str) -> OutboxMessage:
    return OutboxMessage(f"id-{name}", name, Value(b"submission of " + name.encode()))


def succeed(driver: Driver, task_id: str, *names: str) -> list[ev.Event]:
    messages = tuple(message(name) for name in names)
    return driver.report(msg.AttemptReturned, task_id, value=Value(b"v"), messages=messages)


def delivered(driver: Driver, name: str, refusal: ErrorInfo | None = None) -> list[ev.Event]:
    return driver.send(msg.Delivered(f"id-{name}", refusal))


def deliveries(found: list[Command]) -> list[str]:
    return [each.message.target for each in found if isinstance(each, Deliver)]


def kinds(events: list[ev.Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_a_message_is_delivered_until_its_target_knows_it() -> None:
    driver = Driver(plan(("a", ()), ("b", (0,))))
    succeed(driver, "a", "child", "other")
    assert deliveries(driver.deltas) == ["child", "other"]
    assert deliveries(commands(driver.state)) == ["child", "other"]
    assert kinds(delivered(driver, "child")) == ["Delivered"]
    assert deliveries(commands(driver.state)) == ["other"]
    assert delivered(driver, "child") == []
    refusal = ErrorInfo("WorkflowAlreadyExistsError", "it is there")
    assert delivered(driver, "other", refusal)[0].refusal == refusal  # type: ignore[attr-defined]
    assert deliveries(commands(driver.state)) == []
    assert kinds(driver.succeed("b")) == ["TaskSucceeded", "WorkflowSucceeded"]


def test_what_is_not_committed_sends_nothing() -> None:
    driver = Driver(plan(("a", ())))
    driver.crash("a")
    driver.report(msg.AttemptRaised, "a", error=BOOM, retryable=False)
    assert driver.state.outbox == {}
    assert driver.state.status is FAILED


def test_the_end_waits_for_the_messages() -> None:
    driver = Driver(plan(("a", ())))
    assert kinds(succeed(driver, "a", "child")) == ["TaskSucceeded", "WorkflowEnding"]
    assert driver.state.status is RUNNING
    assert due_at(driver.state) == 0.0
    driver.now += 5.0
    delivered_at = driver.now
    assert kinds(delivered(driver, "child")) == ["Delivered", "WorkflowSucceeded"]
    assert driver.state.status is SUCCESSFUL
    assert driver.state.ended_at == delivered_at


def test_a_coordinator_that_takes_over_delivers() -> None:
    driver = Driver(plan(("a", ())))
    succeed(driver, "a", "child")
    driver.claim("h2", live=False)
    assert deliveries(driver.deltas) == ["child"]
    assert deliveries(commands(driver.state)) == ["child"]
    # Also one that has no room for another workflow: it only has to end.
    driver.send(msg.Claim(may_wait=True), "h3", can_run=False)
    assert driver.state.status is RUNNING
    assert kinds(driver.send(msg.Delivered("id-child"), "h3")) == ["Delivered", "WorkflowSucceeded"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_canceled_workflow_delivers_what_it_has_sent(elsewhere: bool) -> None:
    driver = Driver(plan(("a", ()), ("b", (0,))))
    succeed(driver, "a", "child")
    if elsewhere:
        driver.send(msg.Cancel(), "h2", driven_elsewhere=True)
        assert kinds(driver.send(msg.Wake())) == ["WorkflowEnding"]
    else:
        assert kinds(driver.send(msg.Cancel())) == ["WorkflowEnding"]
        # What comes now, the wish again and the end of the attempt, changes nothing.
        assert driver.send(msg.Cancel()) == []
    assert [each for each in commands(driver.state) if isinstance(each, StartAttempt)] == []
    driver.send(msg.Wake())
    assert driver.send(msg.AttemptReturned(1, 0, 1, 0.0, 0.0, Value(b"v"))) == []
    assert kinds(delivered(driver, "child")) == ["Delivered", "WorkflowCanceled"]
    driver.resume()
    assert driver.running == ["b"]
    driver.succeed("b")
    assert driver.state.status is SUCCESSFUL


def test_whoever_cancels_what_nobody_drives_delivers() -> None:
    driver = Driver(plan(("a", ()), ("b", (0,))))
    succeed(driver, "a", "child")
    driver.send(msg.Release(BOOM))
    assert deliveries(commands(driver.state)) == []
    assert kinds(driver.send(msg.Cancel(), "h2")) == ["WorkflowClaimed", "WorkflowEnding"]
    assert deliveries(commands(driver.state)) == ["child"]
    driver.send(msg.Delivered("id-child"), "h2")
    assert driver.state.status is CANCELED


def test_what_has_succeeded_and_is_canceled_before_its_end_keeps_its_output() -> None:
    driver = Driver(plan(("a", ())))
    succeed(driver, "a", "child")
    assert kinds(driver.send(msg.Cancel())) == ["WorkflowEnding"]
    assert kinds(delivered(driver, "child")) == ["Delivered", "WorkflowCanceled"]
    assert kinds(driver.resume()) == ["WorkflowResumed", "WorkflowSucceeded"]


def test_a_failed_workflow_delivers_what_it_has_sent_and_sends_nothing_more() -> None:
    driver = Driver(plan(("a", ()), ("b", ()), ("c", ()), ("d", (0, 1, 2))))
    succeed(driver, "a", "child")
    assert kinds(driver.fail("b")) == ["TaskFailed", "WorkflowEnding"]
    assert kinds(delivered(driver, "child")) == ["Delivered", "WorkflowFailed"]
    driver = Driver(plan(("a", ()), ("b", ()), ("c", (0, 1))))
    driver.fail("b")
    # It would never be sent: the task runs again when the workflow is resumed.
    assert kinds(succeed(driver, "a", "child")) == ["AttemptFailed"]
    assert driver.state.outbox == {}
    driver.resume()
    assert driver.running == ["a", "b"]
    succeed(driver, "a", "child")
    assert deliveries(driver.deltas) == ["child"]


def test_a_workflow_that_is_ending_is_resumed_to_its_end() -> None:
    driver = Driver(plan(("a", ())))
    succeed(driver, "a", "child")
    driver.send(msg.Release(BOOM))
    assert kinds(driver.resume("h2")) == ["WorkflowClaimed"]
    assert deliveries(driver.deltas) == ["child"]
    driver.send(msg.Delivered("id-child"), "h2")
    assert driver.state.status is SUCCESSFUL


def test_a_workflow_that_waits_to_go_on_delivers() -> None:
    driver = Driver(plan(("a", ()), ("b", (0,))))
    succeed(driver, "a", "child")
    driver.send(msg.Release(BOOM))
    driver.send(msg.Resume(), can_run=False)
    assert driver.state.status is WorkflowStatus.PENDING
    assert deliveries(driver.deltas) == ["child"]
    assert due_at(driver.state) == 0.0


def test_results_around_a_task_that_has_sent_something_are_stored() -> None:
    driver = Driver(plan(("a", (), {"checkpoint": False}), ("b", (0,))))
    driver.go_on("a", plan(("x", ()), ("y", (0,))))
    succeed(driver, "x", "child")
    y = driver.state.tasks[driver.number("y")]
    assert driver.state.checkpoints(y)


def test_a_fork_sends_nothing_again() -> None:
    driver = Driver(plan(("a", ()), ("b", (0,))))
    more = (message("other"),)
    driver.report(msg.AttemptReturnedPlan, "a", plan=plan(("x", ())), messages=more)
    succeed(driver, "x", "child")
    history = fork_history(driver.journal, "b")
    assert history is not None
    forked = Driver(driver.state.frames[0].plan, history=tuple(history), incarnation="i2")
    assert forked.running == ["b"]
    assert forked.state.outbox == {}


def submit(**fields: Any) -> msg.Submit:
    return msg.Submit(plan(("a", ())), {}, history=(), parent="wf", **fields)


def test_a_child_is_made_once_and_takes_no_id_of_another() -> None:
    child = Driver(plan(("a", ())), workflow_id="child", start=False)
    assert child.send(submit(request_id="id-child")) == []
    assert isinstance(child.answer, WorkflowAlreadyExistsError)
    child.send(msg.Start())
    child.succeed("a")
    assert child.send(submit(request_id="id-child")) == []
    assert isinstance(child.answer, WorkflowAlreadyExistsError)


@pytest.mark.parametrize("room", [True, False])
def test_a_child_that_was_interrupted_is_there(room: bool) -> None:
    """The one that has started it, which may take the only place, does not wait for a place."""
    known = {"parent": "wf", "request_id": "id-child"}
    child = Driver(plan(("a", ())), workflow_id="child", **known)  # type: ignore[arg-type]
    child.send(msg.Release(BOOM))
    around = {"can_run": room, "can_wait": room}
    assert child.send(submit(request_id="id-child"), "h2", **around) == []
    assert isinstance(child.answer, Accepted)


def test_a_child_has_room_and_names_its_parent() -> None:
    fresh = Driver(plan(("a", ())), workflow_id="y", parent="wf", start=False, can_wait=False)
    assert fresh.state.status is WorkflowStatus.PENDING
    assert catalog_row(fresh.state, 1).parent == "wf"
