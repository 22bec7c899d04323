"""What functions that close over large values cost, in the driver and in a worker."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from ray_workflows._capture.classes import OWN
from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.values import ValueWriter
from ray_workflows._executor.protocol import AttemptRequest, AttemptTemplate
from ray_workflows._executor.worker import attempt as attempt_module
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._executor.worker.function_cache import FunctionCache, Loaded
from ray_workflows._model.plan import Environment, Plan, TaskOptions
from ray_workflows.storage import MemoryStorage
from ray_workflows.storage.base import Storage
from tests.unit.workers import Process

SIZE = 1_000_000


def over(data: Any) -> Callable[..., int]:
    def length(more=0):
        return len(data) + more

    return length


def captured(function: Any, storage: Storage) -> Plan:
    writer = ValueWriter(storage, "i1")
    return capture_plan(
        ray.remote(function).bind(), writer=writer, environment=Environment(), prefix="p"
    )


def attempt(plan: Plan, storage: Storage) -> AttemptRun:
    template = AttemptTemplate("w", "i1", plan.functions[0], TaskOptions(), Environment(), ())
    request = AttemptRequest(template, 0, "t", 1, 1, plan.tasks[0].arguments, True)
    return AttemptRun(request, storage, None, Process(), 1, 1)


class Costs:
    kept = peak = 0.0


@contextmanager
def traced() -> Iterator[Costs]:
    """What is allocated inside: what of it is there at the end, and the most there was, in units of
    `SIZE`."""
    costs = Costs()
    gc.collect()
    tracemalloc.start()
    try:
        yield costs
        gc.collect()
        kept, peak = tracemalloc.get_traced_memory()
        costs.kept, costs.peak = kept / SIZE, peak / SIZE
    finally:
        tracemalloc.stop()


def test_a_driver_keeps_nothing_of_functions_that_it_let_go() -> None:
    captured(over(b""), MemoryStorage())
    with traced() as costs:
        for _ in range(30):
            captured(over(os.urandom(SIZE)), MemoryStorage())
    assert costs.kept < 2


def test_a_capture_copies_a_function_a_few_times() -> None:
    """Once for the pickle, and as often as the storage does, here once."""
    function = over(os.urandom(SIZE))
    captured(over(b""), MemoryStorage())
    with traced() as costs:
        captured(function, MemoryStorage())
    assert costs.peak < 3


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> FunctionCache:
    cache = FunctionCache(max_functions=256, max_bytes=4 * SIZE)
    monkeypatch.setattr(attempt_module, "function_cache", cache)
    return cache


def test_a_worker_keeps_functions_within_a_bound_in_bytes(cache: FunctionCache) -> None:
    storages = [MemoryStorage() for _ in range(30)]
    plans = [captured(over(os.urandom(SIZE)), storage) for storage in storages]
    attempts = [attempt(*each) for each in zip(plans, storages, strict=True)]
    attempts[0].load()
    with traced() as costs:
        for each in attempts[1:]:
            function, args, kwargs = each.load()
            assert function(*args, **kwargs) == SIZE
            del function
    assert costs.kept < 5
    assert costs.peak < 8
    assert len(cache.kept) == 3  # Of a little more than SIZE each.
    again, _, _ = attempts[-1].load()
    assert attempts[-1].load()[0] is again


def test_one_that_is_larger_than_the_bound_is_kept_until_the_next(cache: FunctionCache) -> None:
    storage = MemoryStorage()
    large, small = [
        attempt(captured(over(os.urandom(size)), storage), storage) for size in (5 * SIZE, 10)
    ]
    first, _, _ = large.load()
    assert large.load()[0] is first
    small.load()
    assert large.load()[0] is not first


def test_the_cache_is_bounded_in_number_and_counts_its_bytes() -> None:
    cache = FunctionCache(max_functions=3, max_bytes=100)
    for number in range(10):
        cache.put(number, Loaded(print, OWN, 20))
        cache.put(number, Loaded(print, OWN, 10))
    assert (list(cache.kept), cache.nbytes) == ([7, 8, 9], 30)
    assert cache.get(7) is not None
    cache.put("large", Loaded(print, OWN, 85))
    assert (list(cache.kept), cache.nbytes) == ([7, "large"], 95)
    cache.drop(7)
    cache.drop(7)
    assert (list(cache.kept), cache.nbytes) == (["large"], 85)
    assert cache.get(8) is None
