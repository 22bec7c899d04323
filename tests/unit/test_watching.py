"""Calls that wait in the coordinator, and what a client is told that asks later, or never."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ray_workflows._coordinator import watching
from ray_workflows._coordinator.requests import CancelRequest, Watched, WatchRequest
from ray_workflows._coordinator.watching import SIT_SECONDS, Seats, WatchList, WatchLists
from tests.unit.test_orphans import Coordinator, World

#: A test that waits longer than this, in seconds, hangs.
HANG_SECONDS = 20.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def waiting(watches: WatchList, life: str, pool: ThreadPoolExecutor) -> Future:
    """A poll that has nothing to take yet."""
    began = threading.Event()
    wait_for = watches.changed.wait_for

    def tell_and_wait(*args: object) -> object:
        # The lock is held: whoever tells anything comes after the wait has begun.
        began.set()
        return wait_for(*args)

    watches.changed.wait_for = tell_and_wait
    taken = pool.submit(watches.take, life, HANG_SECONDS)
    assert began.wait(HANG_SECONDS)
    return taken


def seen(answered: list[tuple[str, Watched]]) -> list[str]:
    return [workflow_id for workflow_id, _ in answered]


def test_a_live_copy_is_not_kept_for_a_client_that_may_be_gone() -> None:
    watches = WatchList()
    watches.tell("w", Watched(None, live="ref"))
    ((workflow_id, watched),) = watches.answered
    assert (workflow_id, watched.live) == ("w", None)


def test_what_is_there_is_taken_at_once_and_once() -> None:
    watches = WatchList()
    watches.tell("a", Watched(None))
    watches.tell("b", Watched(None))
    assert seen(watches.take("life", HANG_SECONDS)) == ["a", "b"]
    assert watches.take("life", 0.0) == []


def test_a_poll_waits_for_news(pool: ThreadPoolExecutor) -> None:
    watches = WatchList()
    taken = waiting(watches, "life", pool)
    watches.tell("w", Watched(None))
    assert seen(taken.result(HANG_SECONDS)) == ["w"]


def test_the_poll_of_a_life_that_is_over_takes_nothing(pool: ThreadPoolExecutor) -> None:
    watches = WatchList()
    old = waiting(watches, "old", pool)
    watches.begin("new")
    assert old.result(HANG_SECONDS) == []
    new = waiting(watches, "new", pool)
    watches.tell("w", Watched(None))
    assert seen(new.result(HANG_SECONDS)) == ["w"]


def test_clients_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(watching.time, "monotonic", lambda: now)
    lists = WatchLists()
    gone, here = lists.of("gone"), lists.of("here")
    now += 2 * SIT_SECONDS
    here.take("life", 0.0)
    now += 2 * SIT_SECONDS
    assert lists.of("another") is lists.known("another")
    assert lists.known("gone") is None
    assert lists.known("here") is here
    assert lists.of("gone") is not gone


def test_there_are_so_many_seats() -> None:
    seats = Seats(2)
    with seats.one() as first, seats.one() as second, seats.one() as third:
        assert (first, second, third) == (True, True, False)
        assert seats.taken == 2
    with pytest.raises(KeyError), seats.one():
        raise KeyError
    assert seats.taken == 0


def test_a_watch_that_is_withdrawn_is_not_kept() -> None:
    """A call sits for a minute, and a workflow can take days."""
    world = World()
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    told: list[str] = []
    withdrawn = WatchRequest("w", lambda watched: told.append("withdrawn"), None)
    kept = WatchRequest("w", lambda watched: told.append("kept"), None)
    for request in (withdrawn, kept):
        owner.verbs.ask(request)
    owner.verbs.withdraw(withdrawn)
    assert owner.loop.workflows["w"].watchers == [kept]
    owner.verbs.ask(CancelRequest("w", lambda answer: None))
    owner.step()
    assert told == ["kept"]
    # It was answered a moment before its caller gave up.
    owner.verbs.withdraw(kept)
