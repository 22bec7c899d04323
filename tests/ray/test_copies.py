"""Workflows that failed on one cluster go on from copies, on another cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from tests.ray.clusters import Cluster, use
from tests.ray.marks import Gate, Marks
from tests.ray.processes import OWN_CODE
from tests.support.moto import CREDENTIALS, s3_server, storage_url

TARGETS = ("s3", "postgres", "shared")


@pytest.fixture(scope="module")
def on_the_cluster() -> None:
    """Not on the cluster of all other tests: on two of their own."""


@ray.remote
def make(marks: Marks) -> dict[str, Any]:
    marks.add("make")
    return {"array": np.ones(2_000_000), "ref": ray.put(np.ones(300_000))}


@ray.remote(max_retries=0)
def use_up(marks: Marks, gate: Gate, objects: dict[str, Any]) -> float:
    marks.add("use")
    key = workflow.current().idempotency_key
    assert key is not None
    marks.add("key-" + key.replace("/", "_"))
    if not gate.is_open():
        raise RuntimeError("not yet")
    return float(objects["array"].sum() + ray.get(objects["ref"]).sum())


def fail(marks: Marks, gate: Gate, workflow_id: str) -> None:
    dag = use_up.bind(marks, gate, make.bind(marks))
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag, workflow_id=workflow_id, metadata={"owner": "ü"})


def go_on(workflow_id: str) -> None:
    assert workflow.get_status(workflow_id) == "FAILED"
    # The code came with it.
    assert "tests/ray/test_copies.py" in workflow.get_environment(workflow_id).modules
    assert workflow.get_metadata(workflow_id)["user_metadata"] == {"owner": "ü"}
    assert workflow.resume(workflow_id) == 2_300_000.0
    assert workflow.get_status(workflow_id) == "SUCCESSFUL"


class Failed:
    """Workflows by what they are to be copied to, and the storage that they failed on."""

    def __init__(self, directory: Path) -> None:
        self.source = directory / "source"
        self.gate = Gate(str(directory / "gate"))
        self.marks = {name: Marks(str(directory / name)) for name in TARGETS}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Failed:
    """What a first cluster leaves, of which nothing runs anymore."""
    directory = tmp_path_factory.mktemp("failed")
    failed = Failed(directory)
    with Cluster(directory / "cluster", "first", **OWN_CODE) as cluster:
        cluster.call(use, str(failed.source))
        for name, marks in failed.marks.items():
            cluster.call(fail, marks, failed.gate, f"to {name}")
    failed.gate.open()
    return failed


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("second")
    with Cluster(directory, "second", **CREDENTIALS, **OWN_CODE) as cluster:
        yield cluster


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "shared":
        yield f"shared://{tmp_path}/shared"
    elif request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        yield f"{url}{'&' if '?' in url else '?'}schema=copies_{uuid.uuid4().hex[:8]}"
    else:
        with s3_server() as endpoint:
            yield storage_url(endpoint)


def test_a_copy_is_resumed_elsewhere(
    failed: Failed,
    second: Cluster,
    target: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = request.node.callspec.params["target"]
    for variable, value in CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    moved = f"to {name}"
    assert workflow.copy(moved, source=failed.source, target=target) == [moved]
    second.call(use, target)
    second.call(go_on, moved)
    # One idempotency key for both attempts: a payee recognizes the second payment by it.
    counts = failed.marks[name].counts()
    (key,) = (name for name in counts if name.startswith("key-"))
    assert counts == {"make": 1, "use": 2, key: 2}
