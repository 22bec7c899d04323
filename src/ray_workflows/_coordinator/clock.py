"""The coordinator's clock: setting the wall clock does not move due times."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray_workflows._elapsed import elapsed

#: Seconds that the clock gains or loses in each second to return to the wall clock. Waits are short
#: or long by as much.
SLEW = 0.01


class SteadyClock:
    """Seconds since 1970 that pass evenly, also when the wall clock is set.

    Due times are such seconds, so each wait in this process lasts as long as it should. After the
    wall clock was set, this clock returns to it slowly: an hour takes four days. A process starts
    with the wall clock's time.

    Args:
        wall: the wall clock.
        elapsed: a monotonic clock.
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
