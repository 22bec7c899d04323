"""Runs the code of a body: a coroutine on a deterministic event loop, or a function on a thread.

The host gives outcomes, and takes news and local work. Code of users may raise anything: that is
how its body ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from zlib import crc32

from ray_workflows._executor.worker.bodies.body import (
    Asked,
    Body,
    BodyLeft,
    UnreadableOutcome,
    current_body,
)
from ray_workflows._executor.worker.bodies.event_loop import BodyLoop
from ray_workflows._executor.worker.bodies.scopes import Scope, current_scope
from ray_workflows._executor.worker.bodies.step_calls import StepCall
from ray_workflows._model.steps import StepOutcome

#: How long to wait for a function that the host has left and that does not end, in seconds.
LEAVE_SECONDS = 1.0


class RunningBody:
    """A body whose code runs, waits or has ended.

    ``ended``: its ``result`` and ``error`` are known; one of them is None. A body that the host has
    left has not ended.
    """

    def __init__(self, body: Body, code: Callable[[], Any]) -> None:
        """``code``: is called once, and returns the coroutine, or the result."""
        self.body = body
        self.code = code
        self.begun = False
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        #: Held while the code may run.
        self.lock = threading.Lock()
        self.context = contextvars.copy_context()
        self.context.run(current_body.set, body)
        self.context.run(current_scope.set, Scope(""))

    @property
    def idle(self) -> bool:
        """Whether the code waits, and this process has nothing to do for it."""
        return self.begun and not self.ended and self.body.local == 0

    @property
    def stuck(self) -> bool:
        """Whether the code waits, and for no step at all: nothing can wake it."""
        waits = any(not asked.canceled for asked in self.body.open.values())
        return self.begun and not self.ended and not waits

    def advance(self, outcomes: Iterable[StepOutcome] = ()) -> None:
        """Take outcomes one by one. Returns when the code waits for more of them, or has ended.

        Raises:
            UnreadableOutcome: an outcome could not be read. It and those after it were not taken.
        """
        if self.ended or self.body.left:
            return
        with self.lock:
            try:
                self.run(outcomes)
            finally:
                self.begun = True
        if self.body.left:
            # Somebody left the body meanwhile.
            self.leave()

    def leave(self) -> None:
        """Leave the code where it is. It does not go on, and its `finally` blocks run.

        If it runs now, in another thread, it is left as soon as it asks for a step or waits.
        """
        if not self.ended:
            self.body.left = True
        self.body.halt()
        if self.lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self.lock.release()

    def end(self, result: Any, error: BaseException | None) -> None:
        if self.body.failure is not None:
            result, error = None, self.body.failure
        self.result, self.error, self.ended = result, error, True
        if error is None:
            self.body.warn_of_forgotten_steps()

    def run(self, outcomes: Iterable[StepOutcome]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class AsyncBody(RunningBody):
    """A coroutine, on an event loop that does the same each time."""

    def __init__(self, body: Body, code: Callable[[], Any]) -> None:
        super().__init__(body, code)
        self.loop = BodyLoop(  # type: ignore[abstract]
            now=body.now,
            open_timer=self.open_timer,
            next_number=body.next_number,
            # The same in each process.
            salt=crc32(body.where.encode()) >> 4,
            quiet=lambda: body.replaying,
        )
        self.main: asyncio.Task[Any] | None = None
        #: Tasks that were not done when the main one was.
        self.rest: list[asyncio.Task[Any]] = []
        body.is_async = True
        body.outcome_of = lambda asked: StepCall(body, asked, self.loop)
        body.halt = self.halt

    def halt(self) -> None:
        self.loop.halted = True

    def open_timer(self, delay: float, fire: Callable[[], None], line: str) -> Callable[[], object]:
        asked = self.body.timer(delay, line)
        asked.waker = fire
        return partial(self.body.cancel, asked)

    def run(self, outcomes: Iterable[StepOutcome]) -> None:
        body = self.body
        body.thread = threading.get_ident()
        try:
            if self.main is None:
                self.begin()
                self.run_turn()
            for outcome in outcomes:
                if self.ended or body.left:
                    break
                body.take(outcome)
                self.run_turn()
        finally:
            body.thread = None

    def begin(self) -> None:
        loop = self.loop
        try:
            with loop.running():
                coroutine = self.context.run(self.code)
            if not asyncio.iscoroutine(coroutine):
                raise TypeError(
                    f"{self.body.where}: a durable async function has to return a coroutine, not "
                    f"{type(coroutine).__name__}."
                )
        except BaseException as error:
            coroutine = raise_again(error)
        number = self.body.next_number()
        self.main = loop.add_task(coroutine, number, "Task-main", self.context, {})
        self.main.add_done_callback(self.cancel_rest, context=self.context)

    def cancel_rest(self, main: asyncio.Task[Any]) -> None:
        """As asyncio.run does when the main coroutine has returned."""
        self.rest = [task for task in self.loop.tasks if task is not main]
        for task in self.rest:
            task.cancel()

    def run_turn(self) -> None:
        loop, main = self.loop, self.main
        assert main is not None
        loop.run_until_idle()
        if self.body.left:
            return
        done = main.done() and all(task.done() for task in self.rest)
        self.body.end_turn(ended=done)
        if self.body.failure is not None:
            self.end(None, None)
        elif loop.fatal is not None:
            self.end(None, loop.fatal)
        elif done:
            self.log_rest()
            if main.cancelled():
                self.end(None, asyncio.CancelledError())
            else:
                error = main.exception()
                self.end(None if error else main.result(), error)
        if self.ended:
            self.body.left = True
            self.close()

    def log_rest(self) -> None:
        for task in self.rest:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.loop.call_exception_handler(
                    {
                        "message": "A task failed when its durable function had ended.",
                        "exception": error,
                    }
                )

    def close(self) -> None:
        self.loop.leave()


async def raise_again(error: BaseException) -> None:
    raise error


class PlainBody(RunningBody):
    """A function, on a thread of its own.

    The thread takes outcomes itself, where it waits: a replay switches no threads. Either it runs
    or the host does, never both.
    """

    def __init__(self, body: Body, code: Callable[[], Any]) -> None:
        super().__init__(body, code)
        self.thread: threading.Thread | None = None
        self.outcomes: deque[StepOutcome] = deque()
        #: Released when the host, or the thread, has to go on.
        self.host_goes, self.thread_goes = threading.Lock(), threading.Lock()
        self.host_goes.acquire()
        self.thread_goes.acquire()
        self.closed = False
        self.unreadable: UnreadableOutcome | None = None
        body.outcome_of = self.wait

    def run(self, outcomes: Iterable[StepOutcome]) -> None:
        self.outcomes.extend(outcomes)
        if self.thread is None:
            self.thread = threading.Thread(
                target=self.context.run,
                args=(self.run_code,),
                name="ray-workflows-body",
                daemon=True,
            )
            self.thread.start()
        elif self.outcomes:
            self.thread_goes.release()
        else:
            return
        self.host_goes.acquire()
        if self.unreadable is not None:
            error, self.unreadable = self.unreadable, None
            self.outcomes.clear()
            raise error

    def run_code(self) -> None:
        body = self.body
        body.thread = threading.get_ident()
        result, error = None, None
        try:
            result = self.code()
        except BaseException as raised:
            error = raised
        if not body.left:
            body.end_turn(ended=True)
            self.end(result, error)
            body.left = True
        self.host_goes.release()

    def wait(self, asked: Asked) -> Any:
        """Wait for the outcome of a step, in the thread of the code."""
        body = self.body
        while not asked.taken:
            body.check()
            body.end_turn()
            body.check()
            while not self.outcomes:
                self.hand_over()
            try:
                body.take(self.outcomes[0])
            except UnreadableOutcome as error:
                self.unreadable = error
                self.hand_over()
            else:
                self.outcomes.popleft()
        body.check()
        return asked.get()

    def hand_over(self) -> None:
        """Let the host go on, until it has outcomes."""
        self.host_goes.release()
        self.thread_goes.acquire()
        if self.body.left:
            raise BodyLeft

    def close(self) -> None:
        if self.thread is None or self.ended:
            return
        if not self.closed:
            self.closed = True
            self.thread_goes.release()
        self.thread.join(LEAVE_SECONDS)
