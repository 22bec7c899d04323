"""How long attempts of each function take. Short ones share a Ray task; a Ray task costs about a
millisecond of CPU."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt

#: The duration that a batch aims at, and the one below which it is not worth a Ray task, in
#: seconds. Attempts that take longer than the first have a Ray task each.
TARGET_SECONDS, WORTHWHILE_SECONDS = 0.05, 0.005

#: The shortest duration that is assumed of an attempt, in seconds: the overhead of one.
LEAST_SECONDS = 2e-5

#: The weight of the last attempt in a function's smoothed duration.
SMOOTHING = 0.3

#: How many functions' durations are kept.
MAX_FUNCTIONS = 100_000


class Durations:
    """How long attempts of each function have taken, by its digest, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        #: Functions believed to be short, but with an attempt that is overrunning.
        self.doubted: set[str] = set()

    def learn(self, digest: str, seconds: float, count: int = 1) -> None:
        """Learn from ``count`` attempts in a row that took ``seconds`` on average.

        A batch counts as one lesson: its last attempt may have been delayed by other work of the
        machine, and must not outweigh the hundreds before it.
        """
        self.doubted.discard(digest)
        seconds = max(seconds, LEAST_SECONDS)
        known = self.seconds.get(digest)
        if known is None:
            if len(self.seconds) >= MAX_FUNCTIONS:
                self.seconds.clear()
            self.seconds[digest] = seconds
        else:
            weight = 1 - (1 - SMOOTHING) ** count
            self.seconds[digest] = known + weight * (seconds - known)

    def at_least(self, digest: str, seconds: float) -> None:
        """Learn that an attempt has been running for ``seconds`` and is not done.

        The first such attempt of a short function is only noted: its worker may have been delayed,
        and a long duration would send every waiting attempt in a Ray task of its own.
        """
        known = self.seconds.get(digest, seconds)
        if known <= TARGET_SECONDS < seconds and digest not in self.doubted:
            self.doubted.add(digest)
        else:
            self.seconds[digest] = max(seconds, known)

    def get(self, digest: str) -> float | None:
        return self.seconds.get(digest)

    def fuse(self, flight: InFlightAttempt, followers: Iterable[AttemptRequest]) -> None:
        """Fuse attempts to this one, as long as all of them together are short."""
        template = flight.request.template
        left = TARGET_SECONDS
        previous = flight
        for request in followers:
            for one in (previous.request, request):
                if not one.template.batchable or one.template.shape != template.shape:
                    return
            before, after = (self.get(r.function.digest) for r in (previous.request, request))
            if before is None or after is None:
                return
            left -= before
            if left < after:
                return
            previous.request = msgspec.structs.replace(previous.request, fused=True)
            previous.behind = InFlightAttempt(request)
            previous = previous.behind
            previous.follows = True


def least(seconds: float) -> int:
    """The minimum batch size for attempts that take ``seconds`` each."""
    return max(1, int(WORTHWHILE_SECONDS / seconds))
