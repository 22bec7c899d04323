"""Long polls: their limit, and the answers to clients that poll.

Nothing here waits itself or reads a clock. The coordinator's threads wait; a simulation has none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import msgspec

from ray_workflows._coordinator.protocol import Poll, Polled
from ray_workflows._coordinator.requests import Reply, Watched, WatchRequest
from ray_workflows._model.answers import Accepted

#: The longest wait of a call, in seconds. Then its client polls again, if it still lives.
SIT_SECONDS = 60.0

#: How many removed clients are remembered by name.
MAX_FORGOTTEN = 10_000


class PollLimit:
    """Limits how many long polls block a thread. A call over the limit returns at once, and the
    client polls again later. If such calls queued instead, a nested `run` could deadlock.

    Args:
        count: how many may wait at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0
        self.lock = threading.Lock()

    def take(self) -> bool:
        """Count one more long poll, unless the limit is reached; whether it was counted."""
        with self.lock:
            seated = self.taken < self.count
            self.taken += seated
        return seated

    def give_back(self) -> None:
        """Count one long poll less."""
        with self.lock:
            self.taken -= 1

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Scope of a long poll; whether it is within the limit."""
        seated = self.take()
        try:
            yield seated
        finally:
            if seated:
                self.give_back()


#: A watched workflow: its id, and whether the watch began with its submission.
Watch = tuple[str, bool]


class WaitingPoll:
    """A poll that is not answered yet.

    Args:
        poll: the client's poll.
        ready: called, once or more, when there is an answer.
    """

    def __init__(self, poll: Poll, ready: Callable[[], None]) -> None:
        self.poll = poll
        self.ready = ready
        self.seated = False
        self.turned_away = False
        #: Whether watches of its client are lost.
        self.unknown = False


#: The most bytes of outputs that wait for the next poll of a client, which may be dead. The client
#: reads further outputs from the storage.
KEPT_BYTES = 64 * 1024 * 1024


class WatchList:
    """The watches of one client. ``polled_at``: its last poll; ``life``: its latest life."""

    def __init__(self, now: float) -> None:
        self.polled_at = now
        self.life = ""
        #: Unanswered watches: for each workflow that of its submission, and one for all others.
        #: They are separate because the client may watch the workflow for another reason before it
        #: registers the ref of its submission: that watch must not consume the submission's answer.
        self.pending: dict[Watch, WatchRequest] = {}
        self.answered: list[tuple[str, Watched]] = []
        #: The bytes of outputs in ``answered``.
        self.kept_bytes = 0
        #: How many answers with contents this life has got.
        self.batches = 0
        #: The waiting poll. A new poll ends an older one.
        self.waiting: WaitingPoll | None = None

    def begin(self, life: str) -> None:
        """Start a life of the client: polls of other lives end. A late call of an earlier life
        looks like a new life too; then the latest life has to subscribe again."""
        if self.life != life:
            self.life = life
            self.batches = 0
            self.wait(None)

    def knows(self, poll: Poll) -> bool:
        """Whether a poll is of the latest life, and that life got all earlier answers: an answer
        may be lost on its way."""
        self.begin(self.life or poll.life)
        if poll.life != self.life:
            return False
        return poll.batches in (None, self.batches)

    def wait(self, poll: WaitingPoll | None) -> None:
        """Let a poll wait in place of another one, which ends."""
        before, self.waiting = self.waiting, poll
        if before is not None:
            before.ready()

    def sees(self, watch: Watch, after: int | None) -> bool:
        """Whether a pending watch will see the same no later."""
        pending = self.pending.get(watch)
        if pending is None:
            return False
        return after is None or (pending.after is not None and pending.after <= after)

    def forget(self) -> list[WatchRequest]:
        """Remove all watches, and return those to withdraw from the loop."""
        withdrawn = list(self.pending.values())
        self.pending.clear()
        return withdrawn

    def tell(self, watch: Watch, request: WatchRequest, watched: Watched | Exception) -> None:
        """Queue the answer of a watch for the next poll. Drops the live ObjectRef, so that a dead
        client can't keep the object alive."""
        if isinstance(watched, Exception):
            watched = Watched(None)  # The client reads the storage itself.
        if self.pending.get(watch) is not request:
            return  # A newer watch that sees as much has replaced it.
        del self.pending[watch]
        size = output_bytes(watched)
        if self.kept_bytes + size > KEPT_BYTES:
            watched, size = msgspec.structs.replace(watched, output=None), 0
        self.kept_bytes += size
        self.answered.append((request.workflow_id, msgspec.structs.replace(watched, live=None)))
        if self.waiting is not None:
            self.waiting.ready()

    def take(self, poll: WaitingPoll, now: float) -> list[tuple[str, Watched]]:
        """The answers for a poll that ends; none if a newer poll has replaced it."""
        if self.waiting is not poll:
            return []
        self.waiting = None
        self.polled_at = now
        taken, self.answered, self.kept_bytes = self.answered, [], 0
        self.batches += bool(taken)
        return taken


