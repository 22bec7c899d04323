"""The clock for durations."""

from __future__ import annotations

import time

#: A clock that counts while the machine sleeps: a lease must lapse on a virtual machine that is
#: suspended. macOS has no `CLOCK_BOOTTIME`; its monotonic clock counts.
ELAPSED_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed() -> float:
    """Seconds since some fixed moment; changes of the wall clock don't matter."""
    return time.clock_gettime(ELAPSED_CLOCK)
