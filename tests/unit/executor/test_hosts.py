"""Which listeners share a process, and how many processes are left over."""

from __future__ import annotations

from typing import Any

from ray_workflows._executor.scheduling.hosts import MAX_IDLE, MAX_SPLITS, Hosts
from tests.unit.scheduling import attempt, template


class Actors:
    """Starts and ends actors, which are numbers."""

    def __init__(self) -> None:
        self.started = 0
        self.alive: set[int] = set()
        self.hosts = Hosts(self.alive.remove)

    def start(self) -> int:
        self.started += 1
        self.alive.add(self.started)
        return self.started

    def listen(self, environment: str, call: Any, task: int = 1, tries: int = 1) -> int:
        request = attempt(template("f"), task, tries)
        host = self.hosts.take(environment, request, self.start)
        self.hosts.called(host, call)
        actor: int = host.actor
        return actor


def test_of_many_environments_few_processes_are_left() -> None:
    actors = Actors()
    for number in range(1_000):
        actors.listen(f"environment {number}", number)
        actors.hosts.ended(number, died=False)
    assert actors.alive == set(range(1_000 - MAX_IDLE + 1, 1_001))
    assert not actors.hosts.calls
    # One that is kept is used again.
    assert actors.listen("environment 999", "again") == 1_000
    actors.hosts.close()
    assert not actors.alive


def test_no_process_ends_that_serves_somebody() -> None:
    actors = Actors()
    for number in range(100):
        assert actors.listen(f"environment {number}", number) == number + 1
    assert len(actors.alive) == 100
    actors.listen("environment 0", "another")
    actors.hosts.ended(0, died=False)
    for number in range(1, 100):
        actors.hosts.ended(number, died=False)
    assert 1 in actors.alive
    assert len(actors.alive) == MAX_IDLE + 1


def test_a_host_that_has_died_is_replaced_once() -> None:
    actors = Actors()
    calls = ["a", "b", "c"]
    assert {actors.listen("environment", call) for call in calls} == {1}
    actors.hosts.ended("a", died=True)
    assert actors.listen("environment", "d") == 2
    actors.hosts.ended("b", died=True)
    assert actors.listen("environment", "e") == 2


def test_whose_host_died_is_soon_with_few_others_and_never_with_a_new_one() -> None:
    actors = Actors()
    for tries in range(1, MAX_SPLITS + 3):
        for task in range(1_000):
            actors.listen("environment", (task, tries), task, tries)
        mates = [
            task
            for task in range(1_000)
            if actors.hosts.calls[task, tries] is actors.hosts.calls[0, tries]
        ]
        assert len(mates) <= 2 * 1_000 / 2 ** min(tries - 1, MAX_SPLITS)
    # For ever no more than this many of one environment.
    assert actors.started <= 2 ** (MAX_SPLITS + 1)


def test_nobody_shares_the_host_of_a_guilty_one_again_and_again() -> None:
    actors = Actors()
    mates = set(range(1, 1_000))
    tries = 0
    # A host that both have is one that dies again: then both draw again.
    while mates and tries < MAX_SPLITS:
        tries += 1
        for task in (0, *mates):
            actors.listen("environment", (task, tries), task, tries)
        guilty = actors.hosts.calls[0, tries]
        mates = {task for task in mates if actors.hosts.calls[task, tries] is guilty}
    assert not mates


def test_what_is_no_listener_is_passed_over() -> None:
    Hosts(lambda actor: None).ended("a Ray task", died=True)


def test_whether_an_attempt_was_alone_when_its_host_died() -> None:
    actors = Actors()
    for call in ("a", "b"):
        actors.listen("environment", call)
    assert actors.hosts.ended("a", died=True)
    assert actors.hosts.ended("b", died=True)
    for call in ("c", "d"):
        actors.listen("environment", call)
    assert not actors.hosts.ended("c", died=False)
    assert not actors.hosts.ended("d", died=True)
