"""What a worker makes of an attempt: its result, its error, what it leaves in the storage."""

from __future__ import annotations

import os

import pytest

from ray_workflows._capture.values import ValueReader
from ray_workflows._model.inputs import AttemptReturned
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.memory import MemoryStorage
from tests.unit.workers import INCARNATION, attempt, run


def large() -> bytes:
    """Another value each time, which is too large for the journal."""
    return os.urandom(100_000)


def test_the_live_value_is_the_stored_one_though_the_attempt_ran_before() -> None:
    """As when a neighbour in its batch killed the worker after it had written its result."""
    storage = MemoryStorage()
    request = attempt(large)
    keys = []
    for number in (1, 2):
        (report,), live = run(storage, request, number=number)
        assert isinstance(report, AttemptReturned)
        blob = report.value.data
        assert isinstance(blob, Blob)
        stored = ValueReader(storage, INCARNATION).read(report.value, where="result")
        assert live == {blob.key: stored}
        keys.append(blob)
    # What the first execution left goes with the workflow.
    storage.delete_blobs(INCARNATION)
    for blob in keys:
        with pytest.raises(StorageCorruptError):
            storage.read_blob(INCARNATION, blob)
