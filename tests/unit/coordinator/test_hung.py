"""Calls of the storage that never return: none of them stops a coordinator for ever."""

from __future__ import annotations

import queue
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray_workflows._coordinator import actor
from ray_workflows._coordinator.actor import CoordinatorService as Host
from ray_workflows._coordinator.hung import CHECK_SECONDS, HUNG_SECONDS, HungCalls
from tests.unit.coordinator.test_failover import Coordinator, World


@pytest.fixture
def world() -> World:
    return World()


def hang(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """From now on no blocking work returns; what makes it return."""
    hung: list[Callable[[], None]] = []
    call = coordinator.call
    monkeypatch.setattr(
        coordinator, "call", lambda *work, **named: hung.append(lambda: call(*work))
    )
    return hung


@pytest.mark.parametrize("what", ["commit", "lease"])
def test_a_call_that_never_returns_ends_the_process(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    coordinator = Coordinator(world, "c", auto_resume=False)
    ended: list[float] = []
    HungCalls(coordinator.loop, coordinator.lease, lambda: ended.append(world.clock.now))
    world.pass_time(HUNG_SECONDS)
    if what == "commit":
        # The lease goes on.
        commits: list[Any] = []
        monkeypatch.setattr(
            coordinator.loop.store.offloader, "call", call_but(coordinator, commits)
        )
        coordinator.submit("w")
        assert commits
    else:
        hang(coordinator, monkeypatch)
    began = world.clock.now
    world.pass_time(HUNG_SECONDS - 10.0)
    assert ended == []
    world.pass_time(3 * CHECK_SECONDS)
    assert ended
    assert ended[0] - began <= HUNG_SECONDS + 3 * CHECK_SECONDS


def call_but(coordinator: Coordinator, commits: list[Any]) -> Callable[..., None]:
    """Does what blocks, but for commits, which never return."""
    call = coordinator.call

    def each(work: Callable[[], Any], then: Callable[[Any], None], *, brief: bool = False) -> None:
        if "RetryingStorage.commit" in getattr(then, "__qualname__", ""):
            commits.append(then)
        else:
            call(work, then)

    return each


def test_a_process_that_was_stopped_for_long_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has returned meanwhile is looked at before it is judged."""
    coordinator = Coordinator(world, "c", auto_resume=False)
    ended: list[float] = []
    HungCalls(coordinator.loop, coordinator.lease, lambda: ended.append(world.clock.now))
    with monkeypatch.context() as patched:
        hung = hang(coordinator, patched)
        while not hung:
            world.pass_time(1.0)
        world.clock.now += 2 * HUNG_SECONDS
        coordinator.step()
    for each in hung:
        each()
    world.pass_time(3 * CHECK_SECONDS)
    assert ended == []


def test_a_worker_is_answered_though_nothing_comes_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It kept one of the threads for reports for ever."""
    monkeypatch.setattr(actor, "WORKER_SECONDS", 0.01)
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    executor = SimpleNamespace(batch_done=lambda wire, answer: asked.put(answer))
    report: Any = SimpleNamespace(executor=executor)
    assert Host.batch_done(report, b"") is None
    assert asked.get_nowait()
