"""Periodic jobs of the coordinator. A job says when it is due again, and stays scheduled even if a
run raises."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from ray_workflows._coordinator.offload import Offloader
from ray_workflows._executor.timers import RETRY_SECONDS, Timer, TimerQueue

#: One run of a job. It yields blocking work, gets its result sent or its exception thrown, and
#: returns the seconds until the next run; None for no next run.
Steps = Generator[Callable[[], Any], Any, "float | None"]


class Job:
    """Periodic work on the loop's thread, with blocking work offloaded in between.

    If a run raises, `TimerQueue.on_error` gets the error, and the job is due again. This class
    schedules the next run, so no job can forget to.

    Args:
        name: what it does, for the log.
        steps: begins a run.
        timers: of the loop.
        offloader: runs blocking work.
    """

    def __init__(
        self, name: str, steps: Callable[[], Steps], timers: TimerQueue, offloader: Offloader
    ) -> None:
        self.name = name
        self.steps = steps
        self.timers = timers
        self.offloader = offloader
        self.timer: Timer | None = None
        self.running: Steps | None = None
        self.hurried = False
        self.failures = 0
        #: Since when it waits for blocking work, on the timers' clock; None if it does not.
        self.waits_since: float | None = None

    def start(self, seconds: float = 0.0) -> None:
        """Schedule the first run."""
        self.timer = self.timers.after(seconds, self.begin)

    def hurry(self) -> None:
        """Run now; if a run is in progress, run again after it."""
        if self.running is not None:
            self.hurried = True
        elif self.timer is not None:
            self.timers.cancel(self.timer)
            self.timer = self.timers.after(0.0, self.begin)

    def begin(self) -> None:
        self.timer = None
        self.running = self.steps()
        self.go_on(self.running.send, None)

    def go_on(self, move: Callable[[Any], Callable[[], Any]], value: Any) -> None:
        """Advance a run to its next blocking work, or to its end."""
        seconds: float | None
        try:
            work = move(value)
            self.waits_since = self.timers.clock()
            self.offloader.call(work, self.came)
            return
        except StopIteration as end:
            seconds = end.value
            self.failures = 0
        except Exception as error:
            self.failures += 1
            seconds = RETRY_SECONDS[min(self.failures, len(RETRY_SECONDS)) - 1]
            self.timers.on_error(f"The job '{self.name}'", error)
        self.running = None
        if seconds is not None:
            self.start(0.0 if self.hurried else seconds)
        self.hurried = False

    def came(self, result: Any) -> None:
        """Continue a run with the result of its blocking work."""
        assert self.running is not None
        self.waits_since = None
        if isinstance(result, Exception):
            self.go_on(self.running.throw, result)
        else:
            self.go_on(self.running.send, result)
