"""Jobs of the coordinator that repeat: each says when it is due again, and is due again whatever
becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from ray_workflows._coordinator.offload import Offloader
from ray_workflows._executor.timers import RETRY_SECONDS, Timer, TimerQueue

#: One run of a job. It yields blocking work, is sent what that returned or thrown what that raised,
#: and returns after how many seconds the job is due again; None if that is all.
Steps = Generator[Callable[[], Any], Any, "float | None"]


class Job:
    """Something that is done again and again on the loop's thread, with blocking work in between.

    A run that raises is reported to `TimerQueue.on_error`, and the job is due again: no job re-arms
    itself, so none can forget to.

    Args:
        name: what it does, for the log.
        steps: begins a run.
        timers: of the loop.
        offloader: does blocking work.
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
        #: Since when it waits for blocking work, by the clock of the timers; None if it does not.
        self.waits_since: float | None = None

    def start(self, seconds: float = 0.0) -> None:
        """Let it be due for the first time."""
        self.timer = self.timers.after(seconds, self.begin)

    def hurry(self) -> None:
        """Let it be due at once; one that is being done is done once more."""
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
        """Take a run to its next piece of blocking work, or to its end."""
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
        """Blocking work is done."""
        assert self.running is not None
        self.waits_since = None
        if isinstance(result, Exception):
            self.go_on(self.running.throw, result)
        else:
            self.go_on(self.running.send, result)
