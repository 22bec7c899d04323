"""Ray tasks in flight and the batches in them. A Ray task whose batches are short carries several,
one after the other: it asks for the next one instead of ending.

An isolated Ray task has a worker leased and given back for it, which a call of the coordinator does
without: a task of a chain took 3.5 ms with the one, and takes 2.2 to 2.5 ms with the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import ray

from ray_workflows._executor.batch import Load
from ray_workflows._executor.lanes import Flight
from ray_workflows._model.plan import LISTENER, Package

#: How long a Ray task waits for its next batch at most, in seconds: about what it takes from a
#: result to the task that follows from it. Its slot is idle meanwhile.
STAY_SECONDS = 0.01

#: How long one Ray task takes batches, in seconds. Then Ray may give its slot to somebody else, as
#: it does with workers that are leased by plain Ray.
CARRY_SECONDS = 0.5

#: Gives a Ray task that waits its next batch, or (None) lets it end.
Answer = Callable[[Load | None], None]


class Submission:
    """A batch in a Ray task. ``open`` counts members that are not reported, canceled or handed
    back."""

    __slots__ = (
        "carrier",
        "digest",
        "listens",
        "members",
        "number",
        "open",
        "packages",
        "shape",
        "stays",
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
        #: What the cluster had to have for it.
        self.packages: tuple[Package, ...] = ()
        #: When it is through, its Ray task asks for another.
        self.stays = False

    @property
    def shareable(self) -> bool:
        """Whether it may follow another batch in a Ray task, and be followed by one."""
        return not any(flight.alone for flight in self.members)


class Carrier:
    """A Ray task in flight, or a call of a listener host. Without a batch, it waits for one."""

    __slots__ = ("answer", "current", "ref", "sent_at", "shape", "waits")

    def __init__(self, submission: Submission) -> None:
        self.shape = submission.shape
        self.current: Submission | None = submission
        #: How often it has waited.
        self.waits = 0
        self.sent_at = time.monotonic()
        self.ref: ray.ObjectRef | None = None
        self.answer: Answer | None = None
        submission.carrier = self

    @property
    def fresh(self) -> bool:
        """Whether it may take one more batch."""
        return time.monotonic() - self.sent_at < CARRY_SECONDS

    def wait(self, answer: Answer) -> None:
        """Its batch is through, and it waits for another."""
        self.waits += 1
        self.current = None
        self.answer = answer

    def take(self, submission: Submission, load: Load) -> None:
        """Carry another batch."""
        assert self.answer is not None
        answer, self.answer = self.answer, None
        self.current = submission
        submission.carrier = self
        answer(load)

    def leave(self) -> None:
        """End, if it waits."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(None)


class Carriers:
    """All Ray tasks of an executor but those of listeners, and which of them wait for a batch."""

    def __init__(self) -> None:
        self.flying: set[Carrier] = set()
        self.waiting: dict[str, list[Carrier]] = {}

    def wait(self, carrier: Carrier, answer: Answer) -> None:
        carrier.wait(answer)
        self.waiting.setdefault(carrier.shape, []).append(carrier)

    def waits(self, shape: str) -> bool:
        """Whether there is one that can take a batch of this shape."""
        return bool(self.waiting.get(shape))

    def take(self, submission: Submission, load: Load) -> None:
        """Give a batch to one that waits: the one that came last, so that others end."""
        self.waiting[submission.shape].pop().take(submission, load)

    def leave(self, carrier: Carrier) -> None:
        """It waits no more: it ends, or has died."""
        carriers = self.waiting.get(carrier.shape, [])
        if carrier in carriers:
            carriers.remove(carrier)
            if not carriers:
                del self.waiting[carrier.shape]
            carrier.leave()

    def leave_all(self) -> None:
        """All that wait end: their slots are needed."""
        for carriers in list(self.waiting.values()):
            for carrier in list(carriers):
                self.leave(carrier)