def output_bytes(watched: Watched) -> int:
    """The bytes of an output in the answer of a watch."""
    value = None if watched.output is None else watched.output.value
    return len(value.data) if value is not None and isinstance(value.data, bytes) else 0


class LongPolls:
    """Serves clients that wait for many workflows with one poll each. A client that has not polled
    for long counts as gone: its watches are removed.

    Args:
        holder_id: the coordinator's, in every answer: when it changes, watches are lost.
        ask: adds a watch to the loop.
        withdraw: removes a watch from the loop.
        clock: a monotonic clock, in seconds.
        seats: the limit of waiting polls.
    """

    def __init__(
        self,
        holder_id: str,
        ask: Callable[[WatchRequest], None],
        withdraw: Callable[[WatchRequest], None],
        clock: Callable[[], float],
        seats: PollLimit,
    ) -> None:
        self.holder_id = holder_id
        self.ask = ask
        self.withdraw = withdraw
        self.clock = clock
        self.seats = seats
        #: Calls come on many threads, and answers of watches on the loop's.
        self.lock = threading.Lock()
        self.lists: dict[str, WatchList] = {}
        #: Removed clients, which have to subscribe again if they still live.
        self.forgotten: dict[str, bool] = {}

    # -- watches ---------------------------------------------------------------------------

    def subscribe(self, client: str, life: str, added: Iterable[tuple[str, int | None]]) -> str:
        """Add watches, ``(workflow id, after)`` as in `WatchRequest`, to those of a client.

        Returns the holder id: when it changes, watches given before are lost.
        """
        with self.lock:
            watches = self.of(client)
            watches.begin(life)
            for workflow_id, after in added:
                self.add(watches, (workflow_id, False), after)
        return self.holder_id

    def watching(self, client: str, workflow_id: str, reply: Reply) -> Reply:
        """A reply to a submission that also adds a watch of the client if the submission is
        accepted: before the workflow is started, so that the watch can't miss its end."""
        with self.lock:
            self.of(client)

        def watch(answer: object) -> None:
            if isinstance(answer, Accepted):
                with self.lock:
                    self.add(self.of(client), (workflow_id, True), None)
            reply(answer)

        return watch

    def add(self, watches: WatchList, watch: Watch, after: int | None) -> None:
        def tell(watched: Watched | Exception) -> None:
            with self.lock:
                watches.tell(watch, request, watched)

        if watches.sees(watch, after):
            return
        request = WatchRequest(watch[0], tell, after)
        before = watches.pending.get(watch)
        watches.pending[watch] = request
        if before is not None:
            self.withdraw(before)
        self.ask(request)

    def of(self, client: str) -> WatchList:
        """The watches of a client, which is about to add more."""
        now = self.clock()
        found = self.lists.get(client)
        if found is None:
            found = self.lists[client] = WatchList(now)
        found.polled_at = now
        oldest = now - 3 * SIT_SECONDS
        for gone in [c for c, watches in self.lists.items() if watches.polled_at < oldest]:
            for request in self.lists.pop(gone).forget():
                self.withdraw(request)
            self.forgotten[gone] = True
        while len(self.forgotten) > MAX_FORGOTTEN:
            del self.forgotten[next(iter(self.forgotten))]
        return found

    # -- polls -----------------------------------------------------------------------------

    def begin(self, poll: Poll, ready: Callable[[], None]) -> WaitingPoll:
        """Start a client's poll. ``ready`` is called when the caller has to call `end`, if that is
        before `SIT_SECONDS` are over."""
        waiting = WaitingPoll(poll, ready)
        with self.lock:
            watches = self.lists.get(poll.client)
            if self.forgotten.pop(poll.client, False) or watches is None:
                waiting.unknown = True
            else:
                watches.polled_at = self.clock()
                waiting.unknown = not watches.knows(poll)
            if watches is not None and not waiting.unknown:
                watches.wait(waiting)
                waiting.seated = self.seats.take()
            if watches is None or watches.waiting is not waiting or watches.answered:
                ready()
            elif not waiting.seated:
                waiting.turned_away = True
                ready()
        return waiting

    def end(self, waiting: WaitingPoll) -> Polled:
        """End a poll, and return its answer: an empty one after `SIT_SECONDS`, or if a newer poll
        of the client has come."""
        with self.lock:
            if waiting.seated:
                self.seats.give_back()
            watches = self.lists.get(waiting.poll.client)
            replaced = watches is not None and watches.waiting is not waiting
            seen = [] if watches is None else watches.take(waiting, self.clock())
            batches = 0 if watches is None else watches.batches
            if replaced and not waiting.unknown:
                # Ray may have repeated the call, and the newer poll took the answers: this answer
                # must not claim that the client has them.
                batches = waiting.poll.batches or 0
        return Polled(self.holder_id, seen, waiting.turned_away, waiting.unknown, batches)
