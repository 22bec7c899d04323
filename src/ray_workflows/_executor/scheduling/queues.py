"""Which attempts travel together in a Ray task, and when: a policy, with nothing of Ray in it.

A Ray task costs about a millisecond of CPU. Attempts of functions that have shown themselves short
share one; all others have one each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable

from ray_workflows._executor.protocol import AttemptTemplate
from ray_workflows._executor.scheduling.durations import (
    TARGET_SECONDS,
    WORTHWHILE_SECONDS,
    Durations,
    least,
)
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._model.plan import LISTENER

#: Ray tasks of one shape (resources, placement, environment) in flight at once. Enough to fill a
#: large cluster and to show demand to an autoscaler; a pending Ray task costs memory here, so not
#: all of a million ready tasks are submitted. Per shape, so that tasks that wait for a GPU hold
#: back no others.
MAX_IN_FLIGHT = 2_000

#: Batches that one Ray task has at once: one runs, one is at hand when it is through. Both together
#: are no more than its share of what there is, or than the least that is worth it.
AT_ONCE = 2

#: Work for each slot, in seconds, from which on more Ray tasks are submitted than there are capacity,
#: as many again: they wait, and show an autoscaler that there is work for more nodes.
DEMAND_SECONDS = 1.0


def take_run(queue: deque[InFlightAttempt]) -> list[InFlightAttempt]:
    """The first attempt of a queue with all that follow it. They wait nowhere else: whoever takes
    it takes them, also when its function has turned out to be slow meanwhile."""
    return run_of(queue.popleft())


def run_of(head: InFlightAttempt) -> list[InFlightAttempt]:
    """An attempt with all that follow it."""
    return [head, *head.followers]


class ReadyQueue:
    """Attempts of one shape that wait, by function, and how many Ray tasks of it are in flight."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[InFlightAttempt]] = {}
        self.submitted = 0
        #: Attempts in flight of functions of which nothing is known yet.
        self.trials: dict[str, int] = {}
        #: When slots will ask for the next batch, on the monotonic clock.
        self.expected: dict[Hashable, float] = {}
        #: Whether it will be asked again soon for a batch, whatever happens.
        self.looks_again = False

    @property
    def idle(self) -> bool:
        return not self.queues and not self.submitted

    def add(self, flight: InFlightAttempt, durations: Durations, capacity: int) -> bool:
        """Let it wait; whether there is now one more batch for each slot."""
        digest = flight.request.template.function.digest
        queue = self.queues.get(digest)
        if queue is None:
            queue = self.queues[digest] = deque()
        queue.append(flight)
        seconds = durations.get(digest)
        return seconds is not None and not len(queue) % (
            capacity * max(1, int(TARGET_SECONDS / seconds))
        )

    @property
    def template(self) -> AttemptTemplate:
        """That of an attempt that waits; there is one."""
        return next(iter(self.queues.values()))[0].request.template

    def take_all(self) -> list[InFlightAttempt]:
        """All that wait; none does any more."""
        taken = [one for queue in self.queues.values() for head in queue for one in run_of(head)]
        self.queues.clear()
        return taken

    def next_batch(
        self,
        durations: Durations,
        capacity: int,
        now: float,
        slots: int = 0,
        waits: bool = False,
    ) -> list[InFlightAttempt]:
        """What to submit now as one batch; empty if nothing is to be.

        Args:
            durations: what is known of the functions.
            capacity: how many tasks of this shape the cluster can run at once.
            now: the monotonic clock.
            slots: how many Ray tasks of it take one batch after the other.
            waits: whether one of them waits for a batch.
        """

        def take(digest: str, queue: deque[InFlightAttempt]) -> list[InFlightAttempt]:
            seconds = durations.get(digest)
            if queue[0].request.options.kind == LISTENER:
                # They wait in their host, for days if need be, and take no room.
                return take_run(queue)
            if queue[0].alone or (seconds is not None and seconds > TARGET_SECONDS):
                return take_run(queue) if self.submitted < MAX_IN_FLIGHT else []
            if seconds is None:
                return self.take_trial(digest, queue, capacity)
            if waits or self.deserves_slot(len(queue) * seconds, capacity, slots, now):
                return self.cut(queue, seconds, capacity)
            return []

        return self.first(take)

    def next_ahead(self, durations: Durations, capacity: int) -> list[InFlightAttempt]:
        """A batch for a slot that has one already; empty if another slot might come to need it:
        enough has to be left for one more batch of each."""

        def take(digest: str, queue: deque[InFlightAttempt]) -> list[InFlightAttempt]:
            seconds = durations.get(digest)
            if (
                seconds is None
                or seconds > TARGET_SECONDS
                or queue[0].alone
                or queue[0].needs_objects
            ):
                return []
            if len(queue) < capacity * least(seconds):
                return []
            return self.cut(queue, seconds, capacity)

        return self.first(take)

    def first(
        self, take: Callable[[str, deque[InFlightAttempt]], list[InFlightAttempt]]
    ) -> list[InFlightAttempt]:
        """The first batch that there is to be had, the functions taking turns."""
        for digest in list(self.queues):
            # Each comes last when it had its batch.
            queue = self.queues.pop(digest)
            while queue and queue[0].retired:
                queue.popleft()
            if not queue:
                continue
            batch = take(digest, queue)
            if queue:
                self.queues[digest] = queue
            if batch:
                return batch
        return []

    def take_trial(
        self, digest: str, queue: deque[InFlightAttempt], capacity: int
    ) -> list[InFlightAttempt]:
        """A few show how long it takes. If that is long, they say so while they run."""
        tried = self.trials.get(digest, 0)
        if tried >= capacity or self.submitted >= MAX_IN_FLIGHT:
            return []
        self.trials[digest] = tried + 1
        return take_run(queue)

    def deserves_slot(self, work: float, capacity: int, slots: int, now: float) -> bool:
        """Whether so much work, in seconds, is to have one more Ray task."""
        if slots >= (capacity if work < DEMAND_SECONDS * capacity else 2 * capacity):
            return False
        # Who asks soon for a batch gets it: that is cheaper than a Ray task.
        return work >= WORTHWHILE_SECONDS or not any(
            abs(at - now) < WORTHWHILE_SECONDS for at in self.expected.values()
        )

    def cut(
        self, queue: deque[InFlightAttempt], seconds: float, capacity: int
    ) -> list[InFlightAttempt]:
        """A batch of attempts that take so long each."""
        if queue[0].behind is not None:
            return take_run(queue)
        share = -(-len(queue) // (AT_ONCE * capacity))
        size = min(max(share, least(seconds)), round(TARGET_SECONDS / seconds))
        batch: list[InFlightAttempt] = []
        while queue and len(batch) < size and not (queue[0].alone or queue[0].behind):
            flight = queue.popleft()
            if not flight.retired:
                batch.append(flight)
        return batch

    def put_back(self, batch: list[InFlightAttempt]) -> None:
        """It can't travel behind another one: Ray has to bring something for it."""
        digest = batch[0].request.template.function.digest
        heads = [flight for flight in batch if not flight.follows]
        heads[0].needs_objects = True
        self.queues.setdefault(digest, deque()).extendleft(reversed(heads))

    def expect(
        self, slot: Hashable, members: list[InFlightAttempt], known: Durations, now: float
    ) -> None:
        """A slot will ask for another batch when it is through with what it has."""
        # Mostly of one function.
        digests = Counter([flight.request.template.function.digest for flight in members])
        seconds = sum((known.get(digest) or 0.0) * count for digest, count in digests.items())
        self.expected[slot] = now + seconds

    def expects_no_more(self, slot: Hashable) -> None:
        """It takes longer than was known."""
        self.expected.pop(slot, None)

    def landed(self, digest: str) -> None:
        """A batch is through, or lost, with attempts of this function."""
        self.trials.pop(digest, None)
