"""Ready queues: which waiting attempts become the next batch of a Ray task. This module decides; it
calls nothing of Ray.

A Ray task costs about a millisecond of CPU. So attempts of functions that have turned out to be
short share one; every other attempt has its own.
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
from ray_workflows._model.plan import HOSTED_KINDS

#: Ray tasks of one shape (resources, placement, environment) in flight at once. Enough to fill a
#: large cluster and to show demand to an autoscaler; a pending Ray task costs memory here, so not
#: all of a million ready tasks are submitted. Per shape, so that tasks that wait for a GPU hold
#: back no others.
MAX_IN_FLIGHT = 2_000

#: Batches per worker slot: one running, one prefetched. Together they never exceed the slot's fair
#: share of the queue, or the minimum batch size if that is larger.
AT_ONCE = 2

#: When each slot has this much work, in seconds, the executor submits up to twice as many Ray tasks
#: as the cluster can run: those that wait show an autoscaler that more nodes have work.
DEMAND_SECONDS = 1.0


def take_run(queue: deque[InFlightAttempt]) -> list[InFlightAttempt]:
    """Remove the first attempt of a queue, together with its fused followers. Followers wait in no
    queue of their own, so they go with it even if its function has turned out to be slow."""
    return run_of(queue.popleft())


def run_of(head: InFlightAttempt) -> list[InFlightAttempt]:
    """An attempt and its fused followers."""
    return [head, *head.followers]


class ReadyQueue:
    """The waiting attempts of one shape, by function, and the number of Ray tasks of that shape in
    flight."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[InFlightAttempt]] = {}
        self.submitted = 0
        #: By function, how many attempts are in flight while no duration is known.
        self.trials: dict[str, int] = {}
        #: When each slot will probably ask for its next batch, on the monotonic clock.
        self.expected: dict[Hashable, float] = {}
        #: Whether a timer is set that pumps this queue again.
        self.looks_again = False

    @property
    def idle(self) -> bool:
        return not self.queues and not self.submitted

    def add(self, flight: InFlightAttempt, durations: Durations, capacity: int) -> bool:
        """Append an attempt. Returns whether the queue now has one more full batch per slot."""
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
        """The template of a waiting attempt. The queue must not be empty."""
        return next(iter(self.queues.values()))[0].request.template

    def take_all(self) -> list[InFlightAttempt]:
        """Remove and return every waiting attempt."""
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
        """Remove and return the batch to submit now; empty if none should be.

        Args:
            durations: the known durations of functions.
            capacity: how many tasks of this shape the cluster can run at once.
            now: the time of the monotonic clock.
            slots: how many worker slots of this shape pull batches.
            waits: whether one of these slots waits for a batch.
        """

        def take(digest: str, queue: deque[InFlightAttempt]) -> list[InFlightAttempt]:
            seconds = durations.get(digest)
            if queue[0].request.options.kind in HOSTED_KINDS:
                # They wait in their host, perhaps for days, and occupy no slot.
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
        """Remove and return a batch to prefetch. Empty if it could starve another slot: one more
        batch for each slot has to remain."""

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
        """The first batch that `take` gives, with functions taking turns."""
        for digest in list(self.queues):
            # A function that has had its batch goes to the end.
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
        """Run a few attempts of an unknown function alone, to learn its duration. A long one
        reports itself while it runs."""
        tried = self.trials.get(digest, 0)
        if tried >= capacity or self.submitted >= MAX_IN_FLIGHT:
            return []
        self.trials[digest] = tried + 1
        return take_run(queue)

    def deserves_slot(self, work: float, capacity: int, slots: int, now: float) -> bool:
        """Whether to submit one more Ray task for this much work, in seconds."""
        if slots >= (capacity if work < DEMAND_SECONDS * capacity else 2 * capacity):
            return False
        # A slot that will soon ask for a batch is cheaper than a new Ray task.
        return work >= WORTHWHILE_SECONDS or not any(
            abs(at - now) < WORTHWHILE_SECONDS for at in self.expected.values()
        )

    def cut(
        self, queue: deque[InFlightAttempt], seconds: float, capacity: int
    ) -> list[InFlightAttempt]:
        """Remove and return a batch of attempts that take ``seconds`` each."""
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
        """Return a batch to the front: Ray has to bring objects for it, so it can't be
        prefetched."""
        digest = batch[0].request.template.function.digest
        heads = [flight for flight in batch if not flight.follows]
        heads[0].needs_objects = True
        self.queues.setdefault(digest, deque()).extendleft(reversed(heads))

    def expect(
        self, slot: Hashable, members: list[InFlightAttempt], known: Durations, now: float
    ) -> None:
        """Note when a slot will ask for another batch: when its present ones are done."""
        # Usually all are of one function.
        digests = Counter([flight.request.template.function.digest for flight in members])
        seconds = sum((known.get(digest) or 0.0) * count for digest, count in digests.items())
        self.expected[slot] = now + seconds

    def expects_no_more(self, slot: Hashable) -> None:
        """The slot takes longer than expected, or is gone."""
        self.expected.pop(slot, None)

    def landed(self, digest: str) -> None:
        """A batch with attempts of this function is done, or lost."""
        self.trials.pop(digest, None)
