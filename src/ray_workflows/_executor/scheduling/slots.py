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

from ray_workflows._executor.scheduling.queues import Flight
from ray_workflows._executor.worker.batch import Load
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
Answer = Callable[[list[Load] | None], None]


class SentBatch:
    """A batch in a Ray task. ``open`` counts members that are not reported, canceled or handed
    back."""

    __slots__ = (
        "carrier",
        "digest",
        "has_unwanted",
        "listens",
        "members",
        "number",
        "open",
        "packages",
        "shape",
    )

    def __init__(self, number: int, members: list[Flight]) -> None:
        scene = members[0].request.scene
        self.number = number
        self.members = members
        self.shape = scene.shape
        self.digest = scene.function.digest
        self.listens = scene.options.kind == LISTENER
        self.open = len(members)
        self.carrier: Carrier | None = None
        #: A member is not wanted any more, and may run all the same.
        self.has_unwanted = False
        #: What the cluster had to have for it.
        self.packages: tuple[Package, ...] = ()

    @property
    def shareable(self) -> bool:
        """Whether none of its members has to have a Ray task of its own."""
        return not any(flight.alone for flight in self.members)

    @property
    def left(self) -> list[Flight]:
        """Members of which nothing is known yet, and which somebody wants."""
        return [each for each in self.members if not each.retired and each.batch == self.number]


class Carrier:
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
        sent.carrier = self

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

    def reply(self, loads: list[Load] | None) -> None:
        """Answer it, if it waits."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(loads)


class Carriers:
    """All Ray tasks of an executor but those of listeners."""

    def __init__(self) -> None:
        self.flying: set[Carrier] = set()
        #: By shape: those that take batch after batch, and of these those that wait for one.
        self.taking: dict[str, set[Carrier]] = {}
        self.waiting: dict[str, list[Carrier]] = {}
        #: Those that have taken their last one.
        self.leaving: set[Carrier] = set()

    def start(self, carrier: Carrier) -> None:
        self.flying.add(carrier)
        if carrier.asks:
            self.taking.setdefault(carrier.shape, set()).add(carrier)

    def are_taking(self, shape: str) -> int:
        """How many of this shape take batches."""
        return len(self.taking.get(shape, ()))

    def wait(self, carrier: Carrier, answer: Answer) -> None:
        carrier.waits += 1
        carrier.answer = answer
        self.waiting.setdefault(carrier.shape, []).append(carrier)

    def waits(self, shape: str) -> bool:
        """Whether there is one that can take a batch of this shape."""
        return bool(self.waiting.get(shape))

    def take(self, shape: str) -> Carrier:
        """One that waits: the one that came last, so that others end."""
        carrier = self.waiting[shape][-1]
        self.wait_no_more(carrier)
        return carrier

    def wait_no_more(self, carrier: Carrier) -> None:
        waiting = self.waiting.get(carrier.shape, [])
        if carrier in waiting:
            waiting.remove(carrier)
            if not waiting:
                del self.waiting[carrier.shape]

    def leave(self, carrier: Carrier) -> None:
        """It gets no more batches."""
        self.wait_no_more(carrier)
        taking = self.taking.get(carrier.shape, set())
        if carrier in taking:
            self.leaving.add(carrier)
            taking.remove(carrier)
            if not taking:
                del self.taking[carrier.shape]
        carrier.reply(None)

    def leave_all(self) -> None:
        """All that wait end: their slots are needed."""
        for waiting in list(self.waiting.values()):
            for carrier in list(waiting):
                self.leave(carrier)

    def end(self, carrier: Carrier) -> None:
        """Its Ray task is over."""
        self.leave(carrier)
        self.flying.discard(carrier)
        self.leaving.discard(carrier)

    def is_crowded(self, shape: str, slots: int) -> bool:
        """Whether others wait for a slot than those of this shape, which take batches in turn."""
        more = max(0, self.are_taking(shape) - slots)
        return len(self.flying) - len(self.leaving) - more > slots
