"""Workflows that wait leave memory, and come back when they are due or somebody asks."""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._coordinator.admission import Limits
from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.evicted import MAX_STALE, NEVER, Evicted, EvictedWorkflows
from ray_workflows._coordinator.eviction import AHEAD_SECONDS, AT_ONCE, EVICT_SECONDS, READ_AT_ONCE
from ray_workflows._coordinator.holdings import Look
from ray_workflows._coordinator.requests import Watched, WatchRequest
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Received
from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.listing import info_of
from ray_workflows._model.plan import SIGNAL, TIMER, Plan
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Value
from ray_workflows.exceptions import WorkflowAlreadyRunningError, WorkflowStillActiveError
from tests.unit.coordinator.test_failover import PLAN, Coordinator, World
from tests.unit.plans import plan

RUNNING, PENDING = WorkflowStatus.RUNNING, WorkflowStatus.PENDING

SLEEPS = plan(("sleep", (), {"kind": TIMER, "duration": 100.0}))
EXPECTS = plan(("s", (), {"kind": SIGNAL, "signal": "s"}))
UNSTORED = plan(
    ("f", (), {"checkpoint": False}),
    ("s", (), {"kind": SIGNAL, "signal": "s"}),
    ("g", (0, 1)),
)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def owner(world: World) -> Coordinator:
    return Coordinator(world, "owner", auto_resume=False)


def submit(owner: Coordinator, workflow_id: str, plan: Plan) -> None:
    owner.loop.ask(
        workflow_id,
        msg.Submit(plan, {}, f"i-{workflow_id}", workflow_id),
        lambda answer: None,
    )
    owner.step()


def ask(owner: Coordinator, workflow_id: str, input: msg.Asked) -> Any:
    answers: list[Any] = []
    owner.loop.ask(workflow_id, input, answers.append)
    owner.step()
    (answer,) = answers
    return answer


def unstored(task: int) -> Value:
    """A result that is in no storage."""
    return Value(Blob(f"live-{task}", 1, ""))


def in_memory(owner: Coordinator) -> list[str]:
    return list(owner.loop.active)


def evicted(owner: Coordinator) -> list[str]:
    return list(owner.loop.active.evicted)


@pytest.mark.parametrize("waits", [SLEEPS, EXPECTS], ids=["timer", "signal"])
def test_what_waits_leaves_memory(world: World, owner: Coordinator, waits: Plan) -> None:
    submit(owner, "w", waits)
    world.pass_time(EVICT_SECONDS - 1.0)
    assert (in_memory(owner), evicted(owner)) == (["w"], [])
    world.pass_time(2.0)
    assert (in_memory(owner), evicted(owner)) == ([], ["w"])
    assert world.status("w") == (RUNNING, "owner")
    assert owner.loop.admission.counts[RUNNING] == 1


def test_what_is_in_flight_stays(world: World, owner: Coordinator) -> None:
    submit(owner, "w", PLAN)
    world.pass_time(10 * EVICT_SECONDS)
    assert in_memory(owner) == ["w"]


def test_what_is_in_no_storage_stays(world: World, owner: Coordinator) -> None:
    submit(owner, "w", UNSTORED)
    workflow = owner.loop.active["w"]
    report = msg.AttemptReturned(0, *workflow.flying[0], 0.0, 0.0, unstored(0))
    owner.loop.report(workflow.incarnation, [report])
    world.pass_time(10 * EVICT_SECONDS)
    assert in_memory(owner) == ["w"]


def test_what_started_its_commands_in_several_steps_leaves_memory(
    world: World, owner: Coordinator
) -> None:
    """The values of three tasks are released, one command in each step."""
    owner.loop.starter.at_once = 1
    calls = [(f"f{number}", (), {"checkpoint": False}) for number in range(3)]
    submit(owner, "w", plan(*calls, ("g", (0, 1, 2)), ("s", (), {"kind": SIGNAL, "signal": "s"})))
    workflow = owner.loop.active["w"]
    for task in range(4):
        world.pass_time(1.0)
        assert task in workflow.flying
        value = unstored(task) if task < 3 else Value(b"v")
        report = msg.AttemptReturned(task, *workflow.flying[task], 0.0, 0.0, value)
        owner.loop.report(workflow.incarnation, [report])
    world.pass_time(2 * EVICT_SECONDS)
    assert evicted(owner) == ["w"]


def test_a_timer_brings_it_back_in_time(world: World, owner: Coordinator) -> None:
    begin = world.clock.now
    submit(owner, "w", SLEEPS)
    world.pass_time(100.0 - AHEAD_SECONDS - 0.5)
    assert in_memory(owner) == []
    world.pass_time(0.75)
    row = world.storage.read_catalog("w")
    assert row is not None
    assert row.status is WorkflowStatus.SUCCESSFUL
    assert row.ended_at is not None
    assert row.ended_at - begin <= 100.25
    assert evicted(owner) == []
    assert not +owner.loop.admission.counts


