"""Broken waiters and long polls: each breaks one promise, and `WorldOfDrivers` has to see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray_workflows._capture.values import ValueReader
from ray_workflows._client import outputs as outputs_module
from ray_workflows._client import patience as patience_module
from ray_workflows._client import waiter as waiter_module
from ray_workflows._client.outputs import Awaited
from ray_workflows._client.waiter import Seen, UnopenedValues, Waiter
from ray_workflows._coordinator.long_polls import LongPolls, PollLimit, WatchList
from ray_workflows._coordinator.protocol import Poll
from tests.simulation.mutations import Mutation, Patch

MUTATIONS: dict[str, Mutation] = {}


def breaks(*kinds: str, **trouble: float) -> Any:
    """Register a mutation, with the kinds of violation it may show as and where to look."""

    def register(patch: Patch) -> Patch:
        MUTATIONS[patch.__name__] = Mutation(patch, kinds, trouble, False)
        return patch

    return register


# -- what the coordinator does -------------------------------------------------------------


@breaks("ref")
def nobody_wakes_a_poll_that_waits(patch: Any) -> None:
    def tell(self: WatchList, *arguments: Any) -> None:
        waiting, self.waiting = self.waiting, None
        original(self, *arguments)
        self.waiting = waiting

    original = WatchList.tell
    patch.setattr(WatchList, "tell", tell)


@breaks("kept", "ref")
def a_watch_that_has_seen_something_stays(patch: Any) -> None:
    def tell(self: WatchList, watch: Any, *arguments: Any) -> None:
        pending = self.pending.get(watch)
        original(self, watch, *arguments)
        if pending is not None:
            self.pending[watch] = pending

    original = WatchList.tell
    patch.setattr(WatchList, "tell", tell)


@breaks("ref", answer_lost=0.2)
def answers_that_are_lost_are_not_missed(patch: Any) -> None:
    def knows(self: WatchList, poll: Poll) -> bool:
        self.begin(self.life or poll.life)
        return poll.life == self.life

    patch.setattr(WatchList, "knows", knows)


@breaks("ref", waiter_dies=0.15, call_late=0.9, call_twice=0.9)
def polls_of_earlier_lives_take_answers(patch: Any) -> None:
    patch.setattr(WatchList, "knows", lambda self, poll: True)


@breaks("kept")
def polls_keep_their_seats(patch: Any) -> None:
    patch.setattr(PollLimit, "give_back", lambda self: None)


@breaks("ref", ref_late=1.0)
def a_submission_and_others_share_a_watch(patch: Any) -> None:
    def add(self: LongPolls, watches: WatchList, watch: Any, after: int | None) -> None:
        original(self, watches, (watch[0], False), after)

    original = LongPolls.add
    patch.setattr(LongPolls, "add", add)


# -- what a driver does that blocks --------------------------------------------------------


@breaks("ref", answer_lost=0.3)
def a_call_that_is_lost_is_the_end_of_waiting(patch: Any) -> None:
    patch.setattr(patience_module, "AWAY", ())


# -- what the waiter does ------------------------------------------------------------------


@breaks("pace")
def a_poll_is_tried_again_without_a_pause(patch: Any) -> None:
    def sleep(seconds: float) -> Any:
        return original(0.0)

    original = asyncio.sleep
    patch.setattr(waiter_module.asyncio, "sleep", sleep)


@breaks("ref")
def a_ref_takes_what_has_its_id_now(patch: Any) -> None:
    def read_row(self: Awaited) -> Any:
        return outputs_module.read_row(self.reader.storage, self.workflow_id)

    patch.setattr(Awaited, "read_row", read_row)


@breaks("ref")
def what_was_seen_early_is_dropped(patch: Any) -> None:
    def tell(self: Waiter, workflow_id: str, seen: Seen) -> None:
        original(self, workflow_id, seen)
        self.early.clear()

    original = Waiter.tell
    patch.setattr(Waiter, "tell", tell)


@breaks("ref")
def a_new_coordinator_is_told_nothing(patch: Any) -> None:
    async def watch_again(self: Waiter) -> None:
        return None

    patch.setattr(Waiter, "watch_again", watch_again)


@breaks("ref", reads_fail=0.3)
def a_storage_that_is_away_fails_a_ref(patch: Any) -> None:
    async def patiently(read: Callable[[], Any], fresh: bool) -> Any:
        return await asyncio.to_thread(read)

    patch.setattr(waiter_module, "patiently", patiently)


@breaks("unpickled")
def the_waiter_unpickles_values(patch: Any) -> None:
    def values(self: UnopenedValues, incarnation: str) -> ValueReader:
        return ValueReader(self.storage, incarnation)

    patch.setattr(UnopenedValues, "values", values)
