"""Submissions and signals whose large values meet a storage that is away for a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import ray

import ray_workflows as workflow
from ray_workflows._client import connection
from ray_workflows.storage.files.blobs import BlobFiles


@ray.remote
def size_of(data: bytes) -> int:
    return len(data)


LARGE = bytes(2_000_000)


def run(wid: str) -> int:
    size: int = workflow.run(size_of.bind(LARGE), workflow_id=wid)
    return size


def run_async(wid: str) -> int:
    size: int = ray.get(workflow.run_async(size_of.bind(LARGE), workflow_id=wid))
    return size


def signal(wid: str) -> int:
    ref = workflow.run_async(size_of.bind(workflow.wait_for_signal("s")), workflow_id=wid)
    workflow.signal(wid, "s", LARGE)
    size: int = ray.get(ref)
    return size


class Away:
    """Makes this many writes of blobs by this process fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        original = BlobFiles.write_blob

        def write_blob(blobs: BlobFiles, incarnation: str, key: str, chunks: Iterable[Any]) -> Any:
            if self.left > 0:
                self.left -= 1
                raise workflow.StorageUnavailableError("the connection was cut")
            return original(blobs, incarnation, key, chunks)

        monkeypatch.setattr(BlobFiles, "write_blob", write_blob)


@pytest.mark.parametrize("verb", [run, run_async, signal])
def test_a_storage_that_is_away_for_a_moment(
    wid: str, verb: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, 2)
    assert verb(wid) == len(LARGE)
    assert away.left == 0


def test_a_storage_that_stays_away(wid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.5)
    away = Away(monkeypatch, 1000)
    with pytest.raises(workflow.StorageUnavailableError, match="was cut"):
        run(wid)
    assert away.left > 900
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(wid)
