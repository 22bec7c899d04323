"""How long attempts of each function take. Short ones share a Ray task; a Ray task costs about a
millisecond of CPU."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt

#: What a batch aims at, in seconds, and below what a batch is not worth its Ray task. Attempts that
#: take longer than a batch is to take have a Ray task each.
TARGET_SECONDS, WORTHWHILE_SECONDS = 0.05, 0.005

#: An attempt takes at least this long with all that is around it, in seconds.
LEAST_SECONDS = 2e-5

#: How much of what is known of a function's duration comes from its last attempt.
SMOOTHING = 0.3

#: Functions whose durations are known.
MAX_FUNCTIONS = 100_000


class Durations:
    """How long attempts of each function have taken, by its digest, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        #: Functions known to be short of which an attempt has been running for long.
        self.doubted: set[str] = set()

    def learn(self, digest: str, seconds: float, count: int = 1) -> None:
        """So many attempts in a row took so long on average.

        All of a batch at once: its last one may have been kept waiting by what else the machine
        does, and must not say more than the hundreds before it.
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
        """An attempt has been running for so long, and is not done.

        Where others were shorter, one is no rule: its worker may have been kept waiting. If it is
        believed, all that wait are submitted one by one.
        """
        known = self.seconds.get(digest, seconds)
        if known <= TARGET_SECONDS < seconds and digest not in self.doubted:
            self.doubted.add(digest)
        else:
            self.seconds[digest] = max(seconds, known)

    def get(self, digest: str) -> float | None:
        return self.seconds.get(digest)

    def fuse(self, flight: InFlightAttempt, followers: Iterable[AttemptRequest]) -> None:
        """Let attempts follow this one, as far as all of them together are short."""
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
    """How many attempts that take so long each are worth a batch."""
    return max(1, int(WORTHWHILE_SECONDS / seconds))
