"""Timers of one thread on a clock that nobody sets, and threads whose death ends the process.

It is the only mechanism by which the coordinator does something later: alarms of workflows, jobs
that repeat, deadlines of attempts.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
from collections.abc import Callable

from ray_workflows._elapsed import elapsed

logger = logging.getLogger(__name__)

#: The longest that a thread sleeps, in seconds. No lock or queue waits for a year, and none of
#: them counts the time for which the machine sleeps.
LONGEST_SLEEP = 60.0

#: Pauses before an action is called again that raised, in seconds; the last one repeats.
RETRY_SECONDS = (1.0, 5.0, 60.0)

#: Cancelled timers that are kept, beside as many as there are others.
MAX_CANCELLED = 64


def log_failure(what: str, error: BaseException) -> None:
    """Log an error that nobody expected; work goes on."""
    logger.error("%s met an unexpected error: %s", what, error, exc_info=error)


class Timer:
    """An action that is due at a time of `TimerQueue.clock`; without action once it is over."""

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
        clock: seconds of a clock that nobody sets.
        on_error: takes what raised, and the error.
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
        """Call ``action`` after a while; any number of seconds will do."""
        self.count += 1
        timer = Timer(self.clock() + seconds, self.count, action)
        heapq.heappush(self.heap, timer)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Do not call it. What the action refers to is let go of at once."""
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
        """Call an action that is due; after how many seconds to call it again, if it raised."""
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
        """Let a timer that was called be due again after a while."""
        timer.due = self.clock() + seconds
        heapq.heappush(self.heap, timer)

    def run(self) -> None:
        """Call all that is due."""
        while (timer := self.pop()) is not None:
            pause = self.call(timer)
            if pause is not None:
                self.put_back(timer, pause)

    def sleep_seconds(self) -> float:
        """How long there is nothing to do, at most `LONGEST_SLEEP`."""
        if not self.heap:
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(0.0, self.heap[0].due - self.clock()))


def end_process() -> None:
    """End this process now; Ray starts an actor anew whose process has ended."""
    os._exit(1)


def start_for_ever(
    work: Callable[[], None], name: str, end: Callable[[], None] = end_process
) -> threading.Thread:
    """Run ``work`` on a thread of its own. It never ends: if it does, the process ends.

    A process without one of its threads looks alive, and answers nobody.
    """

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
