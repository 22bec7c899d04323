"""A cluster of several nodes on the embedded storage: only its own node touches the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.processes import OWN_CODE, DriverProcess

CODE = """
    import numpy as np, ray, ray_workflows as workflow
    from ray.cluster_utils import Cluster
    from tests.ray.recording_storage import recording_storage
    from tests.ray.start import few_processes

    head = dict(num_cpus=2, resources={{"a": 10}})
    with few_processes():
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=2, resources={{"b": 10}})
    ray.init(address=cluster.address, log_to_driver=False)
    home = ray.get_runtime_context().get_node_id()
    # Which of two nodes of one machine a driver connects to is Ray's choice.
    (away,) = [node for node in ray.nodes() if node["NodeID"] != home]
    elsewhere = {{name: 1 for name in "ab" if name in away["Resources"]}}
    workflow.init(recording_storage({storage!r}, {record!r}))

    @ray.remote(resources=elsewhere)
    def make():
        assert ray.get_runtime_context().get_node_id() != home
        return {{"large": np.arange(1_000_000.0), "ref": ray.put(np.ones(300_000))}}

    @ray.remote(resources=elsewhere)
    def use(objects):
        return float(objects["large"].sum() + ray.get(objects["ref"]).sum())

    made = make.options(**workflow.options(task_id="made")).bind()
    expected = float(np.arange(1_000_000.0).sum()) + 300_000
    assert workflow.run(use.bind(made), workflow_id="w") == expected

    # From storage alone, on the other node, by a workflow that gets it as a plain value.
    @ray.remote(resources=elsewhere)
    def read_there():
        assert workflow.get_status("w") == "SUCCESSFUL"
        objects = workflow.get_output("w", task_id="made")
        return float(objects["large"].sum() + ray.get(objects["ref"]).sum())

    assert ray.get(read_there.remote()) == expected
    lines = open({record!r}).read().split("\\n")[:-1]
    assert {{line.split()[0] for line in lines}} == {{"write_blob", "read_blob"}}, lines
    assert {{line.split()[1] for line in lines}} == {{home}}, (home, lines)
    print("all right", flush=True)
"""


@pytest.mark.own_cluster
def test_other_nodes_reach_the_storage_through_its_node(tmp_path: Path) -> None:
    code = CODE.format(storage=str(tmp_path / "store"), record=str(tmp_path / "record"))
    with DriverProcess(tmp_path, code, **OWN_CODE) as driver:
        assert "all right" in driver.wait(120)


LOST = """
    import ray, ray_workflows as workflow
    from ray.cluster_utils import Cluster
    from tests.ray.marks import Gate, Marks
    from tests.ray.start import few_processes

    with few_processes():
        cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1))
        doomed = cluster.add_node(num_cpus=1, resources={{"b": 1}})
    ray.init(address=cluster.address, log_to_driver=False)
    workflow.init({storage!r})
    marks, gate = Marks({directory!r} + "/marks"), Gate({directory!r} + "/gate")

    # Not one charged failure is allowed.
    @workflow.options(retry=workflow.RetryPolicy(max_attempts=1))
    @ray.remote(resources={{"b": 1}})
    def work():
        task = workflow.current()
        marks.add(f"attempt-{{task.attempt}}")
        if task.attempt == 1:
            gate.wait()
        return task.last_end

    ref = workflow.run_async(work.bind(), workflow_id="w")
    marks.wait_for("attempt-1", seconds=60)
    cluster.remove_node(doomed, allow_graceful=False)
    with few_processes():
        cluster.add_node(num_cpus=1, resources={{"b": 1}})
    assert ray.get(ref, timeout=90) == "preempted"
    print("all right", flush=True)
"""


@pytest.mark.own_cluster
def test_the_loss_of_a_node_is_charged_to_no_retry(tmp_path: Path) -> None:
    code = LOST.format(storage=str(tmp_path / "store"), directory=str(tmp_path))
    with DriverProcess(tmp_path, code, **OWN_CODE) as driver:
        assert "all right" in driver.wait(150)
