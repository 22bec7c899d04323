"""The environment of the driver that submits reaches its tasks, and nobody else's: in workers of
their own where it has to, in those that plain tasks use where that is all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.ray.processes import DriverProcess

CLUSTER = """
    import threading
    from ray.cluster_utils import Cluster
    from tests.ray.start import few_processes
    with few_processes():
        cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2))
    print(f"address={cluster.address};", flush=True)
    threading.Event().wait()
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


class Place(NamedTuple):
    """A cluster that drivers join, and its storage."""

    address: str
    storage: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("cluster")
    with DriverProcess(directory, CLUSTER) as cluster:
        cluster.wait_for_text(";")
        address = cluster.text().split("address=")[1].split(";")[0]
        yield Place(address, str(directory / "store"))


@pytest.mark.own_cluster("joined")
def test_a_runtime_env_travels_with_the_workflow(place: Place, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "beside.py").write_text("NAME = 'beside'\n")
    names = {**place._asdict(), "project": str(project), "gate": str(tmp_path / "gate")}
    directories = [tmp_path / name for name in ("first", "second")]
    for directory in directories:
        directory.mkdir()
    with DriverProcess(directories[0], FIRST.format(**names)) as first:
        first.wait_for_text("submitted")
        first.kill()
    with DriverProcess(directories[1], SECOND.format(**names)) as second:
        assert "all right" in second.wait()


ALONE = """
    import os, ray, ray_workflows as workflow
    from tests.ray.start import start_cluster
    start_cluster(num_cpus=1)
    workflow.init({storage!r})

    @ray.remote
    def where():
        return os.getpid(), os.environ.get("RAY_WORKFLOWS_CODE")

    def plain():
        return ray.get(where.remote())

    pids = {{run()[0] for run in (plain, lambda: workflow.run(where.bind())) for _ in range(2)}}
    assert len(pids) == 1, f"workers were started anew: {{pids}}"

    import beside
    # From here on there is code that others may have in another state.
    pid, digest = workflow.run(where.bind())
    assert pid not in pids and digest, (pid, digest)
    print("all right", flush=True)
"""


@pytest.mark.own_cluster
def test_workers_are_shared_with_plain_tasks_where_nothing_sets_them_apart(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    # What the script names is found before it is imported.
    code = ALONE.replace("import beside", "__import__('beside')")
    with DriverProcess(tmp_path, code.format(storage=str(tmp_path / "store"))) as driver:
        assert "all right" in driver.wait()


ELSEWHERE = """
    import importlib, ray, ray_workflows as workflow
    ray.init(address={address!r}, log_to_driver=False)
    workflow.init({storage!r})

    @ray.remote
    def look():
        return importlib.import_module("plugin_" + {name!r}).NAME

    print("found", workflow.run(look.bind()), flush=True)
"""


@pytest.mark.own_cluster("joined")
def test_directories_of_a_second_driver_are_searched(place: Place, tmp_path: Path) -> None:
    """What no import statement names is not stored, and is found where it is as long as it is."""
    for name in ("first", "second"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / f"plugin_{name}.py").write_text(f"NAME = {name!r}\n")
        with DriverProcess(directory, ELSEWHERE.format(name=name, **place._asdict())) as driver:
            assert f"found {name}" in driver.wait()
