"""Cuts ready queues into batches, and submits these to Ray or gives them to a slot that waits."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray_workflows._executor.cluster import Aside, Clock, Cluster, Timers
from ray_workflows._executor.live_values import LiveValues
from ray_workflows._executor.ray_cluster import load_of
from ray_workflows._executor.scheduling.durations import (
    TARGET_SECONDS,
    WORTHWHILE_SECONDS,
    Durations,
)
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._executor.scheduling.queues import AT_ONCE, ReadyQueue
from ray_workflows._executor.scheduling.slots import (
    STAY_SECONDS,
    Answer,
    Brought,
    SentBatch,
    SlotPool,
    WorkerSlot,
)
from ray_workflows._executor.worker.batch import EncodedBatch

#: Takes a Ray task that has ended, and the future with its result.
Ended = Callable[[WorkerSlot, Any], None]

#: Takes a batch that could not be submitted, and why.
Refused = Callable[[SentBatch, Exception], None]

#: Takes attempts that can't be submitted, and why.
Unprepared = Callable[[list[InFlightAttempt], Exception], None]


class Dispatch:
    """Submits the attempts given to `enqueue`. Used with the lock held.

    Args:
        cluster: where Ray tasks run.
        live: live values by incarnation.
        lock: taken by actions of timers.
        deadlines: timers.
        clock: the clock.
        aside: runs requests to the head of the cluster.
        ended: called without the lock.
        refused: called with it.
        unprepared: called with it.
    """

    def __init__(
        self,
        cluster: Cluster,
        live: Mapping[str, LiveValues],
        lock: threading.RLock,
        deadlines: Timers,
        clock: Clock,
        aside: Aside,
        ended: Ended,
        refused: Refused,
        unprepared: Unprepared,
    ) -> None:
        self.cluster = cluster
        self.live = live
        self.lock = lock
        self.deadlines = deadlines
        self.clock = clock
        self.aside = aside
        self.ended = ended
        self.refused = refused
        self.unprepared = unprepared
        #: Starts at the current time, so that numbers never repeat those of a previous process,
        #: whose Ray tasks may still report here.
        self.numbers = itertools.count(int(clock.time() * 1e9))
        #: Grows with each batch, whatever the clock says.
        self.sequence = itertools.count(1)
        self.ready_queues: dict[str, ReadyQueue] = {}
        #: Shapes whose ready queues have grown since the last `flush`.
        self.grown: dict[str, None] = {}
        self.durations = Durations()
        self.sent: dict[int, SentBatch] = {}
        self.slots = SlotPool()
        #: How many tasks of one CPU the cluster can run at once, as last seen.
        self.capacity = 1
        #: Shapes whose attempts wait until the cluster has been asked for what they need.
        self.preparing: set[str] = set()

    def flush(self) -> None:
        """Submit the batches that are due from queues that have grown."""
        while self.grown:
            self.pump(self.grown.popitem()[0])

    def enqueue(self, flight: InFlightAttempt) -> None:
        shape = flight.request.template.shape
        ready_queue = self.ready_queues.get(shape)
        if ready_queue is None:
            ready_queue = self.ready_queues[shape] = ReadyQueue()
        self.grown[shape] = None
        if ready_queue.add(flight, self.durations, self.capacity):
            # Submit these while the rest of thousands is enqueued.
            self.pump(shape)

    def pump(self, shape: str) -> None:
        """Submit the batches of a shape that are due. The lock is held."""
        # Looked up each time: a Ray task that ends at once calls this again meanwhile.
        while (ready_queue := self.ready_queues.get(shape)) is not None:
            if ready_queue.queues and not self.cluster.is_prepared(shape):
                self.prepare(shape, ready_queue)
                return
            taking, waits = self.slots.are_taking(shape), self.slots.waits(shape)
            now = self.clock.monotonic()
            batch = ready_queue.next_batch(self.durations, self.capacity, now, taking, waits)
            if not batch:
                if ready_queue.idle:
                    del self.ready_queues[shape]
                elif ready_queue.queues and ready_queue.expected and not ready_queue.looks_again:
                    # The slot that is expected may take longer than was assumed.
                    ready_queue.looks_again = True
                    self.deadlines.after(WORTHWHILE_SECONDS, lambda: self.look_again(shape))
                return
            self.submit(ready_queue, batch)

    def look_again(self, shape: str) -> None:
        with self.lock:
            ready_queue = self.ready_queues.get(shape)
            if ready_queue is not None:
                ready_queue.looks_again = False
                self.pump(shape)

    def resize(self, capacity: int) -> None:
        """Note how many tasks of one CPU the cluster can run at once."""
        if capacity != self.capacity:
            self.capacity = capacity
            for shape in list(self.ready_queues):
                self.pump(shape)

    def prepare(self, shape: str, ready_queue: ReadyQueue) -> None:
        """Look up the needs of a queue's attempts; they wait meanwhile."""
        if shape not in self.preparing:
            self.preparing.add(shape)
            template = ready_queue.template
            self.aside(
                lambda: self.cluster.prepare(template), lambda result: self.prepared(shape, result)
            )

    def prepared(self, shape: str, result: Any) -> None:
        """The lookup is done, or has failed with an exception."""
        with self.lock:
            self.preparing.discard(shape)
            ready_queue = self.ready_queues.get(shape)
            if not isinstance(result, Exception):
                self.cluster.keep(shape, result)
            elif ready_queue is not None:
                self.unprepared(ready_queue.take_all(), result)
            self.pump(shape)

    def submit(self, ready_queue: ReadyQueue, members: list[InFlightAttempt]) -> None:
        """Give a batch to a Ray task that waits for one, or submit another Ray task."""
        packed = self.pack(members)
        if packed is None:
            return
        sent, load, values = packed
        shape = sent.shape
        # Ray brings values to a Ray task of their own.
        if not values and self.slots.waits(shape) and self.is_carried(sent):
            slot = self.slots.take(shape)
            slot.carry(sent)
            self.hand(ready_queue, slot, [load])
        else:
            self.send(ready_queue, sent, load, values)

    def accept(self, members: list[InFlightAttempt]) -> SentBatch:
        sent = SentBatch(next(self.numbers), next(self.sequence), members)
        now = self.clock.time()
        for flight in members:
            flight.batch = sent.number
            flight.submitted_at = now
        self.sent[sent.number] = sent
        return sent

    def pack(
        self, members: list[InFlightAttempt]
    ) -> tuple[SentBatch, EncodedBatch, Brought] | None:
        """A batch, its encoded form and the values that Ray has to bring to the worker; None if it
        can't be encoded, which is then the attempts' error."""
        sent = self.accept(members)
        try:
            return (sent, *load_of(sent, self.live))
        except Exception as error:
            self.over(sent)
            self.refused(sent, error)
            return None

    def hand(self, ready_queue: ReadyQueue, slot: WorkerSlot, loads: list[EncodedBatch]) -> None:
        """Answer a slot with batches, and one more to prefetch if many attempts wait."""
        loads += self.ahead(ready_queue, slot)
        members = [flight for sent in slot.loads for flight in sent.members]
        ready_queue.expect(slot, members, self.durations, self.clock.monotonic())
        slot.reply(loads)

    def ahead(self, ready_queue: ReadyQueue, slot: WorkerSlot) -> list[EncodedBatch]:
        """The batch to prefetch after the one that a slot has, if many attempts wait."""
        members: list[InFlightAttempt] = []
        if slot.asks and len(slot.loads) < AT_ONCE:
            members = ready_queue.next_ahead(self.durations, self.capacity)
        if not members:
            return []
        packed = self.pack(members)
        if packed is None:
            return []
        sent, load, values = packed
        if values:
            del self.sent[sent.number]
            for flight in members:
                flight.batch = None
            ready_queue.put_back(members)
            return []
        slot.carry(sent)
        return [load]

    def send(
        self, ready_queue: ReadyQueue, sent: SentBatch, load: EncodedBatch, values: Brought
    ) -> None:
        """Submit a Ray task, or call a listener host."""
        slot = WorkerSlot(sent.shape, asks=self.is_carried(sent))
        slot.carry(sent)
        loads = [load]
        if not sent.hosted:
            self.slots.start(slot)
            ready_queue.submitted += 1
            if not self.has_room():
                self.slots.leave_all()
            loads += self.ahead(ready_queue, slot)
        try:
            slot.ref = self.cluster.send(sent, loads, slot.asks, values)
            slot.ref.future().add_done_callback(lambda future: self.ended(slot, future))
        except Exception as error:
            # Ray refuses the options: the user's error.
            self.end(slot)
            for each in list(slot.loads):
                self.over(each)
                self.refused(each, error)

    def has_room(self) -> bool:
        """Whether every Ray task in flight has a slot, as far as we know."""
        return len(self.slots.flying) <= self.capacity

    def is_carried(self, sent: SentBatch) -> bool:
        """Whether it may follow another batch in a Ray task, and be followed by one."""
        seconds = self.durations.get(sent.digest)
        return sent.shareable and (seconds is None or seconds <= TARGET_SECONDS)

    def go_on(self, slot: WorkerSlot, answer: Answer) -> None:
        """A slot has finished a batch: it runs the next one, or waits, or ends."""
        ready_queue = self.ready_queues[slot.shape]
        ready_queue.expects_no_more(slot)
        now = self.clock.monotonic()
        slot.hear(now)
        if not slot.is_fresh(now) or self.slots.is_crowded(slot.shape, self.capacity):
            slot.answer = answer
            self.slots.leave(slot)
        elif slot.loads:
            slot.answer = answer
            self.hand(ready_queue, slot, [])
        else:
            self.slots.wait(slot, answer)
        self.pump(slot.shape)
        if slot.answer is None:
            return
        if self.has_room():
            waits = slot.waits
            self.deadlines.after(STAY_SECONDS, lambda: self.leave(slot, waits))
        else:
            self.slots.leave(slot)

    def leave(self, slot: WorkerSlot, waits: int) -> None:
        """End the wait of a slot for which no batch has come."""
        with self.lock:
            if slot.answer is not None and slot.waits == waits:
                self.slots.leave(slot)

    def end(self, slot: WorkerSlot) -> None:
        """Note that a Ray task has ended."""
        if slot in self.slots.flying:
            ready_queue = self.ready_queues[slot.shape]
            ready_queue.submitted -= 1
            ready_queue.expects_no_more(slot)
            self.slots.end(slot)

    def over(self, sent: SentBatch) -> None:
        """Note that a batch has ended, or is lost."""
        del self.sent[sent.number]
        if sent.slot is not None:
            sent.slot.loads.remove(sent)
        ready_queue = self.ready_queues.get(sent.shape)
        if ready_queue is not None:
            ready_queue.landed(sent.digest)
        if not self.sent:
            self.cluster.tidy()
