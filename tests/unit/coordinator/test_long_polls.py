"""Calls that wait in the coordinator, and what a client is told that asks later, or never."""

from __future__ import annotations

import pytest

from ray_workflows._coordinator import long_polls
from ray_workflows._coordinator.long_polls import SIT_SECONDS, LongPolls, PollLimit
from ray_workflows._coordinator.protocol import Poll, Polled
from ray_workflows._coordinator.requests import Watched, WatchRequest
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Outcome, Value
from tests.unit.coordinator.test_failover import Coordinator, World


class Clock:
    """Time, set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Polls(LongPolls):
    """Long polls of a coordinator that drives nothing yet: watches wait until `see`."""

    def __init__(self, seats: int = 8) -> None:
        self.time = Clock()
        self.asked: list[WatchRequest] = []
        super().__init__(
            "holder", self.asked.append, self.asked.remove, self.time, PollLimit(seats)
        )

    def watch(self, client: str, *workflow_ids: str, life: str = "life") -> None:
        self.subscribe(client, life, [(workflow_id, None) for workflow_id in workflow_ids])

    def see(self, workflow_id: str, watched: Watched | None = None) -> None:
        """Answer all that watch a workflow."""
        for request in [each for each in self.asked if each.workflow_id == workflow_id]:
            self.asked.remove(request)
            request.reply(watched or Watched(None))

    def poll(self, client: str, batches: int | None = None, life: str = "life") -> Asked:
        return Asked(self, Poll(client, life, batches))


class Asked:
    """A poll, and whether its answer can be taken."""

    def __init__(self, polls: LongPolls, poll: Poll) -> None:
        self.polls = polls
        self.ready = False
        self.waiting = polls.begin(poll, self.wake)

    def wake(self) -> None:
        self.ready = True

    def answer(self) -> Polled:
        return self.polls.end(self.waiting)


def seen(polled: Polled) -> list[str]:
    return [workflow_id for workflow_id, _ in polled.seen]


def test_a_live_copy_is_not_kept_for_a_client_that_may_be_gone() -> None:
    polls = Polls()
    polls.watch("client", "w")
    polls.see("w", Watched(None, live="ref"))
    ((_, watched),) = polls.lists["client"].answered
    assert watched.live is None


def test_a_repeated_poll_that_took_nothing_does_not_say_that_it_did() -> None:
    """Ray repeats a call: of two, the one that took the answer may not be the one that is heard."""
    polls = Polls()
    polls.watch("client", "w")
    first, repeated = polls.poll("client", 0), polls.poll("client", 0)
    assert first.ready
    polls.see("w")
    assert seen(repeated.answer()) == ["w"]
    late = first.answer()
    assert (seen(late), late.batches) == ([], 0)
    # So it is asked for again.
    assert polls.poll("client", late.batches).answer().unknown


def test_outputs_that_nobody_comes_for_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is no room for is read from the storage by the client, should it come."""
    monkeypatch.setattr(long_polls, "KEPT_BYTES", 1000)
    polls = Polls()
    names = [f"w{number}" for number in range(50)]
    for again in range(2):
        polls.watch("gone", *names)
        for name in names:
            row = CatalogRow(name, "i", 1, WorkflowStatus.SUCCESSFUL, "holder", 0.0)
            polls.see(name, Watched(row, Outcome(Value(bytes(100)))))
        polled = polls.poll("gone", again).answer()
        assert [name for name, watched in polled.seen if watched.row is not None] == names
        kept = [watched.output is not None for _, watched in polled.seen]
        assert kept == [True] * 10 + [False] * 40


def test_what_is_there_is_taken_at_once_and_once() -> None:
    polls = Polls()
    polls.watch("client", "a", "b")
    polls.see("a")
    polls.see("b")
    poll = polls.poll("client")
    assert poll.ready
    assert seen(poll.answer()) == ["a", "b"]
    assert seen(polls.poll("client", 1).answer()) == []


