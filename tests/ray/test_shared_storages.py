"""Storages that several clusters share: S3 over HTTP, and a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.moto import CREDENTIALS, s3_server, storage_url
from tests.ray.marks import Gate, Marks
from tests.ray.processes import DriverProcess


@pytest.fixture(params=["s3", "shared"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "shared":
        yield f"shared://{tmp_path}/shared"
        return
    with s3_server() as endpoint:
        yield storage_url(endpoint)


PROLOGUE = """
    import numpy as np, ray, ray_workflows as workflow
    from tests.ray.marks import Gate, Marks
    from tests.ray.test_crashes import chain, held

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             _node_ip_address="127.0.0.1")
    workflow.init({url!r})
    marks, gate = Marks({marks!r}), Gate({gate!r})

    @ray.remote
    def make_objects():
        return {{"array": np.ones(2_000_000), "ref": ray.put(np.ones(300_000))}}

    @ray.remote
    def use_objects(objects, *rest):
        return float(objects["array"].sum() + ray.get(objects["ref"]).sum())
"""


@pytest.fixture
def prologue(url: str, marks: Marks, gate: Gate) -> str:
    return PROLOGUE.format(url=url, marks=marks.directory, gate=gate.path)


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "1", tmp_path / "2"]
    for directory in found:
        directory.mkdir()
    return found


def test_the_loss_of_the_whole_cluster(
    prologue: str, marks: Marks, gate: Gate, directories: list[Path]
) -> None:
    first = (
        prologue
        + """
    objects = make_objects.bind()
    waiting = held.bind(marks, gate, chain(marks, 5, objects))
    workflow.run_async(use_objects.bind(objects, waiting), workflow_id="interrupted")
    workflow.run(chain(marks, 1), workflow_id="finished")
    print("submitted", flush=True)
    gate.wait()
    """
    )
    second = (
        prologue
        + """
    assert workflow.get_status("interrupted") == "RESUMABLE", workflow.get_status("interrupted")
    assert sorted(workflow.list_all()) == [("finished", "SUCCESSFUL"), ("interrupted", "RESUMABLE")]
    gate.open()
    ((workflow_id, ref),) = workflow.resume_all()
    assert workflow_id == "interrupted"
    assert ray.get(ref) == 2_300_000.0
    assert workflow.get_output("interrupted") == 2_300_000.0
    assert workflow.get_status("interrupted") == "SUCCESSFUL"
    assert sorted(workflow.list_all()) == [
        ("finished", "SUCCESSFUL"), ("interrupted", "SUCCESSFUL")
    ]
    workflow.delete("interrupted")
    assert workflow.list_all() == [("finished", "SUCCESSFUL")]
    print("all right", flush=True)
    """
    )
    with DriverProcess(directories[0], first, **CREDENTIALS) as driver:
        driver.wait_for_text("submitted")
        marks.wait_for("held")
        driver.kill_all()
    before = marks.counts()
    with DriverProcess(directories[1], second, **CREDENTIALS) as driver:
        assert "all right" in driver.wait()
    assert marks.counts() == {**before, "held": 2}


def test_two_clusters(prologue: str, marks: Marks, gate: Gate, directories: list[Path]) -> None:
    """What the one runs, the other sees, waits for and cancels."""
    owner = (
        prologue
        + """
    workflow.run_async(held.bind(marks, gate, 1), workflow_id="canceled")
    marks.wait_for("held")
    workflow.run(chain(marks, 2), workflow_id="finished")
    print("running", flush=True)
    other = Gate({other!r})
    other.wait()
    assert workflow.get_status("canceled") == "CANCELED"
    print("all right", flush=True)
    """.format(other=gate.path + "-other")
    )
    other = (
        prologue
        + """
    assert dict(workflow.list_all()) == {{"canceled": "RUNNING", "finished": "SUCCESSFUL"}}
    assert workflow.get_output("finished") == 1
    workflow.cancel("canceled")
    import time
    deadline = time.monotonic() + 30
    while workflow.get_status("canceled") != "CANCELED":
        assert time.monotonic() < deadline, workflow.get_status("canceled")
        time.sleep(0.1)
    Gate({other!r}).open()
    print("all right", flush=True)
    """.format(other=gate.path + "-other")
    )
    with DriverProcess(directories[0], owner, **CREDENTIALS) as first:
        first.wait_for_text("running")
        with DriverProcess(directories[1], other, **CREDENTIALS) as second:
            assert "all right" in second.wait()
            assert "all right" in first.wait()
    assert marks.count("held") == 1
