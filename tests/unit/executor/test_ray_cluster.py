"""What Ray is called with, and what is remembered of it from one Ray task to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray_workflows._executor import ray_cluster
from ray_workflows._executor.protocol import AttemptTemplate
from ray_workflows._executor.ray_cluster import RayCluster
from ray_workflows._executor.scheduling.hosts import MAX_IDLE
from ray_workflows.storage.memory import MemoryStorage
from tests.unit.scheduling import RayTask, Scheduling, attempt, template


class CallsWithoutRay(RayCluster):
    """Makes Ray functions as ever, and runs them nowhere. While it submits one, the head answers
    all threads that ask it."""

    def __init__(self, world: Scheduling) -> None:
        super().__init__(MemoryStorage(), None)
        self.pickled_home = b""
        self.world = world

    def remote(self, template: Any) -> Any:
        self.world.look_up()
        super().remote(template)
        return SimpleNamespace(remote=self.call)

    def call(self, loads: list[Any], home: bytes, asks: bool, *rest: Any) -> Any:
        self.world.cluster.tasks.append(RayTask(list(loads), asks))
        return self.world.cluster.tasks[-1]

    def cancel(self, ref: RayTask, *, force: bool) -> None:
        ref.canceled = True

    def tidy(self) -> None:
        """No package was brought."""


class World(Scheduling):
    """The executor over `Calls`. Threads that ask the head are answered in `look_up`."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.check()
        self.head_hangs = True
        self.executor.cluster = self.executor.dispatch.cluster = CallsWithoutRay(self)
        self.answers: list[tuple[Callable[[Any], None], Any]] = []

    def look_up(self, most: int | None = None) -> None:
        """The head answers. What the threads found waits for the loop to take it."""
        for work, then in self.asked[:most]:
            self.answers.append((then, work()))
        del self.asked[:most]

    def take_answers(self) -> None:
        """The loop takes what was there when it began."""
        answers, self.answers = self.answers, []
        for then, answer in answers:
            then(answer)
            self.check()


def shapes(count: int) -> list[AttemptTemplate]:
    return [template(f"f{number}", ray={"num_cpus": number + 1}) for number in range(count)]


def test_what_other_shapes_need_may_be_looked_up_while_a_ray_task_is_submitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Look-ups run on threads of their own, without the executor's lock."""
    monkeypatch.setattr(ray_cluster, "MAX_REMOTES", 1)
    world = World(slots=8)
    for task, each in enumerate(shapes(4)):
        world.start(attempt(each, task))
    world.flush()
    # All others are looked up while the first one is submitted.
    world.look_up(1)
    while world.answers:
        world.take_answers()
    assert len(world.tasks) == 4
    for ray_task in world.tasks:
        world.end_well(ray_task)
    assert sorted(world.outcomes) == [(task, "AttemptReturned") for task in range(4)]


def test_of_shapes_that_wait_only_the_oldest_is_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as are remembered wait for slots when one more comes."""
    monkeypatch.setattr(ray_cluster, "MAX_REMOTES", 3)
    world = World(slots=8)
    first, *others, last = shapes(4)
    for task, each in enumerate((first, *others, last)):
        world.start(attempt(each, task))
        world.flush()
        world.look_up()
        world.take_answers()
    for task, each in enumerate((*others, last), start=4):
        world.start(attempt(each, task))
        world.flush()
    assert not world.asked
    assert not world.answers
    world.start(attempt(first, 7))
    world.flush()
    assert len(world.asked) == 1
    world.look_up()
    world.take_answers()
    for ray_task in world.tasks:
        world.end_well(ray_task)
    assert sorted(world.outcomes) == [(task, "AttemptReturned") for task in range(8)]


def test_a_host_is_killed_on_a_thread_that_ray_does_not_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in Ray: it returns when the thread that reports the ends of calls has done its part.
    reported, killed = threading.Event(), threading.Event()

    def kill(actor: Any) -> None:
        assert reported.wait(60)
        killed.set()

    monkeypatch.setattr(ray_cluster.ray, "kill", kill)
    hosts = RayCluster(MemoryStorage(), None).hosts
    for number in range(MAX_IDLE + 1):
        request = attempt(template("f"), number)
        hosts.called(hosts.take(f"environment {number}", request, object), number)
        hosts.ended(number, died=False)
    reported.set()
    assert killed.wait(60)
