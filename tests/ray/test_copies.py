"""A workflow that failed on one cluster goes on from a copy, on another cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_workflows as workflow
from tests.moto import CREDENTIALS, s3_server, storage_url
from tests.ray.marks import Gate, Marks
from tests.ray.processes import DriverProcess

PROLOGUE = """
    import os
    import numpy as np, ray, ray_workflows as workflow
    from tests.ray.marks import Gate, Marks

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             _node_ip_address="127.0.0.1")
    workflow.init({url!r})
    marks = Marks({marks!r})

    @ray.remote
    def make():
        marks.add("make")
        return {{"array": np.ones(2_000_000), "ref": ray.put(np.ones(300_000))}}

    @ray.remote(max_retries=0)
    def use(objects):
        marks.add("use")
        marks.add("key-" + workflow.current().idempotency_key.replace("/", "_"))
        if not os.path.exists({gate!r}):
            raise RuntimeError("not yet")
        return float(objects["array"].sum() + ray.get(objects["ref"]).sum())
"""


@pytest.fixture(params=["s3", "postgres", "shared"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "shared":
        yield f"shared://{tmp_path}/shared"
    elif request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        yield f"{url}{'&' if '?' in url else '?'}schema=test_copy_{tmp_path.name[-40:]}"
    else:
        with s3_server() as endpoint:
            yield storage_url(endpoint)


def test_a_copy_is_resumed_elsewhere(
    target: str, tmp_path: Path, marks: Marks, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    fields = {"marks": marks.directory, "gate": gate.path}
    first = (
        PROLOGUE.format(url=str(source), **fields)
        + """
    try:
        workflow.run(use.bind(make.bind()), workflow_id="moved", metadata={"owner": "ü"})
    except workflow.WorkflowExecutionError:
        print("failed", flush=True)
    """
    )
    second = (
        PROLOGUE.format(url=target, **fields)
        + """
    assert workflow.get_status("moved") == "FAILED"
    assert workflow.get_metadata("moved")["user_metadata"] == {"owner": "ü"}
    assert workflow.resume("moved") == 2_300_000.0
    assert workflow.get_status("moved") == "SUCCESSFUL"
    print("all right", flush=True)
    """
    )
    with DriverProcess(tmp_path / "1", first) as driver:
        assert "failed" in driver.wait()
        driver.kill_all()
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    assert workflow.copy("moved", source=source, target=target) == ["moved"]
    gate.open()
    with DriverProcess(tmp_path / "2", second, **CREDENTIALS) as driver:
        assert "all right" in driver.wait()
    # One key for both attempts: whoever was paid in the first can tell.
    keys = [name for name in marks.counts() if name.startswith("key-")]
    assert marks.counts() == {"make": 1, "use": 2, keys[0]: 2}
