"""Two thousand worlds in which the real executor and the code of its workers meet trouble."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from random import Random
from typing import Any

import pytest

from ray_workflows._client.views import WorkflowView, task_metadata
from ray_workflows._model.status import WorkflowStatus
from tests.simulation.processes import Execution
from tests.simulation.runner import run_seed
from tests.simulation.test_harness import TROUBLES
from tests.simulation.world_of_workers import WorkerFaults, WorldOfWorkers

#: Seeds in one test.
CHUNK = 50

#: What the world is to bring about.
EXPECTED = (
    "batches",
    "fused attempts",
    "members handed back",
    "results in blobs",
    "live values",
    "lost inputs",
    "timeouts",
    "deaths of workers",
    "nodes that end",
    "attempts that run again",
    "attempts that began before",
    "listeners",
    "storages that are away",
    "errors that are hard to bring home",
)

DIGESTS = """
from tests.simulation.world_of_workers import WorldOfWorkers
for seed in range(12):
    print(WorldOfWorkers(seed, trace=True).run().digest())
"""


@pytest.mark.parametrize("chunk", range(40))
def test_promises_hold_whatever_happens_to_workers(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        run_seed(seed, world="workers")


def digest(seed: int) -> str:
    return WorldOfWorkers(seed, trace=True).run().digest()


def test_a_seed_determines_all_that_happens() -> None:
    for seed in range(12):
        assert digest(seed) == digest(seed)


def test_seeds_differ() -> None:
    assert len({digest(seed) for seed in range(12)}) == 12


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_order_of_hashes_does_not_matter(hash_seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == [digest(seed) for seed in range(12)]


def no_trouble() -> dict[str, float]:
    numbers = vars(WorkerFaults(Random(0), {})).items()
    quiet = {name: 0.0 for name, value in numbers if isinstance(value, float)}
    return {**quiet, **dict.fromkeys(TROUBLES, 0.0)}


def test_without_trouble_every_workflow_ends() -> None:
    """Functions that turn out slow, and those that take their worker down, are no trouble."""
    for seed in range(3_000_000, 3_000_150):
        run_seed(seed, trouble=no_trouble(), world="workers")


class Readers(WorldOfWorkers):
    """Asks for the metadata of a task when its function has run for a second."""

    looks = 0

    def begins(self, execution: Execution, inputs: tuple[Any, ...]) -> None:
        super().begins(execution, inputs)
        if execution.process.fiber is not None:
            begun = self.clock.now
            self.clock.after(1.0, lambda: self.look(execution, begun))

    def look(self, execution: Execution, begun: float) -> None:
        request = execution.request
        row = self.storage.read_catalog(request.workflow_id)
        gone = execution.over or not execution.process.alive
        if gone or row is None or row.status is not WorkflowStatus.RUNNING:
            return
        view = WorkflowView(self.storage, row)
        view.read()
        stats = task_metadata(view.by_number[request.task])["stats"]
        if view.state.epoch == request.epoch:
            self.looks += 1
            # Not an earlier attempt's.
            assert stats.get("start_time") == pytest.approx(begun, abs=0.1), execution.name


def test_get_metadata_shows_within_a_second_when_a_running_task_started() -> None:
    """Also where another cluster has written to the journal meanwhile (seed 4,000,054)."""
    looks = 0
    for seed in range(4_000_040, 4_000_070):
        world = Readers(seed, trouble=no_trouble())
        world.run()
        looks += world.looks
    assert looks > 50


def test_a_death_by_what_nobody_wants_any_more_is_charged_to_nobody() -> None:
    """A canceled attempt runs on in the batch of another workflow's, and takes the worker down."""
    trouble = {
        "worker_dies": 0.3,
        "preempt": 0.3,
        "call_late": 0.3,
        "call_twice": 0.4,
        "end_late": 0.3,
        "watch_late": 0.5,
        "storage_fails": 0.5,
    }
    run_seed(100301, trouble=trouble, world="workers")


def test_what_is_to_be_seen_happens() -> None:
    seen: Counter[str] = Counter()
    for seed in range(120):
        world = WorldOfWorkers(seed)
        world.run()
        seen.update(world.seen)
    assert all(seen[what] > 2 for what in EXPECTED), seen
