"""Many workflows in one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Gate, Marks


@ray.remote
def double(x):
    return 2 * x


@ray.remote
def held(marks: Marks, gate: Gate):
    marks.add("held")
    gate.wait()


@ray.remote
def total(array):
    return float(array.sum())


def test_many_workflows(wid: str) -> None:
    ids = [f"{wid}-{index}" for index in range(200)]
    refs = workflow.run_async_many(
        [double.bind(index) for index in range(200)], workflow_ids=ids, metadata={"batch": wid}
    )
    assert ray.get(refs) == [2 * index for index in range(200)]
    assert {workflow.get_status(i) for i in ids} == {workflow.SUCCESSFUL}
    assert workflow.get_metadata(ids[7])["user_metadata"] == {"batch": wid}
    assert ray.get(workflow.run_async_many([double.bind(4)])) == [8]
    assert workflow.run_async_many([]) == []


def test_one_that_is_refused_keeps_nobody_from_it(wid: str, marks: Marks, gate: Gate) -> None:
    workflow.run_async(held.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    refused, fresh = workflow.run_async_many(
        [double.bind(1), double.bind(2)], workflow_ids=[wid, f"{wid}-fresh"]
    )
    assert ray.get(fresh) == 4
    with pytest.raises(workflow.WorkflowAlreadyRunningError):
        ray.get(refused)
    with pytest.warns(UserWarning, match="another DAG"):
        (again,) = workflow.run_async_many([double.bind(9)], workflow_ids=[f"{wid}-fresh"])
    assert ray.get(again) == 4


def test_bad_input_starts_nothing(wid: str, storage_dir: Path) -> None:
    before = {path.name for path in (storage_dir / "blobs").iterdir()}
    good = total.bind(np.ones(50_000))
    for dags, ids, error, message in (
        (good, None, TypeError, "a list of DAGs"),
        ([good, 5], None, TypeError, "Input should be a DAG, not int"),
        ([good], wid, TypeError, "a list of ids, not str"),
        ([good, good], [wid], ValueError, "2 DAGs, and 1 workflow_ids"),
        ([good, good], [wid, wid], ValueError, "more than once"),
        ([good, good], [wid, ""], ValueError, "empty"),
        ([good, double.bind(1, 2)], [wid, f"{wid}-2"], TypeError, "can't be called"),
    ):
        with pytest.raises(error, match=message):
            workflow.run_async_many(dags, workflow_ids=ids)
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(wid)
    assert {path.name for path in (storage_dir / "blobs").iterdir()} == before
