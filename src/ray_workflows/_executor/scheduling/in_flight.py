"""An attempt in flight, from its start until its report."""

from __future__ import annotations

from ray_workflows._executor.in_order import InOrder
from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._model.messages import BodyEnd, BodyProgress
from ray_workflows._model.steps import StepOutcome


class InFlightAttempt:
    """An attempt in flight: first it waits in a ready queue, then it is in a batch of a Ray
    task."""

    __slots__ = (
        "alone",
        "batch",
        "behind",
        "end",
        "expired",
        "follows",
        "given",
        "needs_objects",
        "request",
        "retired",
        "submitted_at",
        "timed",
        "told",
        "ungiven",
        "unplaceable",
        "waits",
    )

    def __init__(self, request: AttemptRequest) -> None:
        self.request = request
        #: The fused attempt that runs right after this one, on its result; whether this one is
        #: fused.
        self.behind: InFlightAttempt | None = None
        self.follows = False
        #: Ray has to bring objects to the Ray task before this attempt starts.
        self.needs_objects = False
        #: The number of its batch, once it is in one.
        self.batch: int | None = None
        self.submitted_at = 0.0
        #: It runs in a batch of its own: its options ask for it, or its last worker died with a
        #: batch in it, and one of the members was guilty.
        self.alone = not request.template.batchable
        #: It was canceled or has reported; later reports of it are ignored.
        self.retired = False
        #: Its timeout runs; it has overrun it and is being stopped.
        self.timed = False
        self.expired = False
        #: How often it has begun and ended to wait for the storage: odd while it waits. The timeout
        #: does not run meanwhile.
        self.waits = 0
        #: How many outcomes a body was given, and those of them that are not sent.
        self.given = 0 if request.history is None else len(request.history.outcomes)
        self.ungiven: list[StepOutcome] = []
        #: What a body has told, in its order.
        self.told: InOrder[BodyProgress] = InOrder()
        #: Its end, if that came before some of its progress.
        self.end: BodyEnd | None = None
        #: Why no node can hold it, as last reported.
        self.unplaceable = ""

    @property
    def followers(self) -> list[InFlightAttempt]:
        """The fused attempts after this one, each of which takes the result of the one before. If
        one is canceled, so are those after it."""
        found = []
        flight = self.behind
        while flight is not None and not flight.retired:
            found.append(flight)
            flight = flight.behind
        return found
