"""Workflows that durable functions start: when the call is durable, once."""

from __future__ import annotations

from ray_workflows._client.copies import messages_in
from ray_workflows._engine.commands import commands
from ray_workflows._engine.fork import fork_history
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import Deliver
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.steps import Step, StepKind, StepRecord
from ray_workflows._model.values import Outcome, Value
from tests.unit.body_driver import DURABLE, BodyDriver, local, start, step
from tests.unit.plans import plan

BODY = plan(("f", (), DURABLE))


async def starts() -> bytes:
    first = start("one")
    await step("a")
    await local("sends")
    second = start("two")
    await step("b")
    return f"{first} {second}".encode()


def sent(driver: BodyDriver) -> list[tuple[str, str]]:
    """The messages that are to be delivered."""
    found = [each for each in commands(driver.state) if isinstance(each, Deliver)]
    return [(each.message.message_id, each.message.target) for each in found]


def deliver(driver: BodyDriver) -> None:
    for message_id, _ in sent(driver):
        driver.act(driver.send, msg.Delivered(message_id))


def test_a_child_is_sent_when_the_call_is_durable() -> None:
    driver = BodyDriver(BODY, {"f": starts})
    assert sent(driver) == [("i1-0-start", "one")]
    deliver(driver)
    assert sent(driver) == []
    # The body runs again, and sends it no more.
    driver.finish("f/a")
    assert sent(driver) == [("i1-0-sends-0", "of-a-step"), ("i1-0-start#2", "two")]
    driver.finish("f/b")
    assert driver.state.ending is not None
    deliver(driver)
    assert driver.state.status is WorkflowStatus.SUCCESSFUL
    assert driver.state.output.value.data == b"one two"
    targets = [message.target for message in messages_in(driver.journal)]
    assert targets == ["one", "of-a-step", "two"]


def news_of(driver: BodyDriver, path: str) -> msg.BodyProgress:
    """That the body starts a workflow."""
    number = driver.number("f")
    return msg.BodyProgress(
        task=number,
        epoch=driver.state.epoch,
        attempt=driver.state.tasks[number].attempts + 1,
        started_at=0.0,
        began=driver.state.bodies[number].began,
        marks=(
            StepRecord(Step(path, "start", "", 1, StepKind.START), mark=Outcome(Value(b"two"))),
        ),
        messages=(OutboxMessage(f"i1-{number}-{path}", "two", Value(b"submission")),),
    )


def test_a_message_that_is_decided_on_again_sends_nothing() -> None:
    driver = BodyDriver(BODY, {"f": starts})
    deliver(driver)
    driver.succeed("f/a")
    (event,) = driver.send(news_of(driver, "start#2"))
    assert len(event.messages) == 1
    assert driver.send(news_of(driver, "start#2")) == []


def test_a_body_that_sends_after_the_failure_of_its_workflow_runs_again() -> None:
    """No coordinator delivers messages of a workflow that has ended."""
    driver = BodyDriver(plan(("g", ()), ("f", (), DURABLE), ("x", (0, 1))), {"f": starts})
    deliver(driver)
    driver.succeed("f/a")
    driver.fail("g")
    assert driver.state.status is WorkflowStatus.FAILED
    (event,) = driver.send(news_of(driver, "start#2"))
    assert isinstance(event, ev.AttemptFailed)
    driver.act(driver.resume)
    assert [target for _, target in sent(driver)] == ["of-a-step", "two"]
    deliver(driver)
    driver.finish("g", "f/b", "x")
    assert driver.state.status is WorkflowStatus.SUCCESSFUL


def test_a_fork_starts_only_what_it_comes_to() -> None:
    origin = BodyDriver(BODY, {"f": starts})
    deliver(origin)
    origin.finish("f/a")
    deliver(origin)
    history = fork_history(origin.journal, "f/b")
    driver = BodyDriver(BODY, {"f": starts}, history=tuple(history), incarnation="i2")
    assert sent(driver) == []
    assert driver.running == ["f/b"]
    history = fork_history(origin.journal, "f/a")
    driver = BodyDriver(BODY, {"f": starts}, history=tuple(history), incarnation="i2").finish("f/a")
    assert sent(driver) == [("i2-0-sends-0", "of-a-step"), ("i2-0-start#2", "two")]


def test_a_body_that_started_a_workflow_after_an_error_does_not_go_back() -> None:
    async def complains() -> bytes:
        try:
            return await step("a")
        except Exception:
            start("complaint")
            raise

    options = {**DURABLE, "retry_exceptions": True, "max_retries": 1}
    driver = BodyDriver(plan(("f", (), options)), {"f": complains})
    driver.act(driver.fail, "f/a")
    assert driver.running == []
    assert [each.target for each in messages_in(driver.journal)] == ["complaint"]
