"""Ray Data, Train and Tune inside of tasks, over the loss of a worker and of the whole cluster.

The pipeline is the example of docs/running.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.head import python_blocks
from tests.ray.marks import Gate, wait_until
from tests.ray.processes import ROOT, DriverProcess

START = """
from tests.ray.marks import Gate
from tests.ray.start import start_cluster
gate = Gate({gate!r})
start_cluster(num_cpus=2)
workflow.init({storage!r})
"""

FIRST = """
import os, signal

@ray.remote
def keep(dataset):
    return os.getpid(), dataset

@ray.remote(num_cpus=0)
def use(kept, gate):
    gate.wait()
    return kept[1].take(1)

# Of blocks that a task made, whose worker dies before they are used.
@ray.remote
def make():
    return os.getpid(), ray.data.range(100, override_num_blocks=1).materialize()

between = Gate({between!r})
workflow.run_async(
    use.bind(make.options(**workflow.options(task_id="make")).bind(), between), workflow_id="made"
)
pid, made = workflow.get_output("made", task_id="make")
os.kill(pid, signal.SIGKILL)
between.open()
assert workflow.get_output("made") == [{{"id": 0}}]

# A recipe over blocks that this driver made.
items = ray.data.from_items([1, 2, 3]).map(lambda row: {{"square": row["item"] ** 2}})
workflow.run(keep.bind(items), workflow_id="kept")

workflow.run_async(pipeline({results!r}), workflow_id="pipeline")
print("running", flush=True)
gate.wait()
"""

SECOND = """
_, items = workflow.get_output("kept")
assert sorted(row["square"] for row in items.take_all()) == [1, 4, 9]

metrics, best = workflow.resume("pipeline")
assert best == {{"x": 1}}
# The training went on at its checkpoint.
assert metrics == {{"epoch": 1, "loss": 499.5 / 2, "started_at": 1}}, metrics
attempts = {{task.task_id: task.attempts for task in workflow.get_tasks("pipeline")}}
assert attempts["__main__.prepare"] == 1, attempts

dataset = workflow.get_output("pipeline", task_id="__main__.prepare")
assert dataset.count() == 1000
doubled = dataset.map_batches(lambda batch: {{"x": 2 * batch["x"]}})
assert max(row["x"] for row in doubled.take_all()) == 1.998
print("all right", flush=True)
"""

#: Where the example is held, so that the cluster can be killed in the middle of a training.
STEP = "        epoch += 1\n"
SNAPSHOT = "checkpoint_manager_snapshot.json"
HOLD = """        if epoch == 0:
            Gate({gate!r}).wait()
"""


@pytest.mark.own_cluster
@pytest.mark.timeout(400)
def test_datasets_and_trainings_survive_the_cluster(tmp_path: Path, gate: Gate) -> None:
    results = tmp_path / "results"
    names = {
        "gate": gate.path,
        "between": str(tmp_path / "between"),
        "storage": str(tmp_path / "store"),
        "results": str(results),
    }
    (example,) = python_blocks(ROOT / "docs" / "running.md", "Ray Data, Train and Tune")
    assert example.count(STEP) == 1
    example = example.replace(STEP, HOLD.format(**names) + STEP)
    first, second = (example + (START + part).format(**names) for part in (FIRST, SECOND))
    with DriverProcess(tmp_path, first) as driver:
        driver.wait_for_text("running", 180)
        # What Train itself goes on from: written some time after the loop has reported.
        wait_until(lambda: any(results.rglob(SNAPSHOT)), "a checkpoint", 180)
        driver.kill_all()
    gate.open()
    with DriverProcess(tmp_path, second) as driver:
        assert "all right" in driver.wait(180)
