"""Waiting for workflows: seats for calls that wait, and what clients that poll are answered.

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

#: How long a call waits at most, in seconds. Its client asks again, if it is still there.
SIT_SECONDS = 60.0

#: Clients that were forgotten and are still known by name.
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
        """Take a seat, if there is one; whether there was."""
        with self.lock:
            seated = self.taken < self.count
            self.taken += seated
        return seated

    def give_back(self) -> None:
        """A call is over that has taken one."""
        with self.lock:
            self.taken -= 1

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Scope in which a seat is taken, if there is one; whether there is."""
        seated = self.take()
        try:
            yield seated
        finally:
            if seated:
                self.give_back()


#: What is watched: a workflow by its id, and whether since its submission.
Watch = tuple[str, bool]


class WaitingPoll:
    """A poll that is not answered.

    Args:
        poll: what came.
        ready: called, once or more, when its answer can be taken.
    """

    def __init__(self, poll: Poll, ready: Callable[[], None]) -> None:
        self.poll = poll
        self.ready = ready
        self.seated = False
        self.turned_away = False
        #: Watches of its client are lost.
        self.unknown = False


#: How many bytes of outputs wait for the next poll of a client, which may be gone: of what is seen
#: beyond that, it reads the outputs from the storage.
KEPT_BYTES = 64 * 1024 * 1024


class WatchList:
    """What one client waits for. ``polled_at`` tells whether it is still there, ``life`` which life
    of it is the latest."""

    def __init__(self, now: float) -> None:
        self.polled_at = now
        self.life = ""
        #: Watches that have seen nothing: of each workflow that of its submission, and one for all
        #: others. Were these one, a client that has asked for its output otherwise would take what
        #: it sees for the answer to that, and the ref of the submission may come later.
        self.pending: dict[Watch, WatchRequest] = {}
        self.answered: list[tuple[str, Watched]] = []
        #: How many bytes of outputs are in there.
        self.kept_bytes = 0
        #: How often this life was given something.
        self.batches = 0
        #: The poll that waits; an older one is over when another one comes.
        self.waiting: WaitingPoll | None = None

    def begin(self, life: str) -> None:
        """This life of the client is the latest: polls of others are over. A call of an earlier one
        that comes late is not told from it, but then the latest life has to begin again."""
        if self.life != life:
            self.life = life
            self.batches = 0
            self.wait(None)

    def knows(self, poll: Poll) -> bool:
        """Whether a poll is of the latest life, and of one that got all it was given: an answer may
        be lost on its way, and what it said with it."""
        self.begin(self.life or poll.life)
        if poll.life != self.life:
            return False
        return poll.batches in (None, self.batches)

    def wait(self, poll: WaitingPoll | None) -> None:
        """Let a poll wait in the place of another one, which is over."""
        before, self.waiting = self.waiting, poll
        if before is not None:
            before.ready()

    def sees(self, watch: Watch, after: int | None) -> bool:
        """Whether a pending watch sees this too, and no later."""
        pending = self.pending.get(watch)
        if pending is None:
            return False
        return after is None or (pending.after is not None and pending.after <= after)

    def forget(self) -> list[WatchRequest]:
        """Nobody is waited for any more: the watches that are to be withdrawn."""
        withdrawn = list(self.pending.values())
        self.pending.clear()
        return withdrawn

    def tell(self, watch: Watch, request: WatchRequest, watched: Watched | Exception) -> None:
        """A watch is answered. Nothing stays live until a client comes that may be gone."""
        if isinstance(watched, Exception):
            watched = Watched(None)  # The client looks for itself.
        if self.pending.get(watch) is not request:
            return  # Another one has taken its place, which sees as much.
        del self.pending[watch]
        size = output_bytes(watched)
        if self.kept_bytes + size > KEPT_BYTES:
            watched, size = msgspec.structs.replace(watched, output=None), 0
        self.kept_bytes += size
        self.answered.append((request.workflow_id, msgspec.structs.replace(watched, live=None)))
        if self.waiting is not None:
            self.waiting.ready()

    def take(self, poll: WaitingPoll, now: float) -> list[tuple[str, Watched]]:
        """What a poll that is over has to be answered: nothing if another one has come since."""
        if self.waiting is not poll:
            return []
        self.waiting = None
        self.polled_at = now
        taken, self.answered, self.kept_bytes = self.answered, [], 0
        self.batches += bool(taken)
        return taken


def output_bytes(watched: Watched) -> int:
    """How many bytes of an output travel with what a watch saw."""
    value = None if watched.output is None else watched.output.value
    return len(value.data) if value is not None and isinstance(value.data, bytes) else 0


class LongPolls:
    """Serves clients that wait for many workflows with one poll each. A client that has not polled
    for long counts as gone: its watches are removed.

    Args:
        holder_id: the coordinator's, in every answer: when it changes, watches are lost.
        ask: asks the loop for what a watch sees.
        withdraw: asks it no more.
        clock: seconds of a clock that nobody sets.
        seats: room for polls that wait.
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
        #: Calls come on many threads, and what watches see on the loop's.
        self.lock = threading.Lock()
        self.lists: dict[str, WatchList] = {}
        #: Clients that are to be told that their watches are gone, should they still come.
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
        """A reply to a submission that has the client watch the workflow if it is accepted: before
        it is started, so that its end can't be missed."""
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
        """What a client waits for, which is about to wait for more."""
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
        """A client waits until its watches see something. ``ready`` is called when `end` has to
        be, if that is before `SIT_SECONDS` are over."""
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
        """What a poll is answered, which is over: nothing after `SIT_SECONDS`, or when another one
        of the client has come."""
        with self.lock:
            if waiting.seated:
                self.seats.give_back()
            watches = self.lists.get(waiting.poll.client)
            replaced = watches is not None and watches.waiting is not waiting
            seen = [] if watches is None else watches.take(waiting, self.clock())
            batches = 0 if watches is None else watches.batches
            if replaced and not waiting.unknown:
                # Ray may have repeated the call, and the other one took what there was: this answer
                # must not say that the client has it.
                batches = waiting.poll.batches or 0
        return Polled(self.holder_id, seen, waiting.turned_away, waiting.unknown, batches)
