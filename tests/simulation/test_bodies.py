"""Worlds of durable functions, full of trouble: in none of them a promise is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.runner import WORLDS, run_seed
from tests.simulation.world import World
from tests.simulation.world_of_bodies import WorldOfBodies

#: Seeds in one test.
CHUNK = 50

#: What the worlds are to bring about.
EXPECTED = (
    "bodies in bodies",
    "bodies taken over",
    "canceled steps",
    "errors of steps",
    "outcomes that a suspended attempt had not",
    "steps that are asked for again",
    "steps that had ended when they were canceled",
    "suspended attempts",
)

DIGESTS = """
from tests.simulation.runner import WORLDS
for seed in range(6):
    print(WORLDS["{world}"](seed, trace=True).run().digest())
"""

#: Trouble of some kinds, and no other but what the seed decides.
TROUBLES: dict[str, dict[str, float]] = {
    "late commits": {"until": 30.0, "commit_late": 0.3, "commit_unsaid": 0.1},
    "coordinators cut off": {"until": 25.0, "pause": 0.015, "zombie": 0.7},
    "orphans": {"auto_resume": 1.0, "until": 25.0, "crash_after_step": 0.03, "zombie": 0.5},
    "dying hosts": {"until": 30.0, "worker_crash": 0.4, "report_twice": 0.5, "report_late": 0.3},
    "storage away": {"until": 30.0, "read_fails": 0.3, "outage": 0.4, "hang": 0.1},
}

TROUBLES_OF_HOSTS: dict[str, dict[str, float]] = {
    "calls in any order": {"until": 30.0, "call_late": 0.4, "call_twice": 0.4, "end_late": 0.3},
    "dying hosts": {"until": 30.0, "worker_dies": 0.2, "call_late": 0.2},
    "storage away": {"until": 30.0, "storage_fails": 0.3, "write_unsaid": 0.2},
    "late commits": {"until": 30.0, "commit_late": 0.3, "pause": 0.01, "zombie": 0.5},
}


@pytest.mark.parametrize("chunk", range(8))
def test_promises_hold_whatever_happens_to_bodies(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        run_seed(seed, world="bodies")


@pytest.mark.parametrize("kind", TROUBLES)
def test_promises_hold_in_trouble_of_one_kind(kind: str) -> None:
    first = 1_000_000 * (1 + list(TROUBLES).index(kind))
    for seed in range(first, first + CHUNK):
        run_seed(seed, trouble=TROUBLES[kind], world="bodies")


def test_promises_hold_on_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "storage_kind", "objects")
    for seed in range(9_000_000, 9_000_000 + CHUNK):
        run_seed(seed, world="bodies")


def test_what_is_expected_happens() -> None:
    seen: Counter[str] = Counter()
    for seed in range(CHUNK):
        world = WorldOfBodies(seed)
        world.run()
        seen += world.seen
    assert not [what for what in EXPECTED if not seen[what]], seen


@pytest.mark.parametrize("chunk", range(4))
def test_promises_hold_with_the_real_hosts(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        run_seed(seed, world="hosts")


@pytest.mark.parametrize("kind", TROUBLES_OF_HOSTS)
def test_promises_hold_with_hosts_in_trouble_of_one_kind(kind: str) -> None:
    first = 1_000_000 * (1 + list(TROUBLES_OF_HOSTS).index(kind))
    for seed in range(first, first + CHUNK):
        run_seed(seed, trouble=TROUBLES_OF_HOSTS[kind], world="hosts")


def digest(world: str, seed: int) -> str:
    return WORLDS[world](seed, trace=True).run().digest()


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
@pytest.mark.parametrize("world", ["bodies", "hosts"])
def test_a_seed_determines_all_that_happens(world: str, hash_seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS.format(world=world)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert done.stdout.split() == [digest(world, seed) for seed in range(6)]
