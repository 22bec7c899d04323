"""What an earlier life of a coordinator left at rest stays in storage, and is nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._coordinator import holdings
from ray_workflows._coordinator.admission import Limits
from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.eviction import EVICT_SECONDS
from ray_workflows._coordinator.liveness import LEASE_SECONDS, Liveness
from ray_workflows._coordinator.requests import Watched, WatchRequest
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Received
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.exceptions import WorkflowStillActiveError
from tests.unit.coordinator.test_eviction import EXPECTS, SLEEPS, ask, evicted, in_memory, submit
from tests.unit.coordinator.test_failover import Coordinator, World

RUNNING, PENDING = WorkflowStatus.RUNNING, WorkflowStatus.PENDING

#: More than all that goes by leases and looks takes.
LONG = 4 * LEASE_SECONDS


@pytest.fixture
def world() -> World:
    return World()


def begin_again(world: World, *before: Coordinator, name: str = "later") -> Coordinator:
    """The next life of the coordinator of these."""
    for each in before:
        each.die()
    return Coordinator(world, name, actor="owner", host="here", auto_resume=False)


@pytest.fixture
def owner(world: World) -> Coordinator:
    owner = begin_again(world, name="owner")
    submit(owner, "sleeps", SLEEPS)
    submit(owner, "expects", EXPECTS)
    world.pass_time(1.0)
    return owner


def row_of(world: World, workflow_id: str) -> CatalogRow:
    row = world.storage.read_catalog(workflow_id)
    assert row is not None
    return row


def test_what_is_at_rest_is_not_read_and_gets_no_entry(world: World, owner: Coordinator) -> None:
    before = row_of(world, "sleeps"), row_of(world, "expects")
    owner.submit("runs")
    later = begin_again(world, owner)
    assert (in_memory(later), evicted(later)) == (["runs"], ["expects", "sleeps"])
    world.pass_time(LONG)
    assert (row_of(world, "sleeps"), row_of(world, "expects")) == before
    assert world.status("runs") == (RUNNING, "later")
    assert later.loop.admission.counts == {RUNNING: 3}


def test_nobody_else_takes_what_is_at_rest(world: World, owner: Coordinator) -> None:
    """By the lease of the earlier life, nor by its process, which is gone from this machine."""
    here = Coordinator(world, "neighbour", host="here")
    far = Coordinator(world, "far")
    later = begin_again(world, owner)
    world.pass_time(LONG)
    assert world.status("sleeps") == world.status("expects") == (RUNNING, "owner")
    for each in (here, far):
        claims = Liveness(world.storage.read_holders(), world.storage.now(), probe=each.probe)
        assert claims.status(row_of(world, "expects")) is RUNNING
        answers: list[Any] = []
        Deletion(each.loop, "expects", "", answers.append).begin()
        each.step()
        assert isinstance(answers[0], WorkflowStillActiveError)
    later.die()
    world.pass_time(LONG)
    assert {world.status("sleeps")[1], world.status("expects")[1]} <= {"neighbour", "far"}


def test_it_is_claimed_when_it_comes_back(world: World, owner: Coordinator) -> None:
    later = begin_again(world, owner)
    assert isinstance(ask(later, "expects", msg.Signal("s", "1", Value(b"v"))), Received)
    assert world.status("expects") == (WorkflowStatus.SUCCESSFUL, "later")
    world.pass_time(100.0)
    row = row_of(world, "sleeps")
    assert (row.status, row.holder) == (WorkflowStatus.SUCCESSFUL, "later")
    assert row.ended_at is not None
    assert row.ended_at - row.submitted_at <= 100.5


def test_the_row_of_a_life_goes_with_the_last_workflow_that_names_it(
    world: World, owner: Coordinator
) -> None:
    later = begin_again(world, owner)
    world.pass_time(LONG)
    assert world.holders() == {"owner", "later"}
    for workflow_id in ("sleeps", "expects"):
        ask(later, workflow_id, msg.Cancel())
    world.pass_time(LONG)
    assert world.holders() == {"later"}


def test_an_earlier_life_that_was_only_stopped_is_fenced(world: World, owner: Coordinator) -> None:
    world.pass_time(2 * EVICT_SECONDS)
    later = begin_again(world, owner)
    world.pass_time(LONG)
    world.living.append(owner)
    assert ask(later, "expects", msg.Cancel()) is None
    world.pass_time(LONG)
    assert world.status("expects") == (WorkflowStatus.CANCELED, "later")
    assert evicted(owner) == in_memory(owner) == []
    assert world.status("sleeps")[0] is WorkflowStatus.SUCCESSFUL
    assert (in_memory(later), evicted(later)) == ([], [])


def test_what_somebody_took_while_nobody_held_it_is_let_go(
    world: World, owner: Coordinator
) -> None:
    owner.die()
    Coordinator(world, "other")
    world.pass_time(LONG)
    other_has = world.status("expects")
    later = begin_again(world)
    world.pass_time(LONG)
    assert world.status("expects") == other_has == (RUNNING, "other")
    assert "expects" not in evicted(later)
    assert not +later.loop.admission.counts


def test_it_is_not_deleted_before_it_is_listed(
    world: World, owner: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings.Holdings, "leave", lambda self, look, row: True)
    later = begin_again(world, owner)
    assert evicted(later) == []
    answers: list[Any] = []
    Deletion(later.loop, "expects", "", answers.append).begin()
    later.step()
    assert isinstance(answers[0], WorkflowStillActiveError)


def test_many_lives_are_not_kept_for_ever(world: World, owner: Coordinator) -> None:
    lives = [owner]
    for number in range(holdings.MAX_LIVES + 1):
        lives.append(begin_again(world, lives[-1], name=f"life{number}"))
        submit(lives[-1], f"w{number}", EXPECTS)
        world.pass_time(1.0)
    world.pass_time(LONG)
    last = lives[-1].holder.holder_id
    assert world.holders() == {last}
    assert {world.status(f"w{n}")[1] for n in range(holdings.MAX_LIVES + 1)} == {last}


def test_what_may_be_listed_late_is_read_soon(
    world: World, owner: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index of an object store may be behind a journal whose coordinator died."""
    monkeypatch.setattr(type(world.storage), "lists_current_rows", False, raising=False)
    later = begin_again(world, owner)
    world.pass_time(2.0)
    assert world.status("sleeps") == world.status("expects") == (RUNNING, "later")
    assert later.loop.admission.counts == {RUNNING: 2}


