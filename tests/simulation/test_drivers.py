"""Worlds in which the real waiter and the real long polls meet trouble, and broken ones."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.driver_mutations import MUTATIONS, Mutation
from tests.simulation.runner import run_seed
from tests.simulation.violations import Violation
from tests.simulation.world_of_drivers import WorldOfDrivers

#: Seeds in one test.
CHUNK = 25

#: A mutation that is not seen within this many seeds counts as missed.
MAX_SEEDS = 200

#: What the world is to bring about.
EXPECTED = (
    "refs by output",
    "refs by submitted_output",
    "outputs that were waited for",
    "searches for a coordinator",
    "refs that are ready",
    "polls that bring something",
    "calls that come twice",
    "answers that are lost",
    "reads that fail",
    "waiters that die",
    "drivers that go",
)


@pytest.mark.parametrize("chunk", range(10))
def test_every_ref_becomes_ready_whatever_happens(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        run_seed(seed, world="drivers")


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_simulation_of_drivers_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = MUTATIONS[name]
    mutation.patch(monkeypatch)
    violation, seeds = first_violation(mutation)
    assert violation is not None, f"{seeds} seeds did not see it"
    assert violation.kind in mutation.kinds, violation
    print(f"{name}: seen after {seeds} seeds as {violation.kind!r}")


def first_violation(mutation: Mutation) -> tuple[Violation | None, int]:
    """What the simulation sees first, and after how many seeds."""
    for seed in range(MAX_SEEDS):
        try:
            run_seed(seed, trouble=mutation.trouble, world="drivers")
        except Violation as violation:
            return violation, seed + 1
    return None, MAX_SEEDS


def digest(seed: int) -> str:
    return WorldOfDrivers(seed, trace=True).run().digest()


def test_a_seed_determines_all_that_happens() -> None:
    digests = [digest(seed) for seed in range(8)]
    assert digests == [digest(seed) for seed in range(8)]
    assert len(set(digests)) == 8


def test_what_is_to_be_seen_happens() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        world = WorldOfDrivers(seed)
        world.run()
        seen.update(world.seen)
    assert all(seen[what] > 2 for what in EXPECTED), seen
