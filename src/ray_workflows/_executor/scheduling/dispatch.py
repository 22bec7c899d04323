"""The way of attempts to Ray: what waits in lanes becomes batches, in Ray tasks that take one after
the other.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray_workflows._executor.cluster import Aside, Clock, Cluster, Timers
from ray_workflows._executor.live_values import LiveValues
from ray_workflows._executor.ray_cluster import load_of
from ray_workflows._executor.scheduling.queues import (
    AT_ONCE,
    TARGET_SECONDS,
    WORTHWHILE_SECONDS,
    Durations,
    Flight,
    Lane,
)
from ray_workflows._executor.scheduling.slots import (
    STAY_SECONDS,
    Answer,
    Brought,
    Carrier,
    Carriers,
    SentBatch,
)
from ray_workflows._executor.worker.batch import Load

#: Takes a Ray task that has ended, and the future with its result.
Ended = Callable[[Carrier, Any], None]

#: Takes a batch that could not be submitted, and why.
Refused = Callable[[SentBatch, Exception], None]

#: Takes attempts that can't be submitted, and why.
Unprepared = Callable[[list[Flight], Exception], None]


class Dispatch:
    """Submits what is given to `enqueue`. Used with the lock held.

    Args:
        cluster: where Ray tasks run.
        live: live values by incarnation.
        lock: taken for what happens at a time.
        deadlines: calls at times.
        clock: says what time it is.
        aside: runs what asks the head of the cluster.
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
        #: Other ones than those of an earlier life of the coordinator, whose Ray tasks may still
        #: report here.
        self.numbers = itertools.count(int(clock.time() * 1e9))
        self.lanes: dict[str, Lane] = {}
        #: Shapes of lanes to which something was added since the last `flush`.
        self.grown: dict[str, None] = {}
        self.durations = Durations()
        self.sent: dict[int, SentBatch] = {}
        self.carriers = Carriers()
        #: How many tasks of one CPU the cluster can run at once, as far as we know.
        self.slots = 1
        #: Shapes of lanes that wait for what their attempts need.
        self.preparing: set[str] = set()

    def flush(self) -> None:
        """Submit what was added, as far as it is time."""
        while self.grown:
            self.pump(self.grown.popitem()[0])

    def enqueue(self, flight: Flight) -> None:
        shape = flight.request.scene.shape
        lane = self.lanes.get(shape)
        if lane is None:
            lane = self.lanes[shape] = Lane()
        self.grown[shape] = None
        if lane.add(flight, self.durations, self.slots):
            # It begins while the rest of thousands is started.
            self.pump(shape)

    def pump(self, shape: str) -> None:
        """Submit what waits, as far as it is time. The lock is held."""
        # Looked up each time: a Ray task that has ended at once brings us here again meanwhile.
        while (lane := self.lanes.get(shape)) is not None:
            if lane.queues and not self.cluster.is_prepared(shape):
                self.prepare(shape, lane)
                return
            taking, waits = self.carriers.are_taking(shape), self.carriers.waits(shape)
            now = self.clock.monotonic()
            batch = lane.next_batch(self.durations, self.slots, now, taking, waits)
            if not batch:
                if lane.idle:
                    del self.lanes[shape]
                elif lane.queues and lane.expected and not lane.looks_again:
                    # Who is expected may take longer than was known.
                    lane.looks_again = True
                    self.deadlines.after(WORTHWHILE_SECONDS, lambda: self.look_again(shape))
                return
            self.submit(lane, batch)

    def look_again(self, shape: str) -> None:
        with self.lock:
            lane = self.lanes.get(shape)
            if lane is not None:
                lane.looks_again = False
                self.pump(shape)

    def resize(self, slots: int) -> None:
        """The cluster can run so many tasks of one CPU at once."""
        if slots != self.slots:
            self.slots = slots
            for shape in list(self.lanes):
                self.pump(shape)

    def prepare(self, shape: str, lane: Lane) -> None:
        """Have what a lane's attempts need looked up; they wait meanwhile."""
        if shape not in self.preparing:
            self.preparing.add(shape)
            scene = lane.scene
            self.aside(
                lambda: self.cluster.prepare(scene), lambda result: self.prepared(shape, result)
            )

    def prepared(self, shape: str, result: Any) -> None:
        """What a lane's attempts need was looked up, or the reason is there why that failed."""
        with self.lock:
            self.preparing.discard(shape)
            lane = self.lanes.get(shape)
            if not isinstance(result, Exception):
                self.cluster.keep(shape, result)
            elif lane is not None:
                self.unprepared(lane.take_all(), result)
            self.pump(shape)

    def submit(self, lane: Lane, members: list[Flight]) -> None:
        """Let a Ray task carry a batch that waits for one, or submit another."""
        packed = self.pack(members)
        if packed is None:
            return
        sent, load, values = packed
        shape = sent.shape
        # Ray brings values to a Ray task of their own.
        if not values and self.carriers.waits(shape) and self.is_carried(sent):
            carrier = self.carriers.take(shape)
            carrier.carry(sent)
            self.hand(lane, carrier, [load])
        else:
            self.send(lane, sent, load, values)

    def accept(self, members: list[Flight]) -> SentBatch:
        sent = SentBatch(next(self.numbers), members)
        now = self.clock.time()
        for flight in members:
            flight.batch = sent.number
            flight.submitted_at = now
        self.sent[sent.number] = sent
        return sent

    def pack(self, members: list[Flight]) -> tuple[SentBatch, Load, Brought] | None:
        """A batch, what goes to the worker and what Ray has to bring there; None if that can't be
        encoded, which is said of the attempts."""
        sent = self.accept(members)
        try:
            return (sent, *load_of(sent, self.live))
        except Exception as error:
            self.over(sent)
            self.refused(sent, error)
            return None

    def hand(self, lane: Lane, carrier: Carrier, loads: list[Load]) -> None:
        """Answer a carrier with batches, and one more where there is plenty."""
        loads += self.ahead(lane, carrier)
        members = [flight for sent in carrier.loads for flight in sent.members]
        lane.expect(carrier, members, self.durations, self.clock.monotonic())
        carrier.reply(loads)

    def ahead(self, lane: Lane, carrier: Carrier) -> list[Load]:
        """The batch after the one that a carrier has, if there is plenty."""
        members: list[Flight] = []
        if carrier.asks and len(carrier.loads) < AT_ONCE:
            members = lane.next_ahead(self.durations, self.slots)
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
            lane.put_back(members)
            return []
        carrier.carry(sent)
        return [load]

    def send(self, lane: Lane, sent: SentBatch, load: Load, values: Brought) -> None:
        """Submit a Ray task, or call a listener host."""
        carrier = Carrier(sent.shape, asks=self.is_carried(sent))
        carrier.carry(sent)
        loads = [load]
        if not sent.listens:
            self.carriers.start(carrier)
            lane.submitted += 1
            if not self.has_room():
                self.carriers.leave_all()
            loads += self.ahead(lane, carrier)
        try:
            carrier.ref = self.cluster.send(sent, loads, carrier.asks, values)
            carrier.ref.future().add_done_callback(lambda future: self.ended(carrier, future))
        except Exception as error:
            # Options that this Ray refuses: the user's to mend.
            self.end(carrier)
            for each in list(carrier.loads):
                self.over(each)
                self.refused(each, error)

    def has_room(self) -> bool:
        """Whether every Ray task in flight has a slot, as far as we know."""
        return len(self.carriers.flying) <= self.slots

    def is_carried(self, sent: SentBatch) -> bool:
        """Whether it may follow another batch in a Ray task, and be followed by one."""
        seconds = self.durations.get(sent.digest)
        return sent.shareable and (seconds is None or seconds <= TARGET_SECONDS)

    def go_on(self, carrier: Carrier, answer: Answer) -> None:
        """A carrier is through with a batch: it runs the next one, or waits, or ends."""
        lane = self.lanes[carrier.shape]
        lane.expects_no_more(carrier)
        now = self.clock.monotonic()
        carrier.hear(now)
        if not carrier.is_fresh(now) or self.carriers.is_crowded(carrier.shape, self.slots):
            carrier.answer = answer
            self.carriers.leave(carrier)
        elif carrier.loads:
            carrier.answer = answer
            self.hand(lane, carrier, [])
        else:
            self.carriers.wait(carrier, answer)
        self.pump(carrier.shape)
        if carrier.answer is None:
            return
        if self.has_room():
            waits = carrier.waits
            self.deadlines.after(STAY_SECONDS, lambda: self.leave(carrier, waits))
        else:
            self.carriers.leave(carrier)

    def leave(self, carrier: Carrier, waits: int) -> None:
        """Nothing has come for it in the time it waits."""
        with self.lock:
            if carrier.answer is not None and carrier.waits == waits:
                self.carriers.leave(carrier)

    def end(self, carrier: Carrier) -> None:
        """A Ray task is no more."""
        if carrier in self.carriers.flying:
            lane = self.lanes[carrier.shape]
            lane.submitted -= 1
            lane.expects_no_more(carrier)
            self.carriers.end(carrier)

    def over(self, sent: SentBatch) -> None:
        """A batch is through, or lost."""
        del self.sent[sent.number]
        if sent.carrier is not None:
            sent.carrier.loads.remove(sent)
        lane = self.lanes.get(sent.shape)
        if lane is not None:
            lane.landed(sent.digest)
        if not self.sent:
            self.cluster.tidy()