def test_the_timer_waits_for_a_storage_that_is_away(world: World, owner: Coordinator) -> None:
    submit(owner, "w", SLEEPS)
    world.pass_time(50.0)
    assert evicted(owner) == ["w"]
    world.storage.away = True
    world.pass_time(60.0)
    assert world.status("w") == (RUNNING, "owner")
    world.storage.away = False
    world.pass_time(10.0)
    assert world.status("w") == (WorkflowStatus.SUCCESSFUL, "owner")


def test_a_signal_brings_it_back(world: World, owner: Coordinator) -> None:
    submit(owner, "w", EXPECTS)
    world.pass_time(2 * EVICT_SECONDS)
    assert evicted(owner) == ["w"]
    assert isinstance(ask(owner, "w", msg.Signal("s", "1", Value(b"v"))), Received)
    assert world.status("w") == (WorkflowStatus.SUCCESSFUL, "owner")


def test_a_watch_lasts(world: World, owner: Coordinator) -> None:
    """A client that waits for the output does not keep the workflow in memory."""
    submit(owner, "w", EXPECTS)
    told: list[Watched] = []
    before, after = (WatchRequest("w", told.append, None) for _ in range(2))
    owner.loop.watchers.add(before)
    world.pass_time(2 * EVICT_SECONDS)
    owner.loop.watchers.add(after)
    owner.step()
    assert evicted(owner) == ["w"]
    assert told == []
    ask(owner, "w", msg.Signal("s", "1", Value(b"v")))
    assert [each.row.status for each in told if each.row] == [WorkflowStatus.SUCCESSFUL] * 2
    assert owner.loop.watchers.waiting == {}


def test_progress_that_was_not_seen_is_seen(world: World, owner: Coordinator) -> None:
    submit(owner, "w", EXPECTS)
    world.pass_time(2 * EVICT_SECONDS)
    assert evicted(owner) == ["w"]
    told: list[Watched] = []
    owner.loop.watchers.add(WatchRequest("w", told.append, 0))
    owner.step()
    assert [each.row is not None for each in told] == [True]


def test_who_watches_what_is_not_there_is_turned_away(owner: Coordinator) -> None:
    told: list[Watched] = []
    owner.loop.watchers.add(WatchRequest("w", told.append, None))
    owner.step()
    assert told == [Watched(None)]


def test_it_is_asked_as_if_it_were_in_memory(world: World, owner: Coordinator) -> None:
    submit(owner, "w", EXPECTS)
    world.pass_time(2 * EVICT_SECONDS)
    again = msg.Submit(EXPECTS, {}, "other", "other")
    assert isinstance(ask(owner, "w", again), WorkflowAlreadyRunningError)
    world.pass_time(2 * EVICT_SECONDS)
    assert evicted(owner) == ["w"]
    assert ask(owner, "w", msg.Cancel()) is None
    assert world.status("w") == (WorkflowStatus.CANCELED, "owner")
    assert not +owner.loop.admission.counts


def test_it_is_not_deleted(world: World, owner: Coordinator) -> None:
    submit(owner, "w", EXPECTS)
    world.pass_time(2 * EVICT_SECONDS)
    answers: list[Any] = []
    Deletion(owner.loop, "w", "", answers.append).begin()
    owner.step()
    assert isinstance(answers[0], WorkflowStillActiveError)


def test_what_another_cluster_did_is_noticed(world: World, owner: Coordinator) -> None:
    submit(owner, "w", EXPECTS)
    world.pass_time(2 * EVICT_SECONDS)
    other = Coordinator(world, "other", auto_resume=False)
    assert ask(other, "w", msg.Cancel()) is None
    assert evicted(owner) == ["w"]
    world.pass_time(3.0)
    assert world.status("w") == (WorkflowStatus.CANCELED, "owner")
    assert (in_memory(owner), evicted(owner)) == ([], [])


def test_what_another_one_took_is_let_go(world: World, owner: Coordinator) -> None:
    submit(owner, "w", EXPECTS)
    told: list[Watched] = []
    owner.loop.watchers.add(WatchRequest("w", told.append, None))
    world.pass_time(2 * EVICT_SECONDS)
    owner.die()
    other = Coordinator(world, "other")
    world.pass_time(40.0)
    assert world.status("w") == (RUNNING, "other")
    # It was only stopped.
    world.living.append(owner)
    world.pass_time(30.0)
    assert (in_memory(owner), evicted(owner)) == ([], [])
    assert evicted(other) == ["w"]
    assert told == [Watched(None)]
    assert not +owner.loop.admission.counts


