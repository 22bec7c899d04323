"""A thousand worlds full of trouble, and in none of them a promise is broken."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import main
from tests.simulation.mutations import MUTATIONS
from tests.simulation.runner import run_seed
from tests.simulation.violations import Violation
from tests.simulation.world import World

#: Seeds in one test: many enough that pytest costs nothing, few enough to see where it fails.
CHUNK = 50

#: A mutation that is seen only under trouble of its own.
CROWDED = next(name for name, mutation in MUTATIONS.items() if mutation.trouble)


@pytest.mark.parametrize("chunk", range(20))
def test_promises_hold_whatever_happens(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        run_seed(seed)


@pytest.mark.parametrize("seed", range(1_000_000, 1_000_040))
def test_few_may_run_at_once(seed: int) -> None:
    run_seed(seed, trouble={"until": 20.0, "worker_crash": 0.3}, crowded=True)


@pytest.mark.parametrize("seed", range(2_000_000, 2_000_040))
def test_coordinators_are_cut_off_replaced_and_come_back(seed: int) -> None:
    trouble = {"until": 25.0, "pause": 0.015, "zombie": 0.7, "commit_unsaid": 0.1}
    run_seed(seed, trouble=trouble)


@pytest.mark.parametrize("seed", range(3_000_000, 3_000_040))
def test_the_storage_is_away_most_of_the_time(seed: int) -> None:
    trouble = {"until": 30.0, "read_fails": 0.3, "outage": 0.4, "commit_late": 0.3, "hang": 0.1}
    run_seed(seed, trouble=trouble)


@pytest.mark.parametrize("chunk", range(4))
def test_orphans_are_taken_over_by_themselves(chunk: int) -> None:
    """No client resumes what a coordinator could: a workflow that nobody takes over is stuck."""
    trouble = {
        "auto_resume": 1.0,
        "until": 25.0,
        "crash_after_step": 0.03,
        "zombie": 0.5,
        "pause": 0.005,
    }
    for seed in range(5_000_000 + chunk * CHUNK, 5_000_000 + (chunk + 1) * CHUNK):
        run_seed(seed, trouble=trouble)


@pytest.mark.parametrize("chunk", range(4))
def test_promises_hold_on_objects(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the algorithm of object stores and shared directories, each process with its own view."""
    monkeypatch.setattr(World, "storage_kind", "objects")
    for seed in range(4_000_000 + chunk * CHUNK, 4_000_000 + (chunk + 1) * CHUNK):
        run_seed(seed)


@pytest.mark.parametrize("chunk", range(4))
@pytest.mark.parametrize("storage", ["memory", "objects"])
def test_what_tasks_start_is_there_once_if_they_are_done(
    chunk: int, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "storage_kind", storage)
    for seed in range(6_000_000 + chunk * CHUNK, 6_000_000 + (chunk + 1) * CHUNK):
        run_seed(seed, world="parents")


def test_a_failing_seed_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutation = MUTATIONS[CROWDED]
    mutation.patch(monkeypatch)
    for seed in range(600):
        try:
            run_seed(seed, trouble=mutation.trouble, crowded=mutation.crowded)
        except Violation as violation:
            words = str(violation).split("See it again: ")[1].split()
            broken = str(violation).splitlines()[0].partition("] ")[2]
            break
    else:
        raise AssertionError("no seed failed")
    assert words[:3] == ["python", "-m", "tests.simulation"]
    assert "--trouble" in words
    monkeypatch.setattr("sys.argv", words[2:])
    assert main() == 1
    assert broken in capsys.readouterr().out
