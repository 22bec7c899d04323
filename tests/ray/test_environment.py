"""The environment of the driver that submits reaches its tasks, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.processes import DriverProcess

CLUSTER = """
    from ray.cluster_utils import Cluster
    from tests.ray.start import few_processes
    with few_processes():
        cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2))
    print(f"address={{cluster.address}};", flush=True)
    from tests.ray.marks import Gate
    Gate({gate!r}).wait()
"""

FIRST = """
    import os, ray, ray_workflows as workflow
    from tests.ray.marks import Gate
    ray.init(address={address!r}, log_to_driver=False,
             runtime_env={{"working_dir": {project!r}, "env_vars": {{"FLAVOUR": "vanilla"}}}})
    workflow.init({storage!r})

    @ray.remote
    def look(gate):
        import beside
        gate.wait()
        return beside.NAME, os.environ["FLAVOUR"]

    @ray.remote(runtime_env={{"env_vars": {{"TOPPING": "nuts"}}}})
    def topped(previous):
        return previous, os.environ["FLAVOUR"], os.environ["TOPPING"]

    workflow.run_async(topped.bind(look.bind(Gate({gate!r}))), workflow_id="first")
    print("submitted", flush=True)
    Gate("/nonexistent").wait()
"""

SECOND = """
    import os, signal, ray, ray_workflows as workflow
    from pathlib import Path
    from ray_workflows._client.connection import connect
    from tests.ray.marks import Gate, wait_until
    ray.init(address={address!r}, log_to_driver=False)

    def coordinator_pid():
        return ray.get(connect().coordinator.describe.remote())["holder"].pid

    pid = coordinator_pid()
    # It serves everybody, so it has nothing of the driver that happened to start it.
    assert b"FLAVOUR" not in Path(f"/proc/{{pid}}/environ").read_bytes()

    @ray.remote
    def plain():
        return os.environ.get("FLAVOUR")

    assert workflow.run(plain.bind()) is None
    os.kill(pid, signal.SIGKILL)
    Gate({gate!r}).open()
    assert workflow.get_output("first") == (("beside", "vanilla"), "vanilla", "nuts")
    print("all right", flush=True)
"""


@pytest.mark.own_cluster
def test_a_runtime_env_travels_with_the_workflow(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "beside.py").write_text("NAME = 'beside'\n")
    names = {
        "project": str(project),
        "storage": str(tmp_path / "store"),
        "gate": str(tmp_path / "gate"),
    }
    directories = [tmp_path / name for name in ("cluster", "first", "second")]
    for directory in directories:
        directory.mkdir()
    end = str(tmp_path / "end")
    with DriverProcess(directories[0], CLUSTER.format(gate=end)) as cluster:
        cluster.wait_for_text(";")
        address = cluster.text().split("address=")[1].split(";")[0]
        with DriverProcess(directories[1], FIRST.format(address=address, **names)) as first:
            first.wait_for_text("submitted")
            first.kill()
        with DriverProcess(directories[2], SECOND.format(address=address, **names)) as second:
            assert "all right" in second.wait()
