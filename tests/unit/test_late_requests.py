"""A request whose caller was told that it failed is not done later, nor to another workflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_workflows._coordinator.requests import (
    CancelRequest,
    DeleteRequest,
    Request,
    ResumeRequest,
    SignalRequest,
    SubmitRequest,
)
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.exceptions import CoordinatorUnavailableError, StorageUnavailableError
from ray_workflows.storage.base import CommitOutcome
from tests.unit.plans import plan
from tests.unit.test_orphans import Coordinator, World

PATIENCE = 20.0

PLAN = plan(("f", ()))


@pytest.fixture
def world() -> World:
    return World()


def row_of(world: World, workflow_id: str) -> Any:
    return world.storage.read_catalog(workflow_id)


REQUESTS: dict[str, Callable[[Any, float], Request]] = {
    "cancel": lambda reply, until: CancelRequest("w", reply, until=until),
    "delete": lambda reply, until: DeleteRequest("w", reply, until=until),
    "resume": lambda reply, until: ResumeRequest("w", reply, "again", until=until),
    "signal": lambda reply, until: SignalRequest("w", reply, "s", "1", Value(b"v"), until=until),
    "submit": lambda reply, until: SubmitRequest("w", reply, "i-new", PLAN, {}, "new", until=until),
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
        other.verbs.ask(CancelRequest("w", lambda answer: None))
        other.step()
    before = row_of(world, "w")
    hung: list[Callable[[], None]] = []
    call = other.call
    monkeypatch.setattr(other, "call", lambda *work, **named: hung.append(lambda: call(*work)))
    # So that a submission is looked up first, as all others are.
    other.loop.store.error = StorageUnavailableError("away")
    answers: list[Any] = []
    other.verbs.ask(REQUESTS[name](answers.append, world.clock.now + PATIENCE))
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
    owner.verbs.ask(SignalRequest("w", kept.append, "s", "0", Value(b"v")))
    owner.step()
    answers: list[Any] = []
    owner.verbs.ask(REQUESTS[name](answers.append, world.clock.now + PATIENCE))
    world.pass_time(PATIENCE + 1.0)
    monkeypatch.setattr(world.storage, "commit", commit)
    world.pass_time(5.0)
    assert kept == [None]
    assert [type(answer) for answer in answers] == [CoordinatorUnavailableError]
    assert row_of(world, "w").status is WorkflowStatus.RUNNING
    assert row_of(world, "w").seq == 2


def test_what_is_in_time_is_done(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    answers: list[Any] = []
    owner.verbs.ask(REQUESTS["cancel"](answers.append, world.clock.now + PATIENCE))
    world.pass_time(1.0)
    assert answers == [None]
    assert row_of(world, "w").status is WorkflowStatus.CANCELED


@pytest.mark.parametrize("created", [True, False], ids=["and made anew", "for good"])
def test_a_workflow_that_somebody_else_has_deleted(
    world: World, created: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    owner.verbs.ask(CancelRequest("w", lambda answer: None))
    owner.step()
    delete = world.storage.delete

    def overtaken(workflow_id: str, incarnation: str, seq: int) -> CommitOutcome:
        monkeypatch.setattr(world.storage, "delete", delete)
        assert delete(workflow_id, incarnation, seq) is CommitOutcome.OK
        if created:
            request = SubmitRequest("w", lambda answer: None, "i-2", PLAN, {}, "2")
            owner.verbs.create(request)
            owner.step()
            owner.verbs.ask(CancelRequest("w", lambda answer: None))
            owner.step()
        return CommitOutcome.STALE

    monkeypatch.setattr(world.storage, "delete", overtaken)
    answers: list[Any] = []
    owner.verbs.ask(DeleteRequest("w", answers.append))
    world.pass_time(5.0)
    assert answers == [None]
    assert (row_of(world, "w") is not None) == created
