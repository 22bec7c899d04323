"""Stored bytes change under a workflow: it stops, names workflow, task and key, and goes on when
they are put back. What was committed does not run again."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from ray_workflows._coordinator.recovery import recover
from ray_workflows._environment import shared_items
from ray_workflows._environment.code.archive import pack
from ray_workflows._environment.code.packages import item_name
from ray_workflows._model.plan import Package
from ray_workflows._ray import private
from ray_workflows.storage import SqliteStorage
from tests.ray.marks import Gate, Marks, wait_until


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


@contextlib.contextmanager
def damaged_blob(path: Path, damage: Callable[[bytes], bytes]) -> Iterator[None]:
    """Another file of the same name; what is mapped keeps what it was."""
    path.rename(path.with_suffix(".away"))
    path.write_bytes(damage(path.with_suffix(".away").read_bytes()))
    try:
        yield
    finally:
        path.with_suffix(".away").rename(path)


@contextlib.contextmanager
def damaged_entry(
    directory: Path, incarnation: str, seq: int, damage: Callable[[bytes], bytes]
) -> Iterator[None]:
    key = (incarnation, seq)
    select = "SELECT entry FROM journal WHERE incarnation = ? AND seq = ?"
    update = "UPDATE journal SET entry = ? WHERE incarnation = ? AND seq = ?"
    with contextlib.closing(sqlite3.connect(directory / "workflows.sqlite", timeout=30)) as rival:
        ((entry,),) = rival.execute(select, key).fetchall()
        with rival:
            rival.execute(update, (damage(entry), *key))
        try:
            yield
        finally:
            with rival:
                rival.execute(update, (entry, *key))


@ray.remote
def make(marks: Marks) -> np.ndarray:
    marks.add("make")
    return np.arange(300_000)


@ray.remote(max_retries=0)
def add_up(marks: Marks, numbers: np.ndarray) -> int:
    marks.add("add_up")
    if marks.count("add_up") == 1:
        raise ValueError("not at first")
    return int(numbers.sum())


def blob_of(directory: Path, wid: str) -> tuple[str, Path]:
    """The incarnation of a workflow, and the file of its only large value."""
    row = SqliteStorage(directory).read_catalog(wid)
    assert row is not None
    (path,) = (directory / "blobs" / row.incarnation).glob("*-result")
    return row.incarnation, path


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_output(
    damage: Callable[[bytes], bytes], wid: str, marks: Marks, storage_dir: Path
) -> None:
    dag = make.options(**workflow.options(task_id="make-it")).bind(marks)
    workflow.run(dag, workflow_id=wid)
    incarnation, path = blob_of(storage_dir, wid)
    with damaged_blob(path, damage):
        with pytest.raises(workflow.StorageCorruptError) as caught:
            workflow.get_output(wid, task_id="make-it")
        for part in (wid, "make-it", path.name):
            assert part in str(caught.value)
        with pytest.raises(workflow.StorageCorruptError) as caught:
            workflow.get_output(wid)
        for part in (wid, path.name):
            assert part in str(caught.value)
    assert workflow.get_output(wid)[-1] == 299_999
    assert marks.counts() == {"make": 1}


def test_a_damaged_input(wid: str, marks: Marks, storage_dir: Path) -> None:
    dag = add_up.options(**workflow.options(task_id="sum")).bind(marks, make.bind(marks))
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag, workflow_id=wid)
    _, path = blob_of(storage_dir, wid)
    with damaged_blob(path, flip):
        workflow.resume_async(wid)
        wait_until(lambda: workflow.get_status(wid) == "RESUMABLE", "it stops")
        error = SqliteStorage(storage_dir).read_catalog(wid).error
        for part in ("StorageCorruptError", wid, "'sum'", path.name):
            assert part in error
    assert workflow.resume(wid) == sum(range(300_000))
    # The second time, it did not come to its input.
    assert marks.counts() == {"make": 1, "add_up": 2}


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_journal_entry(
    damage: Callable[[bytes], bytes], wid: str, marks: Marks, storage_dir: Path
) -> None:
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(add_up.bind(marks, make.bind(marks)), workflow_id=wid)
    incarnation, _ = blob_of(storage_dir, wid)
    with damaged_entry(storage_dir, incarnation, 2, damage):
        for verb in (workflow.resume, workflow.get_tasks):
            with pytest.raises(workflow.StorageCorruptError) as caught:
                verb(wid)
            for part in (wid, "2"):
                assert part in str(caught.value)
    assert workflow.resume(wid) == sum(range(300_000))
    assert marks.counts() == {"make": 1, "add_up": 2}


@ray.remote
def first(gate: Gate) -> None:
    gate.wait()


@ray.remote
def imports_it(_: None) -> int:
    import packed

    return packed.ANSWER


@ray.remote
def plain(_: None) -> int:
    return 1


def packages_of(storage: SqliteStorage, wid: str) -> tuple[Package, ...]:
    """Those that its tasks name."""
    found = recover(storage, wid)
    assert found is not None
    used = found.state.tasks[1].options.ray["runtime_env"]["working_dir"]
    return tuple(each for each in found.state.environment.packages if each.uri == used)


def test_a_missing_package(wid: str, gate: Gate, tmp_path: Path, storage_dir: Path) -> None:
    """It stops those that need it, says what is wrong, and is stored again by the next submission
    of the same files."""
    (tmp_path / "packed.py").write_text(f"ANSWER = 42  # {wid}")
    files = {"packed.py": str(tmp_path / "packed.py")}
    uri = f"gcs://_ray_pkg_{uuid.uuid4().hex}.zip"
    private.put_key(uri, b"".join(pack(files)))
    needs_it = imports_it.options(runtime_env={"working_dir": uri})
    bad = workflow.run_async(needs_it.bind(first.bind(gate)), workflow_id=wid)
    other = workflow.run_async(plain.bind(first.bind(gate)), workflow_id=f"{wid}-other")
    storage = SqliteStorage(storage_dir)
    (package,) = packages_of(storage, wid)
    path = storage_dir / "blobs" / package.incarnation / shared_items.KEY
    whole = path.read_bytes()
    path.unlink()
    gate.open()
    assert ray.get(other) == 1
    with pytest.raises(workflow.OutputNotAvailableError) as caught:
        ray.get(bad)
    error = storage.read_catalog(wid).error
    assert error in str(caught.value)
    for part in ("StorageCorruptError", item_name(package), str(path), "code='current'"):
        assert part in error
    assert workflow.get_status(wid) == "RESUMABLE"
    again = needs_it.bind(first.bind(gate))
    assert workflow.run(again, workflow_id=f"{wid}-again") == 42
    assert path.read_bytes() == whole
    assert workflow.resume(wid) == 42
