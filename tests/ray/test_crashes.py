"""Real SIGKILL of driver, worker, coordinator and the whole cluster."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import ray

import ray_workflows as workflow
from ray_workflows._client.connection import connect
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import DriverProcess


@ray.remote
def step(marks: Marks, index: int, previous):
    marks.add(f"step-{index}")
    return index


@ray.remote
def held(marks: Marks, gate: Gate, previous):
    marks.add("held")
    gate.wait()
    return previous


def chain(marks: Marks, length: int, first=None):
    node = first
    for index in range(length):
        node = step.bind(marks, index, node)
    return node


def coordinator_pid() -> int:
    pid: int = ray.get(connect().coordinator.describe.remote())["holder"].pid
    return pid


def kill_coordinator() -> None:
    pid = coordinator_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the coordinator is gone")


def test_a_killed_coordinator_goes_on_by_itself(wid: str, marks: Marks, gate: Gate) -> None:
    dag = held.bind(marks, gate, chain(marks, 5))
    ref = workflow.run_async(dag, workflow_id=wid)
    marks.wait_for("held")
    kill_coordinator()
    assert workflow.get_status(wid) == workflow.RUNNING
    gate.open()
    assert ray.get(ref) == 4
    assert {name: n for name, n in marks.counts().items() if name != "held"} == {
        f"step-{i}": 1 for i in range(5)
    }


def test_a_coordinator_killed_again_and_again(wid: str, marks: Marks) -> None:
    @ray.remote
    def slow(marks: Marks, index: int, previous):
        import time

        time.sleep(0.02)
        marks.add(f"{index}")
        return index

    node = None
    for index in range(60):
        node = slow.bind(marks, index, node)
    ref = workflow.run_async(node, workflow_id=wid)
    for reached in (10, 25, 40):
        marks.wait_for(f"{reached}")
        kill_coordinator()
    assert ray.get(ref) == 59
    # Only what was running when a coordinator died may have run again.
    repeated = [name for name, count in marks.counts().items() if count > 1]
    assert len(repeated) <= 3 * 2, marks.counts()


def test_a_waiting_run_survives_the_coordinator(wid: str, marks: Marks, gate: Gate) -> None:
    result = []
    waiting = threading.Thread(
        target=lambda: result.append(workflow.run(held.bind(marks, gate, 7), workflow_id=wid))
    )
    waiting.start()
    marks.wait_for("held")
    kill_coordinator()
    gate.open()
    waiting.join(60)
    assert result == [7]


def test_timers_and_listeners_survive_the_coordinator(wid: str, marks: Marks) -> None:
    @ray.remote
    def both(a, b):
        return "both"

    import time

    started = time.time()
    listener = workflow.wait_for_event(workflow.TimerListener, started + 3)
    ref = workflow.run_async(both.bind(workflow.sleep(3), listener), workflow_id=wid)
    kill_coordinator()
    assert ray.get(ref) == "both"
    assert 3 <= time.time() - started < 60


def test_what_sleeps_is_left_alone_when_the_coordinator_dies(
    wid: str, marks: Marks, gate: Gate
) -> None:
    def journal_end(workflow_id: str) -> int:
        row = connect().storage.read_catalog(workflow_id)
        assert row is not None
        return row.seq

    workflow.run_async(workflow.sleep(3600.0), workflow_id=f"{wid}-asleep")
    runs = workflow.run_async(held.bind(marks, gate, 1), workflow_id=wid)
    marks.wait_for("held")
    before = journal_end(f"{wid}-asleep")
    kill_coordinator()
    wait_until(lambda: marks.counts()["held"] == 2, "what was in flight runs again")
    gate.open()
    assert ray.get(runs) == 1
    assert journal_end(f"{wid}-asleep") == before
    assert workflow.get_status(f"{wid}-asleep") == workflow.RUNNING
    workflow.cancel(f"{wid}-asleep")
    assert workflow.get_status(f"{wid}-asleep") == workflow.CANCELED


def test_values_without_checkpoint_are_computed_again(wid: str, marks: Marks, gate: Gate) -> None:
    unstored = step.options(**workflow.options(checkpoint=False))
    node = unstored.bind(marks, 1, unstored.bind(marks, 0, None))
    ref = workflow.run_async(held.bind(marks, gate, node), workflow_id=wid)
    marks.wait_for("held")
    kill_coordinator()
    marks.wait_for("held", 2)
    gate.open()
    assert ray.get(ref) == 1
    assert marks.count("step-0") == 2
    assert marks.count("step-1") == 2


def test_a_killed_worker_runs_only_its_task_again(wid: str, marks: Marks, gate: Gate) -> None:
    ref = workflow.run_async(held.bind(marks, gate, chain(marks, 3)), workflow_id=wid)
    marks.wait_for("held")
    (pid,) = marks.pids("held")
    os.kill(pid, signal.SIGKILL)
    marks.wait_for("held", 2)
    gate.open()
    assert ray.get(ref) == 2
    assert [marks.count(f"step-{i}") for i in range(3)] == [1, 1, 1]


def test_a_workflow_outlives_its_driver(wid: str, marks: Marks, gate: Gate, tmp_path: Path) -> None:
    code = f"""
        import ray, ray_workflows as workflow
        from tests.ray.marks import Gate, Marks
        from tests.ray.test_crashes import chain, held
        ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
        marks, gate = Marks({marks.directory!r}), Gate({gate.path!r})
        workflow.run_async(held.bind(marks, gate, chain(marks, 3)), workflow_id={wid!r})
        print("submitted", flush=True)
        gate.wait()
    """
    with DriverProcess(tmp_path, code) as driver:
        driver.wait_for_text("submitted")
        marks.wait_for("held")
        driver.kill()
    # Another driver, this one, sees it and gets its output.
    assert workflow.get_status(wid) == workflow.RUNNING
    gate.open()
    assert workflow.get_output(wid) == 2
    assert marks.count("held") == 1


def test_objects_outlive_their_driver(wid: str, gate: Gate, marks: Marks, tmp_path: Path) -> None:
    code = f"""
        import numpy as np, ray, ray_workflows as workflow
        from tests.ray.marks import Gate, Marks
        ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
        gate = Gate({gate.path!r})

        @ray.remote
        def total(direct, nested, gate):
            gate.wait()
            return float(direct.sum() + ray.get(nested[0]).sum())

        ref = ray.put(np.ones(300_000))
        workflow.run_async(total.bind(ref, [ref], gate), workflow_id={wid!r})
        print("submitted", flush=True)
    """
    with DriverProcess(tmp_path, code) as driver:
        driver.wait()
    gate.open()
    assert workflow.get_output(wid) == 600_000.0


CLUSTER_DRIVER = """
    import sys, ray, ray_workflows as workflow
    from tests.ray.marks import Gate, Marks
    from tests.ray.test_crashes import chain, held, step
    from tests.ray.start import start_cluster

    start_cluster(num_cpus=2)
    workflow.init({storage!r})
    marks, of_run, gate = Marks({marks!r}), Marks({of_run!r}), Gate({gate!r})
