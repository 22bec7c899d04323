"""A clock that moves only when a test advances it, so that hours of waiting take no time.

It reads no other clock. Actions that are due at the same time happen in the order they were given.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """Virtual time with scheduled actions. Calling the clock returns the time.

    Args:
        start: the time to begin with, in seconds since 1970.

    Example:
        >>> clock = VirtualClock(start=100.0)
        >>> clock.after(60.0, lambda: print("a minute has passed"))
        >>> clock.advance()
        a minute has passed
        True
        >>> clock(), clock.advance()
        (160.0, False)
    """

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.now: float = start
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.count: int = 0

    def __call__(self) -> float:
        """The time, in seconds since 1970."""
        return self.now

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Schedule an action for a time. If that is past, it is the next action."""
        self.count += 1
        heapq.heappush(self.agenda, (time, self.count, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Schedule an action that many seconds from now."""
        self.at(self.now + seconds, action)

    def advance(self) -> bool:
        """Move to the time of the next action, and do it. Returns False if there is none."""
        if not self.agenda:
            return False
        time, _, action = heapq.heappop(self.agenda)
        self.now = max(self.now, time)
        action()
        return True