def test_a_later_life_goes_on(world: World, owner: Coordinator) -> None:
    submit(owner, "w", SLEEPS)
    submit(owner, "v", EXPECTS)
    world.pass_time(2 * EVICT_SECONDS)
    owner.die()
    later = Coordinator(world, "later", actor="owner", auto_resume=False)
    world.pass_time(2 * EVICT_SECONDS)
    assert sorted(evicted(later)) == ["v", "w"]
    world.pass_time(100.0)
    assert world.status("w")[0] is WorkflowStatus.SUCCESSFUL


def test_pending_ones_wait_in_storage_and_start_in_their_order(world: World) -> None:
    owner = Coordinator(world, "owner", Limits(max_running=1), auto_resume=False)
    for number in range(5):
        submit(owner, f"w{number}", EXPECTS)
    world.pass_time(2 * EVICT_SECONDS)
    assert in_memory(owner) == []
    assert owner.loop.admission.counts == {RUNNING: 1, PENDING: 4}
    for number in range(5):
        assert [world.status(f"w{n}")[0] for n in range(5)] == [
            *[WorkflowStatus.SUCCESSFUL] * number,
            RUNNING,
            *[PENDING] * (4 - number),
        ]
        assert isinstance(ask(owner, f"w{number}", msg.Signal("s", "1", Value(b"v"))), Received)
    assert not +owner.loop.admission.counts


def test_many_leave_memory_in_steps(world: World, owner: Coordinator) -> None:
    ids = [f"w{number}" for number in range(AT_ONCE + 10)]
    for workflow_id in ids:
        submit(owner, workflow_id, EXPECTS)
    world.clock.now += EVICT_SECONDS + 1.0
    owner.loop.timers.run()
    assert set(evicted(owner)) == set(ids)


def test_what_is_kept_of_them_is_bounded() -> None:
    """Those that come back before they are due leave nothing behind."""
    workflows = EvictedWorkflows()
    for number in range(10_000):
        workflows.add("w", Evicted(1, 1e9 + number, RUNNING))
        assert workflows.take("w") is not None
        assert len(workflows.heap) <= MAX_STALE + 2
    workflows.add("w", Evicted(1, NEVER, RUNNING))
    assert workflows.next_due() == NEVER
    workflows.add("v", Evicted(1, 5.0, RUNNING))
    assert workflows.due(4.0, 9) == []
    assert workflows.due(5.0, 9) == ["v"]


def test_a_listing_says_when_it_is_due(world: World, owner: Coordinator) -> None:
    """None for what no time wakes, and for what has something to do now."""
    begin = world.clock.now
    submit(owner, "sleeps", SLEEPS)
    submit(owner, "expects", EXPECTS)
    submit(owner, "runs", PLAN)
    rows = world.storage.list_catalog(CatalogQuery()).rows
    due = {row.workflow_id: info_of(row, row.status).due_at for row in rows}
    assert due == {"sleeps": begin + 100.0, "expects": None, "runs": None}


def test_many_that_are_due_are_read_some_at_a_time(world: World, owner: Coordinator) -> None:
    """The lease is renewed by the threads that read them."""
    ids = [f"w{number}" for number in range(3 * READ_AT_ONCE)]
    for workflow_id in ids:
        submit(owner, workflow_id, SLEEPS)
    world.pass_time(2 * EVICT_SECONDS)
    assert len(evicted(owner)) == len(ids)
    world.clock.now += 100.0
    answers = len(owner.answers)
    owner.loop.step()
    assert len(owner.answers) - answers <= READ_AT_ONCE + 5
    world.pass_time(5.0)
    assert {world.status(each)[0] for each in ids} == {WorkflowStatus.SUCCESSFUL}


def test_what_left_memory_during_a_look_stays_there(world: World, owner: Coordinator) -> None:
    """Its page may have been read before; what was gone from the catalog is looked at."""
    submit(owner, "before", EXPECTS)
    submit(owner, "during", EXPECTS)
    world.pass_time(1.0)
    owner.loop.evict(owner.loop.active["before"])
    owner.loop.active.looks += 1
    owner.loop.evict(owner.loop.active["during"])
    owner.lease.holdings.end(Look({}))
    assert (in_memory(owner), evicted(owner)) == (["before"], ["during"])


def test_a_workflow_that_has_ended_does_not_come_back(world: World, owner: Coordinator) -> None:
    """By a page of the catalog that was read before."""
    submit(owner, "w", EXPECTS)
    world.pass_time(2 * EVICT_SECONDS)
    page = owner.lease.holdings.list_page(None)
    assert ask(owner, "w", msg.Cancel()) is None
    new = [row for row in page.rows if owner.lease.holdings.is_new(Look({}), row)]
    for row, recovered in owner.lease.holdings.read_some(new):
        owner.lease.holdings.try_to_take(row, recovered)
    owner.step()
    assert (in_memory(owner), evicted(owner)) == ([], [])
    assert not +owner.loop.admission.counts