def test_limits_count_what_is_at_rest(world: World) -> None:
    limits = Limits(max_running=1)
    owner = Coordinator(world, "owner", limits, auto_resume=False)
    for number in range(3):
        submit(owner, f"w{number}", EXPECTS)
    owner.die()
    later = Coordinator(world, "later", limits, actor="owner", auto_resume=False)
    assert later.loop.admission.counts == {RUNNING: 1, PENDING: 2}
    assert isinstance(ask(later, "w0", msg.Signal("s", "1", Value(b"v"))), Received)
    assert [world.status(f"w{n}")[0] for n in (1, 2)] == [RUNNING, PENDING]


def test_a_watch_before_anything_is_known_is_kept_and_can_be_withdrawn(
    world: World, owner: Coordinator
) -> None:
    owner.die()
    later = Coordinator.__new__(Coordinator)
    seen: list[Watched] = []
    kept, withdrawn = (WatchRequest("expects", seen.append, None) for _ in range(2))

    def step(self: Coordinator) -> None:
        """The first step of all: nothing is known of earlier lives."""
        assert self.loop.active.lives is None
        self.loop.watchers.add(kept)
        self.loop.watchers.add(withdrawn)
        self.loop.watchers.withdraw(withdrawn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coordinator, "step", step)
        later.__init__(world, "later", actor="owner", auto_resume=False)  # type: ignore[misc]
    later.step()
    assert later.loop.watchers.waiting == {"expects": [kept]}
    assert ask(later, "expects", msg.Cancel()) is None
    assert [each.row.status for each in seen if each.row] == [WorkflowStatus.CANCELED]
