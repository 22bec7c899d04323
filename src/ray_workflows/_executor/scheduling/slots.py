"""Ray tasks in flight and the batches in them. A Ray task whose batches are short carries them one
after the other: it asks for the next one instead of ending, and where there is plenty it has the
next one before it is through.

A Ray task of its own costs a batch a lease, or at least the way from its owner: a task of a chain
took 3.5 ms with the one, and takes 2.2 to 2.5 ms with a call of the coordinator; and between two
Ray tasks of a worker passed 2 ms in which it had nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._executor.worker.batch import EncodedBatch
from ray_workflows._model.plan import LISTENER, Package

#: How long a Ray task waits for its next batch at most, in seconds: about what it takes from a
#: result to the task that follows from it. Its slot is idle meanwhile.
STAY_SECONDS = 0.01

#: How long one Ray task takes batches, in seconds. Then Ray may give its slot to somebody else, as
#: it does with workers that are leased by plain Ray.
CARRY_SECONDS = 0.5

#: Live values that Ray has to bring to a Ray task, by incarnation and blob key.
Brought = dict[tuple[str, str], Any]

#: Gives a Ray task batches, none for now, or (None) nothing any more.
Answer = Callable[[list[EncodedBatch] | None], None]


class SentBatch:
    """A batch in a Ray task. ``open`` counts members that are not reported, canceled or handed
    back."""

    __slots__ = (
        "digest",
        "has_unwanted",
        "listens",
        "members",
        "number",
        "open",
        "packages",
        "shape",
        "slot",
    )

    def __init__(self, number: int, members: list[InFlightAttempt]) -> None:
        template = members[0].request.template
        self.number = number
        self.members = members
        self.shape = template.shape
        self.digest = template.function.digest
        self.listens = template.options.kind == LISTENER
        self.open = len(members)
        self.slot: WorkerSlot | None = None
        #: A member is not wanted any more, and may run all the same.
        self.has_unwanted = False
        #: What the cluster had to have for it.
        self.packages: tuple[Package, ...] = ()

    @property
    def shareable(self) -> bool:
        """Whether none of its members has to have a Ray task of its own."""
        return not any(flight.alone for flight in self.members)

    @property
    def left(self) -> list[InFlightAttempt]:
        """Members of which nothing is known yet, and which somebody wants."""
        return [each for each in self.members if not each.retired and each.batch == self.number]


class WorkerSlot:
    """A Ray task in flight, or a call of a listener host. Without a batch, it waits for one.

    ``asks``: it asks for another batch when it is through with one.
    """

    __slots__ = ("answer", "asks", "heard_at", "loads", "ref", "shape", "stopped", "waits")

    def __init__(self, shape: str, asks: bool) -> None:
        self.shape = shape
        self.asks = asks
        #: Its batches, in the order in which it runs them.
        self.loads: list[SentBatch] = []
        #: How often it has waited.
        self.waits = 0
        #: When it first reported a batch.
        self.heard_at: float | None = None
        self.stopped = False
        #: The Ray task, once it is submitted.
        self.ref: Any = None
        self.answer: Answer | None = None

    def carry(self, sent: SentBatch) -> None:
        self.loads.append(sent)
        sent.slot = self

    def hear(self, now: float) -> None:
        """It has reported a batch, at a time of the monotonic clock."""
        if self.heard_at is None:
            self.heard_at = now

    def is_fresh(self, now: float) -> bool:
        """Whether it may take one more batch."""
        spent = 0.0 if self.heard_at is None else now - self.heard_at
        return spent < CARRY_SECONDS and not self.stopped

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for anything in it."""
        return any(sent.open for sent in self.loads)

    def reply(self, loads: list[EncodedBatch] | None) -> None:
        """Answer it, if it waits."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(loads)


class SlotPool:
    """All Ray tasks of an executor but those of listeners."""

    def __init__(self) -> None:
        self.flying: set[WorkerSlot] = set()
        #: By shape: those that take batch after batch, and of these those that wait for one.
        self.taking: dict[str, set[WorkerSlot]] = {}
        self.waiting: dict[str, list[WorkerSlot]] = {}
        #: Those that have taken their last one.
        self.leaving: set[WorkerSlot] = set()

    def start(self, slot: WorkerSlot) -> None:
        self.flying.add(slot)
        if slot.asks:
            self.taking.setdefault(slot.shape, set()).add(slot)

    def are_taking(self, shape: str) -> int:
        """How many of this shape take batches."""
        return len(self.taking.get(shape, ()))

    def wait(self, slot: WorkerSlot, answer: Answer) -> None:
        slot.waits += 1
        slot.answer = answer
        self.waiting.setdefault(slot.shape, []).append(slot)

    def waits(self, shape: str) -> bool:
        """Whether there is one that can take a batch of this shape."""
        return bool(self.waiting.get(shape))

    def take(self, shape: str) -> WorkerSlot:
        """One that waits: the one that came last, so that others end."""
        slot = self.waiting[shape][-1]
        self.wait_no_more(slot)
        return slot

    def wait_no_more(self, slot: WorkerSlot) -> None:
        waiting = self.waiting.get(slot.shape, [])
        if slot in waiting:
            waiting.remove(slot)
            if not waiting:
                del self.waiting[slot.shape]

    def leave(self, slot: WorkerSlot) -> None:
        """It gets no more batches."""
        self.wait_no_more(slot)
        taking = self.taking.get(slot.shape, set())
        if slot in taking:
            self.leaving.add(slot)
            taking.remove(slot)
            if not taking:
                del self.taking[slot.shape]
        slot.reply(None)

    def leave_all(self) -> None:
        """All that wait end: their capacity are needed."""
        for waiting in list(self.waiting.values()):
            for slot in list(waiting):
                self.leave(slot)

    def end(self, slot: WorkerSlot) -> None:
        """Its Ray task is over."""
        self.leave(slot)
        self.flying.discard(slot)
        self.leaving.discard(slot)

    def is_crowded(self, shape: str, capacity: int) -> bool:
        """Whether others wait for a slot than those of this shape, which take batches in turn."""
        more = max(0, self.are_taking(shape) - capacity)
        return len(self.flying) - len(self.leaving) - more > capacity
