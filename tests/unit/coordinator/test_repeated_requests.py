"""Requests that Ray repeats because the coordinator died before it answered: each counts once.

Coordinators of `test_orphans`, on one storage.
"""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._codec.journal import decode_entries
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import WorkflowAlreadyRunningError
from tests.unit.coordinator.test_failover import PLAN, Coordinator, World

RESUMED = Accepted("i-w", created=False)


@pytest.fixture
def world() -> World:
    return World()


def resume(coordinator: Coordinator, request_id: str) -> Any:
    answers: list[Any] = []
    coordinator.loop.ask("w", msg.Resume(request_id, canceled=True), answers.append)
    coordinator.step()
    (answer,) = answers
    return answer


def submit(coordinator: Coordinator, request_id: str) -> Any:
    answers: list[Any] = []
    coordinator.loop.ask("w", msg.Submit(PLAN, {}, "i-w2", request_id), answers.append)
    coordinator.step()
    (answer,) = answers
    return answer


def stopped(world: World, name: str) -> Coordinator:
    """A coordinator of this host, where a workflow was canceled."""
    coordinator = Coordinator(world, name, auto_resume=False, host="here")
    coordinator.submit("w")
    cancel(coordinator)
    return coordinator


def cancel(coordinator: Coordinator) -> None:
    coordinator.loop.ask("w", msg.Cancel(), lambda answer: None)
    coordinator.step()


def resumptions(world: World) -> int:
    entries = world.storage.read_journal("i-w")
    events = decode_entries(entries, "w", "i-w")
    return sum(isinstance(event, ev.WorkflowResumed) for event in events)


def test_a_resumption_by_the_same_coordinator(world: World) -> None:
    coordinator = stopped(world, "one")
    assert resume(coordinator, "r1") == RESUMED
    assert resume(coordinator, "r1") == RESUMED
    assert isinstance(resume(coordinator, "r2"), WorkflowAlreadyRunningError)
    assert resumptions(world) == 1


def test_a_resumption_by_the_next_coordinator(world: World) -> None:
    first = stopped(world, "first")
    assert resume(first, "r1") == RESUMED
    first.die()
    second = Coordinator(world, "second", auto_resume=True, host="here")
    world.pass_time(2.0)
    assert world.status("w") == (WorkflowStatus.RUNNING, "second")
    assert resume(second, "r1") == RESUMED
    assert isinstance(resume(second, "r2"), WorkflowAlreadyRunningError)
    assert resumptions(world) == 1


def test_what_has_stopped_again_is_not_resumed_twice_by_one_request(world: World) -> None:
    coordinator = stopped(world, "one")
    assert resume(coordinator, "r1") == RESUMED
    cancel(coordinator)
    assert resume(coordinator, "r1") == RESUMED
    assert world.status("w")[0] is WorkflowStatus.CANCELED
    assert resume(coordinator, "r2") == RESUMED
    assert resumptions(world) == 2


def test_a_submission_of_what_is_there(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False, host="here")
    other = Coordinator(world, "other", auto_resume=False, host="elsewhere")
    owner.submit("w")
    owner.die()
    world.pass_time(60.0)
    answers = [submit(other, "s1") for _ in range(2)]
    assert [type(answer) for answer in answers] == [Accepted, Accepted]
    assert not any(answer.created for answer in answers)
    assert isinstance(submit(other, "s2"), WorkflowAlreadyRunningError)
    assert world.status("w") == (WorkflowStatus.RUNNING, "other")


def test_a_request_without_a_name_is_nobodys() -> None:
    """Journals of before have none, and neither has what a coordinator does by itself."""
    state = WorkflowState("w", "i-w")
    state.request_id = "s1"
    assert state.is_known("s1")
    assert not state.is_known("s2")
    assert not state.is_known("")
