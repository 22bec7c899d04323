"""A large value is in memory once: it is written from where it lies, and files are read by mapping.

What `benchmarks/storage_memory.py` measures with 5 GB is held here with 400 MB.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private.internal_api import node_stats

import ray_workflows as workflow
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows.storage.urls import storage_from_url
from tests.children import child, receive
from tests.fast_s3 import fast_s3
from tests.memory import own_bytes, watched
from tests.moto import CREDENTIALS, storage_url
from tests.ray.processes import DriverProcess, descendants

SIZE = 400_000_000

#: A fifth of the value, as 1 GB is of 5: parts of an upload that are on their way, and noise.
EXTRA = SIZE // 5

#: What a Ray worker, or a driver, has for itself.
PROCESS = 250_000_000


def write_and_read(pipe, url: str, size: int) -> None:
    os.environ.update(CREDENTIALS)
    storage = storage_from_url(url)
    storage.open()
    writer, reader = ValueWriter(storage, "i"), ValueReader(storage, "i")
    # Once before, so that libraries are loaded and threads are there.
    reader.read(writer.write(np.ones(4_000_000), key="warm", where="test"), where="test")
    value = np.ones(size // 8)
    pipe.send(own_bytes(os.getpid()))
    pipe.recv()
    stored = writer.write(value, key="k", where="test")
    pipe.send("written")
    pipe.recv()
    del value
    pipe.send(own_bytes(os.getpid()))
    pipe.recv()
    back = reader.read(stored, where="test")
    pipe.send(float(back[::1000].sum()))


@pytest.fixture(params=["file", "shared", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "s3":
        with fast_s3() as endpoint:
            yield storage_url(endpoint)
        return
    yield f"{request.param}://{tmp_path}/store"


@pytest.mark.own_cluster
def test_a_large_value_is_in_memory_once(url: str) -> None:
    with child(write_and_read, url, SIZE) as (process, pipe):
        before = receive(pipe)
        with watched(lambda: {process.pid}) as writing:
            pipe.send("write")
            assert receive(pipe) == "written"
        pipe.send("forget")
        empty = receive(pipe)
        with watched(lambda: {process.pid}) as reading:
            pipe.send("read")
            assert receive(pipe) == SIZE / 8000
    assert before > SIZE > empty
    assert writing.largest - before < EXTRA
    mapped = url.startswith("file:")
    assert reading.largest - empty < EXTRA + (0 if mapped else SIZE)


CODE = """
    import numpy as np, ray, ray_workflows as workflow
    from tests.ray.start import start_cluster
    start_cluster(num_cpus=1, object_store_memory={store})
    workflow.init({url!r})

    @ray.remote
    def make():
        return np.ones({size} // 8)

    @ray.remote
    def total(numbers):
        return float(numbers[::1000].sum())

    big = make.options(**workflow.options(task_id="big")).bind()
    assert workflow.run(total.bind(big), workflow_id="w") == {size} / 8000
    numbers = workflow.get_output("w", task_id="big")
    assert float(numbers[::1000].sum()) == {size} / 8000
    print("all right", flush=True)
"""


@pytest.mark.own_cluster
def test_a_large_result_from_worker_to_driver(tmp_path: Path) -> None:
    """The worker has the array; nobody else has it but in shared or mapped memory."""
    code = CODE.format(url=str(tmp_path / "store"), size=SIZE, store=2 * SIZE)
    with (
        DriverProcess(tmp_path, code) as driver,
        watched(lambda: {driver.process.pid, *descendants(driver.process.pid)}) as peaks,
    ):
        assert "all right" in driver.wait(120)
    assert SIZE < peaks.largest < SIZE + EXTRA + PROCESS
    (second, _) = sorted(peaks.by_pid.values())[-2:]
    assert second < EXTRA + PROCESS


@ray.remote
def large(size: int) -> np.ndarray:
    # Longer than a worker's watch needs to look at it.
    time.sleep(0.2)
    return np.ones(size // 8)


@ray.remote
def last(values: np.ndarray) -> float:
    return float(values[-1])


def stored_bytes() -> int:
    """What is in the cluster's object store."""
    (node,) = ray.nodes()
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    return int(stats.store_stats.object_store_bytes_used)


def test_the_live_copy_goes_with_its_last_user(wid: str) -> None:
    """Not when the worker has something else to do, or a garbage collector comes by."""
    size = 50_000_000
    before = stored_bytes()
    assert workflow.run(last.bind(large.bind(size)), workflow_id=wid) == 1.0
    deadline = time.monotonic() + 20.0
    while stored_bytes() > before + size // 2:
        assert time.monotonic() < deadline, "the result is still in the object store"
        time.sleep(0.1)