"""


@pytest.mark.own_cluster
def test_the_loss_of_the_whole_cluster(marks: Marks, gate: Gate, tmp_path: Path) -> None:
    of_run = Marks(str(tmp_path / "of-run"))
    prologue = CLUSTER_DRIVER.format(
        storage=str(tmp_path / "store"),
        marks=marks.directory,
        of_run=of_run.directory,
        gate=gate.path,
    )
    first = (
        prologue
        + """
    import numpy as np

    @ray.remote
    def make_objects():
        return {"array": np.ones(200_000), "ref": ray.put(np.ones(300_000))}

    @ray.remote
    def use_objects(objects, *rest):
        return float(objects["array"].sum() + ray.get(objects["ref"]).sum())

    objects = make_objects.bind()
    waiting = held.bind(marks, gate, chain(marks, 10, objects))
    workflow.run_async(use_objects.bind(objects, waiting), workflow_id="interrupted")
    workflow.run(chain(marks, 1), workflow_id="finished")
    workflow.run(held.bind(of_run, gate, chain(of_run, 4)), workflow_id="w")
    """
    )
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with DriverProcess(tmp_path / "1", first) as driver:
        of_run.wait_for("held")
        marks.wait_for("held")
        driver.kill_all()
    before = marks.counts()
    second = (
        prologue
        + """
    assert workflow.get_status("interrupted") == "RESUMABLE", workflow.get_status("interrupted")
    assert workflow.get_status("finished") == "SUCCESSFUL"
    try:
        workflow.get_output("interrupted")
    except ValueError as error:
        assert "resume" in str(error)
    gate.open()
    # To run it with its id resumes it.
    dag = held.bind(of_run, gate, chain(of_run, 4))
    assert workflow.run(dag, workflow_id="w") == 3
    ((workflow_id, ref),) = workflow.resume_all()
    assert workflow_id == "interrupted"
    assert ray.get(ref) == 500_000.0
    assert workflow.get_output("interrupted") == 500_000.0
    assert workflow.get_status("interrupted") == "SUCCESSFUL"
    assert workflow.run(chain(marks, 1), workflow_id="finished") == 0
    print("all right", flush=True)
    """
    )
    with DriverProcess(tmp_path / "2", second) as driver:
        assert "all right" in driver.wait()
    assert marks.counts() == {**before, "held": 2}
    assert of_run.counts() == {"held": 2, **{f"step-{i}": 1 for i in range(4)}}


MODULE_DRIVER = """
    import ray, ray_workflows as workflow
    import helper

    ray.init(address={address!r}, log_to_driver=False)

    @ray.remote
    def call(x):
        import lazily_imported
        return helper.double(x), helper.Pair(x, lazily_imported.NAME)

    result = workflow.run(call.bind(helper.Pair(1, 2)), workflow_id={wid!r})
    print(result, flush=True)
    assert isinstance(result[1], helper.Pair)
