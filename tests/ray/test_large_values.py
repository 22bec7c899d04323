"""A large value is in memory once: it is written from where it lies, and files are read by mapping.

What `benchmarks/storage_memory.py` measures with 5 GB is held here with 400 MB.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private.internal_api import node_stats

import ray_workflows as workflow
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._client.connection import connect
from ray_workflows._client.outputs import read_output, read_row
from ray_workflows._client.patience import Patience
from ray_workflows._model.events import WorkflowSucceeded
from ray_workflows.storage.histories import History
from ray_workflows.storage.urls import storage_from_url
from tests.ray.marks import Gate
from tests.ray.processes import DriverProcess, descendants
from tests.support.children import child, receive
from tests.support.fast_s3 import fast_s3
from tests.support.memory import own_bytes, watched
from tests.support.moto import CREDENTIALS, storage_url

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


def wait_until_stored(at_most: int) -> None:
    """Wait until no more than this many bytes are in the cluster's object store."""
    deadline = time.monotonic() + 20.0
    while stored_bytes() > at_most:
        assert time.monotonic() < deadline, "the result is still in the object store"
        time.sleep(0.1)


def test_the_live_copy_goes_with_its_last_user(wid: str) -> None:
    """Not when the worker has something else to do, or a garbage collector comes by."""
    size = 50_000_000
    before = stored_bytes()
    assert workflow.run(last.bind(large.bind(size)), workflow_id=wid) == 1.0
    wait_until_stored(before + size // 2)


def is_shared(array: np.ndarray) -> bool:
    """Whether an array lies in the object store: not in memory of this process, nor in a file."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(text, 16) for text in line.split(" ")[0].split("-"))
        if begin <= address < end:
            return "/dev/shm/" in line or "plasma" in line
    raise AssertionError("it lies nowhere")


def test_who_waits_for_a_large_output_gets_the_live_copy(wid: str) -> None:
    """And it goes from the object store with it; a later reader reads the blob."""
    size = 50_000_000
    before = stored_bytes()
    output = workflow.run(large.bind(size), workflow_id=wid)
    assert is_shared(output)
    assert not output.flags.writeable
    later = workflow.get_output(wid)
    assert not is_shared(later)
    np.testing.assert_array_equal(later, output)
    assert stored_bytes() > before + size // 2
    del output
    wait_until_stored(before + size // 2)


def test_a_large_output_that_nobody_waits_for_does_not_stay(wid: str) -> None:
    size = 50_000_000
    before = stored_bytes()
    ref = workflow.run_async(large.bind(size), workflow_id=wid)
    ray.wait([ref])
    del ref
    wait_until_stored(before + size // 2)


@ray.remote(num_cpus=0)
def large_later(size: int, gate: Gate) -> np.ndarray:
    gate.wait()
    return np.ones(size // 8)


def test_who_waits_by_get_output_gets_the_live_copy(
    wid: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = workflow.run_async(large_later.bind(50_000_000, gate), workflow_id=wid)
    asked = threading.Event()
    ready = Patience.ready

    def note(self: Patience, answer: ray.ObjectRef) -> bool:
        asked.set()
        return ready(self, answer)

    monkeypatch.setattr(Patience, "ready", note)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(workflow.get_output, wid)
        assert asked.wait(60.0)
        gate.open()
        assert is_shared(waiting.result())
    assert not is_shared(workflow.get_output(wid))
    del ref


def test_a_live_copy_that_is_lost_is_read_from_its_blob(wid: str) -> None:
    array = workflow.run(large.bind(1_000_000), workflow_id=wid)
    connection = connect()
    row = read_row(connection.storage, wid)
    events = History(connection.storage, row, row.seq - 1).events()
    (event,) = (e for e in events if isinstance(e, WorkflowSucceeded))
    lost = lose.remote()
    back = read_output(connection, row, event.output, lost)
    np.testing.assert_array_equal(back, array)


@ray.remote
def lose() -> None:
    raise ray.exceptions.ObjectLostError("00", "", "")
