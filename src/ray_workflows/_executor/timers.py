"""Timers of one thread on a monotonic clock, and threads whose death ends the process.

All delayed work of the coordinator uses these timers: alarms of workflows, periodic jobs, deadlines
of attempts.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
from collections.abc import Callable

from ray_workflows._elapsed import elapsed

logger = logging.getLogger(__name__)

#: The longest sleep of a thread, in seconds. Locks and queues can't wait for a year, and don't
#: count the time for which the machine sleeps.
LONGEST_SLEEP = 60.0

#: Pauses before an action that raised is called again, in seconds; the last one repeats.
RETRY_SECONDS = (1.0, 5.0, 60.0)

#: Canceled timers that are tolerated in the heap, beyond as many as there are others.
MAX_CANCELLED = 64


def log_failure(what: str, error: BaseException) -> None:
    """Log an unexpected error; work goes on."""
    logger.error("%s met an unexpected error: %s", what, error, exc_info=error)


class Timer:
    """An action that is due at a time of `TimerQueue.clock`; None after it ran or was canceled."""

    __slots__ = ("action", "due", "failures", "number")

    def __init__(self, due: float, number: int, action: Callable[[], None]) -> None:
        self.due = due
        self.number = number
        self.action: Callable[[], None] | None = action
        self.failures = 0

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.number) < (other.due, other.number)


class TimerQueue:
    """Timers of one thread. An action that raises is reported and called again later.

    Args:
        clock: a monotonic clock, in seconds.
        on_error: takes the name of the action, and its error.
    """

    def __init__(
        self,
        clock: Callable[[], float] = elapsed,
        on_error: Callable[[str, Exception], None] = log_failure,
    ) -> None:
        self.clock = clock
        self.on_error = on_error
        self.heap: list[Timer] = []
        self.count = 0
        self.cancelled = 0

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` after ``seconds``, which may be any number."""
        self.count += 1
        timer = Timer(self.clock() + seconds, self.count, action)
        heapq.heappush(self.heap, timer)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Cancel a timer, and drop its action's references at once."""
        if timer is None or timer.action is None:
            return
        timer.action = None
        self.cancelled += 1
        if self.cancelled > MAX_CANCELLED and 2 * self.cancelled > len(self.heap):
            self.heap = [each for each in self.heap if each.action is not None]
            heapq.heapify(self.heap)
            self.cancelled = 0

    def pop(self) -> Timer | None:
        """The next timer that is due, if there is one."""
        heap = self.heap
        while heap and (heap[0].action is None or heap[0].due <= self.clock()):
            timer = heapq.heappop(heap)
            if timer.action is not None:
                return timer
            self.cancelled -= 1
        return None

    def call(self, timer: Timer) -> float | None:
        """Call a due action. Returns the seconds before the next try if it raised, else None."""
        action, timer.action = timer.action, None
        assert action is not None
        try:
            action()
        except Exception as error:
            self.on_error(f"A timer ({getattr(action, '__qualname__', action)})", error)
            timer.action = action
            timer.failures += 1
            return RETRY_SECONDS[min(timer.failures, len(RETRY_SECONDS)) - 1]
        return None

    def put_back(self, timer: Timer, seconds: float) -> None:
        """Schedule a called timer again."""
        timer.due = self.clock() + seconds
        heapq.heappush(self.heap, timer)

    def run(self) -> None:
        """Call all due actions."""
        while (timer := self.pop()) is not None:
            pause = self.call(timer)
            if pause is not None:
                self.put_back(timer, pause)

    def sleep_seconds(self) -> float:
        """The seconds until the next timer, at most `LONGEST_SLEEP`."""
        if not self.heap:
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(0.0, self.heap[0].due - self.clock()))


def end_process() -> None:
    """End this process now; Ray then restarts its actor."""
    os._exit(1)


def start_for_ever(
    work: Callable[[], None], name: str, end: Callable[[], None] = end_process
) -> threading.Thread:
    """Run ``work`` on a thread of its own, for ever. If the thread ends, the process ends, because
    a process without one of its threads seems alive but answers no calls."""

    def run() -> None:
        try:
            work()
        except BaseException:
            logger.critical("The thread %s died; the process ends.", name, exc_info=True)
        else:
            logger.critical("The thread %s ended; the process ends.", name)
        end()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
