"""Which workflows of dead coordinators are taken over, and what that costs. Nothing runs here."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ray_workflows._coordinator import failover as module
from ray_workflows._coordinator.admission import Limits
from ray_workflows._coordinator.failover import Failover
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.observers import NOBODY, Observers
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Holder, JournalEntry
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.memory import MemoryStorage
from ray_workflows.testing.clock import VirtualClock
from tests.unit.plans import plan

PENDING, RUNNING = WorkflowStatus.PENDING, WorkflowStatus.RUNNING

#: One task that nobody ever does.
PLAN = plan(("f", ()))

LEASE = 15.0


class CountingStorage(MemoryStorage):
    """Counts what is asked of it; ``away``: it does not answer."""

    def __init__(self, clock: VirtualClock) -> None:
        self.calls: Counter[str] = Counter()
        self.away = False
        super().__init__(clock=clock)

    def __getattribute__(self, name: str) -> Any:
        if name in ("read_holders", "list_catalog", "read_journal", "now"):
            self.calls[name] += 1
            if self.away:
                raise StorageUnavailableError("away")
        return super().__getattribute__(name)


class Idle:
    """An executor that starts nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


class World:
    """Coordinators on one storage, each alive as long as it is stepped."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.storage = CountingStorage(self.clock)
        self.ids = itertools.count()
        self.pids = itertools.count(1)
        self.living: list[Coordinator] = []

    def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 0.25)
            for coordinator in self.living:
                coordinator.step()

    def status(self, workflow_id: str) -> tuple[WorkflowStatus, str]:
        row = self.storage.read_catalog(workflow_id)
        assert row is not None
        return row.status, row.holder

    def holders(self) -> set[str]:
        return {holder.holder_id for holder in self.storage.read_holders()}


class Coordinator:
    """Loop, lease and orphans; `io` answers at once."""

    def __init__(
        self,
        world: World,
        name: str,
        limits: Limits = Limits(),
        *,
        auto_resume: bool = True,
        host: str | None = None,
        actor: str | None = None,
        observers: Observers = NOBODY,
    ) -> None:
        self.world = world
        self.holder = Holder(name, actor or name, host or name, next(world.pids), 1)
        self.gone = False
        self.loop = Loop(
            world.storage,
            Idle(),
            self,
            self.holder,
            clock=world.clock,
            elapsed=world.clock,
            new_id=lambda: f"id{next(world.ids)}",
            limits=limits,
            probe=self.probe,
            observers=observers,
        )
        self.answers: list[Callable[[], None]] = []
        self.lease = Lease(self.loop)
        self.orphans = Failover(self.loop, self.lease)
        world.living.append(self)
        self.lease.start()
        if auto_resume:
            self.orphans.look()
        self.step()

    def call(
        self, work: Callable[[], Any], then: Callable[[Any], None], *, brief: bool = False
    ) -> None:
        try:
            result = work()
        except Exception as error:
            result = error
        self.answers.append(lambda: then(result))

    def probe(self, holder: Holder) -> bool | None:
        if holder.host != self.holder.host:
            return None
        return any(one.holder.pid == holder.pid for one in self.world.living)

    def step(self) -> None:
        self.loop.step()
        while self.answers:
            self.answers.pop(0)()
            self.loop.step()

    def submit(self, *workflow_ids: str) -> None:
        for workflow_id in workflow_ids:
            submit = msg.Submit(PLAN, {}, f"i-{workflow_id}", workflow_id)
            self.loop.ask(workflow_id, submit, lambda answer: None)
            self.step()

    def die(self) -> None:
        self.world.living.remove(self)


@pytest.fixture
def world() -> World:
    return World()


def test_at_once_where_the_death_is_proved(world: World) -> None:
    owner = Coordinator(world, "owner", host="here")
    other = Coordinator(world, "other", host="here")
    owner.submit("w")
    world.pass_time(5.0)
    assert world.status("w") == (RUNNING, "owner")
    owner.die()
    world.pass_time(1.5)
    assert world.status("w") == (RUNNING, "other")
    assert list(other.loop.active) == ["w"]


def test_when_the_lease_has_lapsed_elsewhere(world: World) -> None:
    owner = Coordinator(world, "owner")
    Coordinator(world, "other")
    owner.submit("w")
    world.pass_time(5.0)
    owner.die()
    until = next(h for h in world.storage.read_holders() if h.holder_id == "owner").lease_until
    world.pass_time(until - world.clock.now - 0.25)
    assert world.status("w") == (RUNNING, "owner")
    world.pass_time(2.0)
    assert world.status("w") == (RUNNING, "other")


def test_nobody_who_was_not_told_to(world: World) -> None:
    owner = Coordinator(world, "owner")
    Coordinator(world, "other", auto_resume=False)
    owner.submit("w")
    owner.die()
    world.pass_time(60.0)
    assert world.status("w") == (RUNNING, "owner")


def test_a_living_holder_keeps_its_workflows(world: World) -> None:
    owner = Coordinator(world, "owner")
    Coordinator(world, "other")
    owner.submit("w")
    world.pass_time(60.0)
    assert world.status("w") == (RUNNING, "owner")


def test_looking_costs_one_reading_a_second(world: World) -> None:
    owner = Coordinator(world, "owner")
    Coordinator(world, "other")
    world.pass_time(5.0)
    owner.die()
    world.pass_time(30.0)
    world.storage.calls.clear()
    world.pass_time(60.0)
    calls = world.storage.calls
    # Four walks and their burials, as many takeovers of the lease, and the looks.
    assert calls["read_holders"] <= 60 + 12
    assert calls["list_catalog"] <= 8
    assert calls["read_journal"] == 0


@pytest.mark.parametrize(
    ("limits", "running", "pending"),
    [
        (Limits(2, 1), 2, 1),
        (Limits(1, 0), 1, 0),
        (Limits(2, -1), 2, 4),
        (Limits(-1, 0), 6, 0),
    ],
)
@pytest.mark.parametrize("of_owner", [Limits(), Limits(3, -1), Limits(1, -1)])
def test_limits_are_kept(
    world: World, of_owner: Limits, limits: Limits, running: int, pending: int
) -> None:
    owner = Coordinator(world, "owner", of_owner)
    other = Coordinator(world, "other", limits)
    owner.submit(*(f"w{number}" for number in range(6)))
    owner.die()
    world.pass_time(40.0)
    rows = [world.status(f"w{number}") for number in range(6)]
    assert rows.count((RUNNING, "other")) == running
    assert rows.count((PENDING, "other")) == pending
    assert len(other.loop.active) + len(other.loop.active.evicted) == running + pending


def test_what_there_was_no_room_for_comes_later(world: World) -> None:
    owner = Coordinator(world, "owner")
    other = Coordinator(world, "other", Limits(1, 0))
    owner.submit("w0", "w1")
    owner.die()
    world.pass_time(40.0)
    (first,) = other.loop.active.values()
    other.loop.drop(first)
    row = world.storage.journals.home.rows[first.workflow_id]
    world.storage.journals.home.rows[first.workflow_id] = msgspec.structs.replace(
        row, status=WorkflowStatus.SUCCESSFUL
    )
    world.pass_time(2.0)
    assert {world.status(f"w{number}")[1] for number in range(2)} == {"other"}


def test_room_that_is_taken_meanwhile(world: World) -> None:
    owner = Coordinator(world, "owner", host="here")
    other = Coordinator(world, "other", Limits(1, 0), auto_resume=False, host="here")
    owner.submit("orphan")
    owner.die()
    findings = other.orphans.search(frozenset(), 1, False)
    other.submit("own")
    other.orphans.found(findings)
    other.orphans.look()
    world.pass_time(5.0)
    assert list(other.loop.active) == ["own"]
    other.loop.drop(other.loop.active["own"])
    world.pass_time(2.0)
    assert world.status("orphan")[1] == "other"


def test_no_look_reads_more_than_a_few(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4)
    found: list[int] = []

    def noting(self: Failover, findings: Any) -> float:
        found.append(len(findings.orphans))
        return original(self, findings)

    original = Failover.found
    monkeypatch.setattr(Failover, "found", noting)
    owner = Coordinator(world, "owner", host="here")
    Coordinator(world, "other", host="here")
    owner.submit(*(f"w{number}" for number in range(10)))
    owner.die()
    world.pass_time(1.5)
    assert [number for number in found if number] == [4, 4, 2]


def test_two_take_each_workflow_once(world: World) -> None:
    owner = Coordinator(world, "owner")
    others = [Coordinator(world, "one"), Coordinator(world, "two")]
    ids = [f"w{number}" for number in range(2 * module.AT_ONCE + 10)]
    owner.submit(*ids)
    owner.die()
    world.pass_time(30.0)
    held = [workflow_id for other in others for workflow_id in other.loop.active]
    assert sorted(held) == sorted(ids)


def test_one_whose_holder_never_was_here(world: World) -> None:
    owner = Coordinator(world, "owner")
    owner.submit("w")
    owner.die()
    world.storage.remove_holder("owner")
    Coordinator(world, "other")
    world.pass_time(module.WALK_SECONDS + 2.0)
    assert world.status("w") == (RUNNING, "other")


def test_an_unreadable_one_is_read_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    owner = Coordinator(world, "owner")
    owner.submit("w", "readable")
    world.storage.journals.home.journals["i-w"][0] = JournalEntry(1, "c", b"damaged")
    owner.die()
    Coordinator(world, "other")
    world.pass_time(20.0)
    assert world.status("readable") == (RUNNING, "other")
    world.storage.calls.clear()
    world.pass_time(60.0)
    assert world.status("w") == (RUNNING, "owner")
    assert world.storage.calls["read_journal"] == 0
    said = [record.message for record in caplog.records if "is not taken over" in record.message]
    assert len(said) == 1
    assert "'w'" in said[0]


def test_what_coordinators_die_of_is_left_alone(world: World) -> None:
    """Each who takes it over dies of it; nothing else comes of it."""
    owner = Coordinator(world, "owner", host="here")
    owner.submit("w")
    world.living.clear()
    for number in range(6):
        victim = Coordinator(world, f"victim{number}", host="here")
        world.pass_time(2.0)
        if number < module.QUICK_DEATHS:
            assert world.status("w") == (RUNNING, f"victim{number}")
        victim.die()
    row = world.storage.read_catalog("w")
    assert row is not None
    assert row.holder == f"victim{module.QUICK_DEATHS - 1}"
    assert row.released
    assert "coordinators died" in (row.error or "")
    # It stays so: only who asks for it goes on with it.
    Coordinator(world, "last", host="here")
    world.pass_time(2 * module.QUICK_SECONDS)
    assert world.storage.read_catalog("w") == row


def test_deaths_far_apart_are_accidents(world: World) -> None:
    owner = Coordinator(world, "owner", host="here")
    owner.submit("w")
    world.living.clear()
    for number in range(6):
        victim = Coordinator(world, f"victim{number}", host="here")
        world.pass_time(module.QUICK_SECONDS / 2)
        assert world.status("w") == (RUNNING, f"victim{number}")
        victim.die()


def test_a_storage_that_was_away(world: World) -> None:
    owner = Coordinator(world, "owner")
    Coordinator(world, "other")
    owner.submit("w")
    owner.die()
    world.storage.away = True
    world.pass_time(30.0)
    world.storage.away = False
    world.pass_time(module.WALK_SECONDS + 2.0)
    assert world.status("w") == (RUNNING, "other")


def test_rows_of_the_long_dead_are_removed(world: World) -> None:
    owner = Coordinator(world, "owner")
    idle = Coordinator(world, "idle")
    owner.submit("w")
    for coordinator in (owner, idle):
        coordinator.die()
    Coordinator(world, "other", Limits(1, 0)).submit("own")
    world.pass_time(10.0)
    assert world.holders() == {"owner", "idle", "other"}
    Coordinator(world, "third", auto_resume=True)
    world.pass_time(30.0)
    assert world.status("w")[1] == "third"
    assert world.holders() == {"owner", "idle", "other", "third"}
    world.clock.now += module.BURY_SECONDS
    world.pass_time(30.0)
    assert world.holders() == {"other", "third"}
