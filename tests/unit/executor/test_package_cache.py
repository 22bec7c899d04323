"""What the executor knows of packages in the cluster, while the Ray tasks that bring them end."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from ray_workflows._executor.scheduling import package_cache
from ray_workflows._executor.scheduling.package_cache import PackageCache
from ray_workflows._model.plan import Package
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage import MemoryStorage

PACKAGE = Package("gcs://a.zip", "i-package", Blob("content", 3, "sha256:0"))
GONE = {PACKAGE.uri}


class Bringing:
    """In the place of the Ray function that brings packages: each call ends when a test says so."""

    def __init__(self) -> None:
        self.calls: list[Future[None]] = []

    def remote(self, *args: Any) -> Any:
        call = Call()
        self.calls.append(call.ended)
        return call


class Call:
    """A Ray task, as its ObjectRef."""

    def __init__(self) -> None:
        self.ended: Future[None] = Future()

    def future(self) -> Future[None]:
        return self.ended


@pytest.fixture
def bringing(monkeypatch: pytest.MonkeyPatch) -> Bringing:
    bringing = Bringing()
    monkeypatch.setattr(package_cache, "bring", bringing)
    return bringing


def test_the_end_of_an_earlier_bringing_says_nothing_of_the_next_one(bringing: Bringing) -> None:
    """A package that was found missing is brought again before the first Ray task is heard of."""
    rack = PackageCache(MemoryStorage())
    rack.need([PACKAGE])
    assert rack.lacked([PACKAGE], GONE)
    (again,) = rack.need([PACKAGE])
    first, second = bringing.calls
    first.set_result(None)
    assert rack.need([PACKAGE]) == [again]
    second.set_result(None)
    assert rack.need([PACKAGE]) == []


def test_an_earlier_refusal_takes_nothing_from_the_next_bringing(bringing: Bringing) -> None:
    rack = PackageCache(MemoryStorage())
    rack.need([PACKAGE])
    rack.lacked([PACKAGE], GONE)
    (again,) = rack.need([PACKAGE])
    first, second = bringing.calls
    first.set_exception(RayTaskError("bring", "traceback", StorageCorruptError("damaged")))
    assert rack.need([PACKAGE]) == [again]
    assert rack.why_missing([PACKAGE], GONE) is None
    second.set_exception(RayTaskError("bring", "traceback", StorageCorruptError("damaged")))
    assert isinstance(rack.why_missing([PACKAGE], GONE), StorageCorruptError)
    assert rack.why_missing([PACKAGE], ()) is None
    assert len(rack.need([PACKAGE])) == 1
    assert len(bringing.calls) == 3
