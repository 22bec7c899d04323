"""A coordinator that starts anew answers while it reads what its earlier lives were driving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ray_workflows._coordinator.holdings import IDLE_SECONDS, READ_AT_ONCE
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted
from ray_workflows._model.catalog import Append
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.base import CommitOutcome
from tests.unit.coordinator.test_failover import Coordinator, World
from tests.unit.plans import plan

#: More than are read at once, by far.
MANY = 4 * READ_AT_ONCE + 10


class Slow(Coordinator):
    """Blocking work comes back one piece at a time, when the test says so."""

    def step(self) -> None:
        self.loop.step()

    def come_back(self) -> None:
        self.answers.pop(0)()
        self.loop.step()


@pytest.fixture
def second() -> Slow:
    world = World()
    first = Coordinator(world, "first", auto_resume=False)
    first.submit(*(f"w{number}" for number in range(MANY)))
    first.die()
    return Slow(world, "second", auto_resume=False, actor="first")


def submit(coordinator: Slow, workflow_id: str) -> list[Any]:
    answers: list[Any] = []
    submit = msg.Submit(plan(("f", ())), {}, "i-new", "new")
    coordinator.loop.ask(workflow_id, submit, answers.append)
    coordinator.step()
    return answers


def finish(coordinator: Slow) -> None:
    end = coordinator.world.clock.now + 2.0
    while coordinator.world.clock.now < end or not coordinator.loop.active.listed:
        coordinator.world.clock.now += 0.05
        coordinator.loop.step()
        while coordinator.answers:
            coordinator.come_back()


def test_what_is_new_does_not_wait_for_what_is_old(second: Slow) -> None:
    answers = submit(second, "new")
    while not answers:
        second.world.clock.now += 0.05
        second.loop.step()
        second.come_back()
    assert isinstance(answers[0], Accepted)
    assert not second.loop.active.listed
    # Old ones are driven as they are read.
    while len(second.loop.active) < READ_AT_ONCE:
        second.come_back()
    assert not second.loop.active.listed
    finish(second)
    assert len(second.loop.active) == MANY + 1


def test_what_is_old_is_waited_for(second: Slow) -> None:
    """It is nobody else's: to say so before it is read would be wrong."""
    last = f"w{MANY - 1}"
    again = submit(second, last)
    canceled: list[Any] = []
    second.loop.ask(last, msg.Cancel(), canceled.append)
    while len(second.loop.active) < READ_AT_ONCE:
        second.come_back()
    assert (again, canceled) == ([], [])
    finish(second)
    assert "already running" in str(again[0])
    assert canceled == [None]
    assert second.world.status(last)[0] is WorkflowStatus.CANCELED


def test_what_takes_effect_after_the_death_of_its_sender_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Earlier lives are looked for again and again: a commit may be on its way for long."""
    world = World()
    first = Coordinator(world, "first", auto_resume=False)
    late: list[Append] = []

    def commit(appends: Sequence[Append]) -> list[CommitOutcome]:
        late.extend(appends)
        raise StorageUnavailableError("nobody knows what became of it")

    with monkeypatch.context() as patch:
        patch.setattr(world.storage.journals, "commit", commit)
        first.submit("w")
        first.die()
    second = Coordinator(world, "second", actor="first", auto_resume=False)
    world.pass_time(20.0)
    assert second.loop.active.listed
    world.storage.commit(late[:1])
    assert world.status("w") == (WorkflowStatus.RUNNING, "first")
    world.pass_time(IDLE_SECONDS + 1.0)
    assert world.status("w") == (WorkflowStatus.RUNNING, "second")
