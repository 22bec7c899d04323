"""Executors and workers that are broken on purpose: each is seen, within this many seeds."""

from __future__ import annotations

import pytest

from tests.simulation.runner import run_seed
from tests.simulation.violations import Violation
from tests.simulation.worker_mutations import MUTATIONS, Mutation

#: A mutation that is not seen within this many seeds counts as missed.
MAX_SEEDS = 300


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_simulation_of_workers_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
            run_seed(seed, trouble=mutation.trouble, world="workers")
        except Violation as violation:
            return violation, seed + 1
    return None, MAX_SEEDS
