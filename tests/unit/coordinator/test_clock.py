"""Somebody sets a clock by an hour, and nobody who waits notices."""

from __future__ import annotations

import time

import pytest

from ray_workflows._coordinator.clock import SLEW, SteadyClock
from ray_workflows._coordinator.failover import WALK_SECONDS
from ray_workflows._model.catalog import Holder
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.objects.home import ObjectsHome
from ray_workflows.storage.objects.index_keys import short_hash
from ray_workflows.testing.clock import VirtualClock
from tests.support.put_once import MemoryOperations
from tests.unit.coordinator.test_failover import LEASE, Coordinator, World

RUNNING = WorkflowStatus.RUNNING
HOUR = 3600.0


class Machine:
    """A machine whose wall clock can be set."""

    def __init__(self) -> None:
        self.true = 500.0
        self.wrong = 1_700_000_000.0
        self.clock = SteadyClock(lambda: self.true + self.wrong, lambda: self.true)

    def live(self, seconds: float) -> float:
        """How far the clock moves in this many seconds."""
        before = self.clock()
        for _ in range(10):
            self.true += seconds / 10
            self.clock()
        return self.clock() - before


def test_it_begins_with_the_wall_clock() -> None:
    machine = Machine()
    assert machine.clock() == machine.true + machine.wrong
    assert machine.live(1000.0) == pytest.approx(1000.0)


@pytest.mark.parametrize("step", [HOUR, -HOUR, 1e9, -1e9])
def test_time_passes_evenly_whatever_is_set(step: float) -> None:
    machine = Machine()
    before = machine.clock()
    machine.wrong += step
    assert machine.clock() == before
    assert machine.live(1000.0) == pytest.approx(1000.0, rel=1.001 * SLEW)
    assert machine.live(0.0) == 0.0


@pytest.mark.parametrize("step", [HOUR, -HOUR, 0.5])
def test_it_comes_back_to_the_wall_clock(step: float) -> None:
    machine = Machine()
    machine.wrong += step
    machine.live(1.01 * HOUR / SLEW)
    assert machine.clock() == pytest.approx(machine.true + machine.wrong, abs=1e-3)
    assert machine.live(1000.0) == pytest.approx(1000.0)


@pytest.fixture
def world() -> World:
    return World()


def set_storage_clock(world: World, seconds: float) -> None:
    world.storage.journals.home.clock = lambda: world.clock.now + seconds


#: From one walk through all open workflows to the next, which asks for the storage's time.
MOMENTS = [half / 2 for half in range(int(2 * WALK_SECONDS) + 4)]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_living_holder_keeps_its_workflows_when_the_storage_has_its_clock_set(
    world: World, step: float, moment: float
) -> None:
    owner = Coordinator(world, "owner")
    Coordinator(world, "other")
    owner.submit("w")
    world.pass_time(20.0 + moment)
    set_storage_clock(world, step)
    world.pass_time(60.0)
    assert world.status("w") == (RUNNING, "owner")


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_dead_holder_is_found_though_the_storage_has_its_clock_set(
    world: World, step: float
) -> None:
    owner = Coordinator(world, "owner")
    Coordinator(world, "other")
    owner.submit("w")
    world.pass_time(20.0)
    owner.die()
    set_storage_clock(world, step)
    world.pass_time(2 * LEASE)
    assert world.status("w") == (RUNNING, "other")


class Nowhere(ObjectsHome):
    url = "nowhere:"


def test_a_lapsed_lease_is_not_believed_in_because_a_clock_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a store of objects, whose process knows by itself how long the leases run that it
    renews."""
    store, wall, passed = VirtualClock(1000.0), VirtualClock(1000.0), VirtualClock(1000.0)
    monkeypatch.setattr(time, "time", lambda: wall.now)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: passed.now)
    holders = Nowhere(MemoryOperations(lambda: store.now)).holders
    holder = Holder("h", "coordinator", "host", 1, 1)
    holders.renew(holder, 15.0)
    assert holders.is_alive(short_hash("h"))
    store.now = passed.now = 1100.0
    wall.now -= HOUR
    assert not holders.is_alive(short_hash("h"))
