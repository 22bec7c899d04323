"""A request whose caller was told that it failed is not done later, nor to another workflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.loop import Loop
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted, Received, Stopped
from ray_workflows._model.plan import EnvironmentChange
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import ErrorInfo, Value
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    StorageUnavailableError,
    WorkflowNotFoundError,
    WorkflowStillActiveError,
)
from ray_workflows.storage.base import CommitOutcome
from tests.unit.coordinator.test_failover import Coordinator, World
from tests.unit.plans import plan

PATIENCE = 20.0

PLAN = plan(("f", ()))


@pytest.fixture
def world() -> World:
    return World()


def row_of(world: World, workflow_id: str) -> Any:
    return world.storage.read_catalog(workflow_id)


#: What is asked of a loop about the workflow "w", with a reply and a time.
REQUESTS: dict[str, Callable[[Loop, Any, float], None]] = {
    "cancel": lambda loop, reply, until: loop.ask("w", msg.Cancel(), reply, until),
    "delete": lambda loop, reply, until: Deletion(loop, "w", "", reply, until).begin(),
    "resume": lambda loop, reply, until: loop.ask("w", msg.Resume("again"), reply, until),
    "signal": lambda loop, reply, until: loop.ask(
        "w", msg.Signal("s", "1", Value(b"v")), reply, until
    ),
    "submit": lambda loop, reply, until: loop.ask(
        "w", msg.Submit(PLAN, {}, "i-new", "new"), reply, until
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_could_not_be_read_in_time_is_not_done(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    owner.die()
    # Long enough that its holder is dead: each verb would do something.
    world.pass_time(60.0)
    other = Coordinator(world, "other", auto_resume=False)
    if name == "delete":
        other.loop.ask("w", msg.Cancel(), lambda answer: None)
        other.step()
    before = row_of(world, "w")
    hung: list[Callable[[], None]] = []
    call = other.call
    monkeypatch.setattr(other, "call", lambda *work, **named: hung.append(lambda: call(*work)))
    # So that a submission is looked up first, as all others are.
    other.loop.store.error = StorageUnavailableError("away")
    answers: list[Any] = []
    REQUESTS[name](other.loop, answers.append, world.clock.now + PATIENCE)
    other.loop.step()
    monkeypatch.setattr(other, "call", call)
    world.pass_time(PATIENCE + 1.0)
    assert answers == []
    for each in hung:
        each()
    world.pass_time(5.0)
    assert [type(answer) for answer in answers] == [CoordinatorUnavailableError]
    assert row_of(world, "w") == before


@pytest.mark.parametrize("name", ["cancel", "signal"])
def test_what_waited_for_a_commit_is_not_done(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    commit = world.storage.commit

    def away(appends: Any) -> Any:
        raise StorageUnavailableError("away")

    monkeypatch.setattr(world.storage, "commit", away)
    # A signal of somebody with more patience is on its way; what comes now waits for its end.
    kept: list[Any] = []
    owner.loop.ask("w", msg.Signal("s", "0", Value(b"v")), kept.append)
    owner.step()
    answers: list[Any] = []
    REQUESTS[name](owner.loop, answers.append, world.clock.now + PATIENCE)
    world.pass_time(PATIENCE + 1.0)
    monkeypatch.setattr(world.storage, "commit", commit)
    world.pass_time(5.0)
    assert kept == [Received()]
    assert [type(answer) for answer in answers] == [CoordinatorUnavailableError]
    assert row_of(world, "w").status is WorkflowStatus.RUNNING
    assert row_of(world, "w").seq == 2


def test_what_is_in_time_is_done(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    answers: list[Any] = []
    REQUESTS["cancel"](owner.loop, answers.append, world.clock.now + PATIENCE)
    world.pass_time(1.0)
    assert answers == [None]
    assert row_of(world, "w").status is WorkflowStatus.CANCELED


@pytest.mark.parametrize("created", [True, False], ids=["and made anew", "for good"])
def test_a_workflow_that_somebody_else_has_deleted(
    world: World, created: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    owner.loop.ask("w", msg.Cancel(), lambda answer: None)
    owner.step()
    delete = world.storage.delete

    def overtaken(workflow_id: str, incarnation: str, seq: int) -> CommitOutcome:
        monkeypatch.setattr(world.storage, "delete", delete)
        assert delete(workflow_id, incarnation, seq) is CommitOutcome.OK
        if created:
            owner.loop.ask("w", msg.Submit(PLAN, {}, "i-2", "2"), lambda answer: None)
            owner.step()
            owner.loop.ask("w", msg.Cancel(), lambda answer: None)
            owner.step()
        return CommitOutcome.STALE

    monkeypatch.setattr(world.storage, "delete", overtaken)
    answers: list[Any] = []
    Deletion(owner.loop, "w", "", answers.append).begin()
    world.pass_time(5.0)
    if created:
        # It is not the one that was to be deleted.
        assert [error.replaced for error in answers] == [True]
    else:
        assert answers == [None]
    assert (row_of(world, "w") is not None) == created


# -- requests about a run whose id another one has now -------------------------------------


def delete(loop: Loop, reply: Any, incarnation: str) -> None:
    Deletion(loop, "w", incarnation, reply).begin()


def cancel(loop: Loop, reply: Any, incarnation: str) -> None:
    loop.ask("w", msg.Cancel(incarnation), reply)


#: What is asked of a loop about a run of the id "w", with a reply.
ABOUT_RUNS: dict[str, Callable[[Loop, Any, str], None]] = {
    "cancel": cancel,
    "delete": delete,
    "resume": lambda loop, reply, run: loop.ask("w", msg.Resume("again", True, None, run), reply),
    "signal": lambda loop, reply, run: loop.ask("w", msg.Signal("s", "1", Value(b"v"), run), reply),
}


def asked(coordinator: Coordinator, ask: Callable[[Loop, Any, str], None], incarnation: str) -> Any:
    """What is answered to a request about a run of ``w``."""
    answers: list[Any] = []
    ask(coordinator.loop, answers.append, incarnation)
    coordinator.world.pass_time(1.0)
    (answer,) = answers
    return answer


def run_again(coordinator: Coordinator) -> None:
    """Stop and delete ``w``, and submit another one of this id."""
    coordinator.submit("w")
    for ask in (cancel, delete):
        assert asked(coordinator, ask, row_of(coordinator.world, "w").incarnation) is None
    answers: list[Any] = []
    coordinator.loop.ask("w", msg.Submit(PLAN, {}, "i-2", "2"), answers.append)
    coordinator.step()
    assert isinstance(answers[0], Accepted)


@pytest.mark.parametrize("name", ABOUT_RUNS)
@pytest.mark.parametrize("state", ["driven here", "canceled", "driven elsewhere"])
def test_a_request_about_a_run_is_not_about_a_later_one_of_its_id(
    world: World, name: str, state: str
) -> None:
    """Ray repeats a call whose coordinator died before it had answered: here, after somebody has
    deleted the workflow and run another one of its id."""
    owner = Coordinator(world, "owner", auto_resume=False)
    run_again(owner)
    if state == "canceled":
        assert asked(owner, cancel, "i-2") is None
    elif state == "driven elsewhere":
        owner = Coordinator(world, "other", auto_resume=False)
    before = row_of(world, "w")
    answer = asked(owner, ABOUT_RUNS[name], "i-w")
    assert isinstance(answer, WorkflowNotFoundError)
    assert answer.replaced
    assert "another one of this id was made since" in str(answer)
    assert row_of(world, "w") == before
    # And one about this run is.
    answer = asked(owner, ABOUT_RUNS[name], "i-2")
    assert not isinstance(answer, WorkflowNotFoundError)


def test_a_deletion_that_is_repeated_when_nothing_is_left(world: World) -> None:
    """Ray does so: what was wanted is done, and there is no other that the caller may mean."""
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    assert asked(owner, cancel, "i-w") is None
    assert [asked(owner, delete, "i-w") for _ in range(2)] == [None, None]
    gone = asked(owner, cancel, "i-w")
    assert isinstance(gone, WorkflowNotFoundError)
    assert not gone.replaced


def test_a_change_that_was_made_for_a_run_is_not_for_a_later_one_of_its_id(world: World) -> None:
    """Its driver looks again at what is there."""
    owner = Coordinator(world, "owner", auto_resume=False)
    run_again(owner)
    owner.die()
    world.pass_time(60.0)
    other = Coordinator(world, "other", auto_resume=False)
    change = EnvironmentChange(code="recorded", by="me@here")
    answers: list[Any] = []
    for incarnation in ("i-w", "i-2"):
        submit = msg.Submit(PLAN, {}, "i-3", "3", change=change, changes=incarnation)
        other.loop.ask("w", submit, answers.append)
        world.pass_time(1.0)
    assert [type(answer) for answer in answers] == [Stopped, Accepted]


# -- what others may do to a workflow that has failed --------------------------------------


def failed_with_a_sibling(owner: Coordinator) -> None:
    """Let ``w`` fail while another of its tasks is still running."""
    two = plan(("a", ()), ("b", ()), ("c", (0, 1)))
    owner.loop.ask("w", msg.Submit(two, {}, "i-w", "1"), lambda answer: None)
    owner.step()
    error = ErrorInfo("ValueError", "boom")
    owner.loop.report("i-w", [msg.AttemptRaised(0, 0, 1, 0.0, 0.0, error, False)])
    owner.step()
    assert row_of(owner.world, "w").status is WorkflowStatus.FAILED
    assert "w" in owner.loop.active


def test_one_that_has_failed_and_was_deleted_from_the_storage(world: World) -> None:
    """Its coordinator still hears of the siblings of the task that failed. It does not speak of it
    from memory: a driver would look for it in the storage, again and again."""
    owner = Coordinator(world, "owner", auto_resume=False)
    failed_with_a_sibling(owner)
    assert world.storage.delete("w", "i-w", row_of(world, "w").seq) is CommitOutcome.OK
    answers: list[Any] = []
    submit = msg.Submit(PLAN, {}, "i-2", "2", asks_first=True)
    owner.loop.ask("w", submit, answers.append)
    world.pass_time(1.0)
    assert answers == [Accepted("i-2", created=True)]


def test_what_is_in_memory_is_not_what_is_to_be_deleted(world: World) -> None:
    """Somebody has deleted it from the storage, and another coordinator has run another one of its
    id: that one is deleted when it is asked for."""
    owner = Coordinator(world, "owner", auto_resume=False)
    failed_with_a_sibling(owner)
    assert world.storage.delete("w", "i-w", row_of(world, "w").seq) is CommitOutcome.OK
    other = Coordinator(world, "other", auto_resume=False)
    other.loop.ask("w", msg.Submit(PLAN, {}, "i-2", "2"), lambda answer: None)
    other.step()
    assert isinstance(asked(owner, delete, "i-2"), WorkflowStillActiveError)
    assert asked(other, cancel, "i-2") is None
    assert "w" in owner.loop.active
    assert asked(owner, delete, "i-2") is None
    assert row_of(world, "w") is None


def test_who_lives_is_not_read_to_delete_what_has_ended(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    assert asked(owner, cancel, "i-w") is None
    world.storage.calls.clear()
    answers: list[Any] = []
    Deletion(owner.loop, "w", "i-w", answers.append).begin()
    owner.step()
    assert answers == [None]
    assert world.storage.calls["read_holders"] == 0
