"""The simulation itself: determined by its seed, fair, and able to say how to see a seed again."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest

from ray_workflows._coordinator.starting import Starter
from ray_workflows._model import events as ev
from ray_workflows.testing.clock import VirtualClock
from tests.simulation import shapes
from tests.simulation.monitor import Journal
from tests.simulation.oracle import expect
from tests.simulation.runner import run_seed
from tests.simulation.violations import Violation
from tests.simulation.world import World
from tests.simulation.world_of_parents import WorldOfParents

DIGESTS = """
from tests.simulation.world import World
for seed in range(12):
    print(World(seed, trace=True).run().digest())
"""


def digest(seed: int) -> str:
    return World(seed, trace=True).run().digest()


@pytest.mark.parametrize("seed", range(12))
def test_a_seed_determines_all_that_happens(seed: int) -> None:
    assert digest(seed) == digest(seed)


def test_seeds_differ() -> None:
    assert len({digest(seed) for seed in range(12)}) == 12


def test_looking_changes_nothing() -> None:
    for seed in range(12):
        assert World(seed).run().steps == World(seed, trace=True).run().steps


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("world", [World, WorldOfParents])
def test_observers_change_nothing(
    world: type[World], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each seed one raises, one hangs and one drops what it has no room for."""
    observed = world(seed, trace=True).run()
    assert any(life.threads.noting.seen for life in observed.lives)
    monkeypatch.setattr(World, "observed", False)
    assert world(seed, trace=True).run().lines == observed.lines


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_order_of_hashes_does_not_matter(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == [digest(seed) for seed in range(12)]


def test_without_trouble_every_workflow_ends_at_once() -> None:
    """The oracle and the engine agree where nothing disturbs."""
    quiet = dict.fromkeys(TROUBLES, 0.0)
    for seed in range(60):
        world = World(seed, trouble=quiet).run()
        assert world.crashes == 0


#: Everything that can go wrong.
TROUBLES = [
    "crash_after_step",
    "crash_within_step",
    "pause",
    "zombie",
    "commit_lost",
    "commit_unsaid",
    "commit_partial",
    "commit_ambiguous",
    "commit_late",
    "read_fails",
    "corrupt",
    "hang",
    "hang_forever",
    "interleave",
    "outage",
    "worker_crash",
    "report_late",
    "report_twice",
    "value_lost",
    "found_corruption",
    "skew",
]


def test_the_oracle_knows_values_and_culprits() -> None:
    results = [expect(shapes.draw_plan(Random(seed))) for seed in range(300)]
    assert any(result.output is None and result.culprits for result in results)
    assert any(result.output is not None and result.output != "error" for result in results)
    assert any(result.output == "error" for result in results)
    assert all((result.output is None) == bool(result.culprits) for result in results)


def test_signals_come_early_late_and_to_those_who_hold_nothing() -> None:
    """What the simulation is to see of signals happens in it."""
    received = taken = repeated = late = guests = 0
    for seed in range(60):
        world = World(seed, trace=True).run()
        for journal in world.monitor.journals.values():
            kinds = [type(event).__name__ for event in journal.events]
            received += kinds.count("SignalReceived")
            taken += kinds.count("SignalTaken")
            late += any("Signal" in error for error in errors_in(journal))
        guests += sum("SignalReceived" in line for line in world.lines)
        sent = [line.split()[4] for line in world.lines if " asked for signal " in line]
        repeated += len(sent) - len(set(sent))
    assert received > taken > 50
    assert repeated > 20
    assert late > 0
    assert guests > 20


def test_events_by_http_are_sent_twice_refused_and_acknowledged() -> None:
    """What the simulation is to see of events happens in it."""
    acknowledged = known = others = full = 0
    for seed in range(80):
        world = World(seed, trace=True).run()
        for journal in world.monitor.journals.values():
            acknowledged += sum(isinstance(e, ev.SignalAcknowledged) for e in journal.events)
        answers = [line for line in world.lines if " answers Signal event-" in line]
        known += sum("taken=True" in line for line in answers)
        others += sum("OtherSignal" in line for line in answers)
        full += sum("TooManySignals" in line for line in answers)
    assert acknowledged > 10
    assert known > 10
    assert others > 10
    assert full > 0


def errors_in(journal: Journal) -> list[str]:
    return [event.error.type_name for event in journal.events if isinstance(event, ev.TaskFailed)]


def test_a_failure_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(self: Starter, workflow: object, deltas: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(Starter, "add", add)
    with pytest.raises(Violation, match=r"python -m tests\.simulation --seed 3 --verbose"):
        run_seed(3)


def test_the_clock_does_what_is_due_in_order() -> None:
    clock = VirtualClock(start=10.0)
    seen: list[str] = []
    clock.after(5.0, lambda: seen.append("later"))
    clock.at(12.0, lambda: seen.append("first"))
    clock.at(12.0, lambda: seen.append("second"))
    clock.at(1.0, lambda: seen.append("overdue"))
    while clock.advance():
        pass
    assert seen == ["overdue", "first", "second", "later"]
    assert clock() == 15.0
