"""Broken on purpose: the simulation sees each mutation, within this many seeds."""

from __future__ import annotations

import pytest

from tests.simulation import (
    body_mutations,
    event_mutations,
    observer_mutations,
    outbox_mutations,
    snapshot_mutations,
)
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.runner import run_seed
from tests.simulation.violations import Violation

#: A mutation that is not seen within this many seeds counts as missed.
MAX_SEEDS = 600

#: They add theirs.
assert body_mutations
assert snapshot_mutations
assert event_mutations
assert outbox_mutations
assert observer_mutations


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_simulation_sees(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    mutation = MUTATIONS[name]
    mutation.patch(monkeypatch)
    violation, seeds = first_violation(mutation)
    assert violation is not None, f"{seeds} seeds did not see it"
    assert violation.kind in mutation.kinds, violation
    record_property("seeds", seeds)
    print(f"{name}: seen after {seeds} seeds as {violation.kind!r}")


def first_violation(mutation: Mutation) -> tuple[Violation | None, int]:
    """What the simulation sees first, and after how many seeds."""
    for seed in range(MAX_SEEDS):
        try:
            run_seed(seed, trouble=mutation.trouble, crowded=mutation.crowded, world=mutation.world)
        except Violation as violation:
            return violation, seed + 1
    return None, MAX_SEEDS
