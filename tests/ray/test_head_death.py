"""Drivers in `run` over the death of their cluster's head: they end as the workflow does."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

import ray_workflows as workflow
from ray_workflows._client.connection import HEAD_VARIABLE, LEASE_VARIABLE
from ray_workflows._client.reader import Reader
from ray_workflows._client.reads import get_tasks
from ray_workflows.storage import SqliteStorage
from tests.ray.clusters import Cluster, stopped, use
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import DriverProcess

pytestmark = pytest.mark.own_cluster

DRIVER = """
    import ray
    import ray_workflows as workflow
    from tests.ray.marks import Gate, Marks
    from tests.ray.test_head_death import held

    ray.init(address={address!r}, log_to_driver=False, logging_level="ERROR")
    dag = ray.remote(held).bind(Marks({marks!r}), {name!r}, Gate({gate!r}))
    print("started", flush=True)
    print("RESULT", workflow.run(dag, workflow_id={name!r}, progress={progress}))
"""


def held(marks: Marks, name: str, gate: Gate) -> str:
    marks.add(name)
    gate.wait()
    return "held"


def gcs_address() -> str:
    address: str = ray.get_runtime_context().gcs_address
    return address


def test_run_outlives_the_head(tmp_path: Path, marks: Marks, gate: Gate) -> None:
    url, drivers = str(tmp_path / "store"), dict[str, DriverProcess]()
    # An address does not turn tokens on.
    env = {LEASE_VARIABLE: "2", "RAY_AUTH_MODE": "disabled"}
    with Cluster(tmp_path / "a", "a", **env) as head, Cluster(tmp_path / "b", "b", **env) as new:
        head.call(use, url)
        try:
            for name, progress in (("plain", False), ("shown", True)):
                code = DRIVER.format(
                    address=head.call(gcs_address),
                    marks=marks.directory,
                    name=name,
                    gate=gate.path,
                    progress=progress,
                )
                (tmp_path / name).mkdir()
                # After this many seconds Ray ends it.
                driver = DriverProcess(tmp_path / name, code, **env, **{HEAD_VARIABLE: "300"})
                drivers[name] = driver
            for name, driver in drivers.items():
                driver.wait_for_text("started")
                marks.wait_for(name, seconds=30.0)
            head.kill_all()
            for driver in drivers.values():
                driver.wait_for_text("The coordinator does not answer", 30.0)
            new.call(use, url, auto_resume=True)
            for name in drivers:
                marks.wait_for(name, 2)
            gate.open()
            for driver in drivers.values():
                text = driver.wait()
                assert "RESULT held" in text
                assert text.count("The coordinator does not answer") == 1
                assert "Failed to push error" not in text
        finally:
            for driver in drivers.values():
                print(driver.text())
                driver.kill_all()


def test_how_long_ray_waits_is_asked_where_it_is_said() -> None:
    """The variable is one that Ray reads."""
    name = HEAD_VARIABLE.removeprefix("RAY_").encode()
    assert name in (Path(ray.__file__).parent / "_raylet.so").read_bytes()


def begin_both(marks: Marks, gates: list[Gate]) -> None:
    """Two workflows whose tasks are held up. "secret" has a second one, which needs what only the
    head has."""
    asks = ray.remote(followed).options(runtime_env={"env_vars": {"SOME_TOKEN": "1234"}})
    first, plain = (
        ray.remote(held).bind(marks, name, gate)
        for name, gate in zip(("secret", "plain"), gates, strict=True)
    )
    workflow.run_async(asks.bind(first), workflow_id="secret")
    workflow.run_async(plain, workflow_id="plain")


def followed(text: str) -> str:
    return f"{text} and followed"


def test_work_goes_on_while_the_head_does_not_answer(tmp_path: Path, marks: Marks) -> None:
    """An attempt waits for the value of a secret. What others return is committed meanwhile."""
    url = str(tmp_path / "store")
    gates = [Gate(str(tmp_path / name)) for name in ("first", "second")]
    with Cluster(tmp_path / "a", "a") as cluster:
        cluster.call(use, url)
        cluster.call(begin_both, marks, gates)
        for name in ("secret", "plain"):
            marks.wait_for(name, seconds=30.0)
            # A worker's first call of the coordinator needs the head. Then it says that it runs.
            wait_until(lambda name=name: count(url, name, "RUNNING") == 1, f"{name} runs")
        servers = [pid for pid in cluster.pids() if comm(pid) == "gcs_server"]
        with stopped(servers):
            gates[0].open()
            wait_until(
                lambda: count(url, "secret", "SUCCESSFUL") == 1, "its first task is committed"
            )
            gates[1].open()
            # Ray waits for the head for a minute, and then ends processes.
            wait_until(
                lambda: count(url, "plain", "SUCCESSFUL") == 1, "the other is committed", 40.0
            )
            assert count(url, "secret", "SUCCESSFUL") == 1


def comm(pid: int) -> str:
    """The name of a process."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def count(url: str, workflow_id: str, status: str) -> int:
    """How many tasks of a workflow have a status, as the storage says. No cluster is asked."""
    storage = SqliteStorage(url)
    storage.open()
    try:
        tasks = get_tasks(Reader(storage), workflow_id)
    finally:
        storage.close()
    return sum(task.status == status for task in tasks)
