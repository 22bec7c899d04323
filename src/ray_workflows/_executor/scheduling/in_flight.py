"""An attempt in flight, from its start until its report: it waits in a ready queue, then it is part of a
batch in a Ray task."""

from __future__ import annotations

from ray_workflows._executor.protocol import AttemptRequest


class InFlightAttempt:
    """An attempt on its way: queued in a ready_queue, then in a Ray task."""

    __slots__ = (
        "alone",
        "batch",
        "behind",
        "expired",
        "follows",
        "needs_objects",
        "request",
        "retired",
        "submitted_at",
        "timed",
        "unplaceable",
        "waits",
    )

    def __init__(self, request: AttemptRequest) -> None:
        self.request = request
        #: The attempt that runs at once after it, on its result; whether it is such a one itself.
        self.behind: InFlightAttempt | None = None
        self.follows = False
        #: It takes values that Ray has to bring to a Ray task before it starts.
        self.needs_objects = False
        #: The number of the Ray task that it travels in.
        self.batch: int | None = None
        self.submitted_at = 0.0
        #: It shares no Ray task: its neighbours died with their worker, and one was guilty.
        self.alone = not request.template.batchable
        #: Canceled or reported: what still comes of it is about the past.
        self.retired = False
        #: Its timeout runs; it has overrun it and is being stopped.
        self.timed = False
        self.expired = False
        #: Odd while its timeout does not run because it waits for the storage; it grows.
        self.waits = 0
        #: Why no node can hold it, as last reported.
        self.unplaceable = ""

    @property
    def followers(self) -> list[InFlightAttempt]:
        """Attempts that run at once after it, each on the result of the one before. Behind one
        that was canceled, all were."""
        found = []
        flight = self.behind
        while flight is not None and not flight.retired:
            found.append(flight)
            flight = flight.behind
        return found
