"""Threads that take turns: of all of them and their driver, exactly one runs at a time.

Code that blocks, as that of workers does, runs in a fiber and hands the turn back where it would
wait. What happens is so determined by who gives whom the turn, and by nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """The process of this fiber is dead: nothing it does counts any more."""


class Turn:
    """A thread that runs one fiber after the other."""

    def __init__(self) -> None:
        #: Locks that are held until it is the turn of the thread, and of its driver.
        self.mine = threading.Lock()
        self.drivers = threading.Lock()
        self.mine.acquire()
        self.drivers.acquire()
        self.fiber: Fiber | None = None
        threading.Thread(target=self.run, name="simulated", daemon=True).start()

    def run(self) -> None:
        while True:
            self.mine.acquire()
            fiber = self.fiber
            assert fiber is not None
            fiber.live()
            self.fiber = None
            self.drivers.release()


#: Threads whose fiber has ended.
idle: list[Turn] = []


class Fiber:
    """Runs ``work``. All of its methods but `pause` are called by the driver.

    Args:
        work: what to run.
        ended: called by the driver, in `go_on`, when it has ended: with its result, and with what
            it raised.
    """

    def __init__(
        self, work: Callable[[], Any], ended: Callable[[Any, BaseException | None], None]
    ) -> None:
        self.work = work
        self.ended = ended
        self.turn: Turn | None = None
        self.killed = False
        self.over = False
        self.result: Any = None
        self.error: BaseException | None = None
        #: How often it was continued: a wake-up that comes late is for an earlier pause.
        self.turns = 0

    def live(self) -> None:
        """Run to the end, in its thread."""
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error
        self.over = True

    def go_on(self) -> None:
        """Let it run until it pauses or ends."""
        if self.over:
            return
        turn = self.turn
        if turn is None:
            turn = self.turn = idle.pop() if idle else Turn()
            turn.fiber = self
        self.turns += 1
        turn.mine.release()
        turn.drivers.acquire()
        if self.over:
            self.turn = None
            idle.append(turn)
            self.ended(self.result, self.error)

    def pause(self) -> None:
        """Hand the turn back, in its thread, until it is continued."""
        if self.killed:
            raise Killed
        turn = self.turn
        assert turn is not None
        turn.drivers.release()
        turn.mine.acquire()
        if self.killed:
            raise Killed

    def kill(self) -> None:
        """Let it end at once: wherever it waits, it raises `Killed`."""
        self.killed = True
        if self.turn is None:
            self.over = True
        else:
            self.go_on()
            assert self.over, "a fiber that was killed went on"