"""


@pytest.mark.parametrize("name", ["one", "two"])
def test_modules_beside_the_script(name: str, wid: str, tmp_path: Path) -> None:
    # The same module name in every directory: each driver's tasks get their own.
    def write_helper(version: str) -> None:
        (tmp_path / "helper.py").write_text(
            "from typing import NamedTuple\n"
            "class Pair(NamedTuple):\n    a: object\n    b: object\n"
            f"def double(pair): return '{version}', pair.a * 2\n"
        )

    (tmp_path / "lazily_imported.py").write_text(f"NAME = '{name}'\n")
    address = ray.get_runtime_context().gcs_address
    for version in (name, name + " edited"):
        write_helper(version)
        code = MODULE_DRIVER.format(address=address, wid=f"{wid}-{version}")
        with DriverProcess(tmp_path, code) as driver:
            text = driver.wait()
        assert f"('{version}', 2)" in text
        assert f"b='{name}'" in text


def test_two_drivers_race_for_one_id(wid: str, marks: Marks, tmp_path: Path) -> None:
    code = f"""
        import ray, ray_workflows as workflow
        from tests.ray.marks import Marks
        from tests.ray.test_crashes import chain
        ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
        try:
            workflow.run_async(chain(Marks({marks.directory!r}), 3), workflow_id={wid!r})
        except RuntimeError:
            print("already running")
    """
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    with DriverProcess(directories[0], code) as one, DriverProcess(directories[1], code) as two:
        one.wait()
        two.wait()
    assert workflow.get_output(wid) == 2
    assert marks.counts() == {f"step-{i}": 1 for i in range(3)}


@pytest.mark.own_cluster
def test_a_storage_that_is_away_is_waited_for(tmp_path: Path) -> None:
    code = f"""
        import os, ray, ray_workflows as workflow
        from tests.ray.marks import Gate, Marks
        from tests.ray.test_crashes import chain, held
        from tests.ray.start import start_cluster
        start_cluster(num_cpus=2)
        workflow.init({str(tmp_path / "store")!r})
        gate, marks = Gate({str(tmp_path / "gate")!r}), Marks({str(tmp_path / "marks")!r})
        dag = held.bind(marks, gate, chain(marks, 3))
        ref = workflow.run_async(dag, workflow_id="running")
        marks.wait_for("held")
        os.rename({str(tmp_path / "store")!r}, {str(tmp_path / "away")!r})
        gate.open()
        for verb in (
            lambda: workflow.get_status("running"),
            lambda: workflow.get_output("running"),
            lambda: workflow.list_all(),
            lambda: workflow.run_async(dag, workflow_id="other"),
            lambda: workflow.delete("nobody"),
        ):
            try:
                raise SystemExit(f"answered {{verb()}}")
            except workflow.StorageUnavailableError as error:
                assert "store" in str(error), error
        os.rename({str(tmp_path / "away")!r}, {str(tmp_path / "store")!r})
        assert ray.get(ref) == 2
        assert marks.count("held") == 1
        assert workflow.list_all() == [("running", "SUCCESSFUL")]
        print("all right", flush=True)
    """
    with DriverProcess(tmp_path, code) as driver:
        assert "all right" in driver.wait()


def test_retries_are_counted_over_the_death_of_the_coordinator(
    wid: str, marks: Marks, gate: Gate
) -> None:
    @ray.remote(max_retries=2)
    def suicidal(marks: Marks, gate: Gate):
        marks.add("run")
        if marks.count("run") == 2:
            gate.wait()
        os.kill(os.getpid(), signal.SIGKILL)

    ref = workflow.run_async(suicidal.bind(marks, gate), workflow_id=wid)
    marks.wait_for("run", 2)
    kill_coordinator()
    # The run that the coordinator took with it is not charged; the others are: 1 + 2 retries.
    with pytest.raises(workflow.WorkflowExecutionError):
        ray.get(ref)
    gate.open()
    assert marks.count("run") == 4