def test_a_poll_waits_for_news() -> None:
    polls = Polls()
    polls.watch("client", "w")
    poll = polls.poll("client")
    assert not poll.ready
    polls.see("w")
    assert poll.ready
    assert seen(poll.answer()) == ["w"]


def test_a_bug_of_ours_is_a_reason_to_look() -> None:
    polls = Polls()
    polls.watch("client", "w")
    polls.asked[0].reply(RuntimeError("a bug"))
    assert polls.poll("client").answer().seen == [("w", Watched(None))]


def test_the_poll_of_a_life_that_is_over_takes_nothing() -> None:
    polls = Polls()
    polls.watch("client", "w", life="old")
    old = polls.poll("client", life="old")
    polls.watch("client", life="new")
    assert old.ready
    late = polls.poll("client", life="old")
    new = polls.poll("client", life="new")
    polls.see("w")
    assert seen(old.answer()) == seen(late.answer()) == []
    assert seen(new.answer()) == ["w"]


def test_a_poll_that_comes_again_takes_the_place_of_the_first() -> None:
    """Ray repeats a call that it takes for lost: only the last call is answered."""
    polls = Polls()
    polls.watch("client", "w")
    first, second = polls.poll("client"), polls.poll("client")
    assert first.ready
    polls.see("w")
    assert seen(first.answer()) == []
    assert seen(second.answer()) == ["w"]


def test_an_answer_that_was_lost_is_missed_until_the_client_knows() -> None:
    polls = Polls()
    polls.watch("client", "w")
    polls.see("w")
    assert polls.poll("client", 0).answer().batches == 1
    for _ in range(2):
        again = polls.poll("client", 0)
        assert again.ready
        polled = again.answer()
        assert (polled.unknown, polled.batches) == (True, 1)
    polls.watch("client", "w")
    polls.see("w")
    polled = polls.poll("client", 1).answer()
    assert (polled.unknown, polled.batches, seen(polled)) == (False, 2, ["w"])


def test_one_watch_is_enough_for_all_refs_to_a_workflow() -> None:
    polls = Polls()
    polls.subscribe("client", "life", [("w", None), ("w", 7), ("w", 9), ("w", None)])
    assert [request.after for request in polls.asked] == [7]
    polls.see("w")
    polls.subscribe("client", "life", [("w", 9)])
    assert [request.after for request in polls.asked] == [9]


def test_clients_that_are_gone_are_forgotten() -> None:
    polls = Polls()
    polls.watch("gone", "w")
    polls.watch("here", "w")
    polls.time.now += 2 * SIT_SECONDS
    polls.poll("here").answer()
    polls.time.now += 2 * SIT_SECONDS
    polls.watch("another")
    assert polls.lists.keys() == {"here", "another"}
    assert len(polls.asked) == 1
    assert polls.poll("gone").answer().unknown
    assert not polls.poll("here").answer().unknown


def test_who_finds_no_seat_is_told_so_at_once() -> None:
    polls = Polls(seats=1)
    polls.watch("a", "w")
    polls.watch("b", "w")
    waiting, other = polls.poll("a"), polls.poll("b")
    assert (waiting.ready, other.ready) == (False, True)
    assert other.answer().turned_away
    assert not waiting.answer().turned_away
    assert not polls.poll("b").ready


def test_there_are_so_many_seats() -> None:
    seats = PollLimit(2)
    with seats.one() as first, seats.one() as second, seats.one() as third:
        assert (first, second, third) == (True, True, False)
        assert seats.taken == 2
        assert not seats.take()
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
        owner.loop.watchers.add(request)
    owner.loop.watchers.withdraw(withdrawn)
    assert owner.loop.watchers.waiting["w"] == [kept]
    owner.loop.ask("w", msg.Cancel(), lambda answer: None)
    owner.step()
    assert told == ["kept"]
    # It was answered a moment before its caller gave up.
    owner.loop.watchers.withdraw(kept)
