"""The coordinator's time: what waits is not moved by who sets the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray_workflows._elapsed import elapsed

#: Seconds by which the clock gains or loses in each second to come back to the wall clock. All that
#: waits is early or late by as much.
SLEW = 0.01


class SteadyClock:
    """Seconds since 1970 that pass evenly, also when the wall clock is set.

    Due times are kept as such seconds, and compared with them, so all that waits in this process
    ends after the time that it was to wait. Where the wall clock was set, this one comes back to it
    little by little: an hour takes four days. A process begins with the wall clock.

    Args:
        wall: the wall clock.
        elapsed: a clock that nobody sets.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,  # noqa: TID251
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        self.wall = wall
        self.elapsed = elapsed
        self.read_at = elapsed()
        self.offset = wall() - self.read_at

    def __call__(self) -> float:
        """The time, in seconds since 1970."""
        now = self.elapsed()
        wrong = self.wall() - now - self.offset
        most = SLEW * max(0.0, now - self.read_at)
        self.read_at = now
        self.offset += min(most, max(-most, wrong))
        return now + self.offset
