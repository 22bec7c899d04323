"""asyncio on the world's clock: what awaits in a simulated process needs no thread and no time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from ray_workflows.testing.clock import VirtualClock

#: Takes blocking work, and does it at some time.
Threads = Callable[[Callable[[], None]], None]


class SimulatedLoop(asyncio.AbstractEventLoop):
    """The event loop of one process. Nothing runs in it any more once it is closed.

    Args:
        clock: the world's.
        threads: does what is given to a thread.
        on_error: takes what a callback raised, or nobody has awaited.
    """

    def __init__(
        self, clock: VirtualClock, threads: Threads, on_error: Callable[[str], None]
    ) -> None:
        self.clock = clock
        self.threads = threads
        self.on_error = on_error
        self.alive = True
        self.soon: deque[asyncio.Handle] = deque()
        self.runs_soon = False
        self.tasks: dict[asyncio.Task[Any], None] = {}

    # -- what asyncio asks for -------------------------------------------------------------

    def time(self) -> float:
        """The world's time."""
        return self.clock.now

    def get_debug(self) -> bool:
        """No."""
        return False

    def is_closed(self) -> bool:
        """Whether the process is dead."""
        return not self.alive

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call it next."""
        handle = asyncio.Handle(callback, args, self, context)
        self.soon.append(handle)
        self.run_soon()
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call it after a while."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call it at a time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.clock.at(when, lambda: self.run(handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays on the agenda, and does nothing."""

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        """Let a coroutine run."""
        task = asyncio.Task(coro, loop=self, **options)
        self.tasks[task] = None
        task.add_done_callback(lambda task: self.tasks.pop(task, None))
        return task

    def run_in_executor(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Give it to a thread."""
        future = self.create_future()

        def work() -> None:
            if not self.alive:
                return
            try:
                result = func(*args)
            except Exception as error:
                settle = future.set_exception, error
            else:
                settle = future.set_result, result
            self.call_soon(lambda: None if future.done() else settle[0](settle[1]))

        self.threads(work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Something went wrong that nobody has heard of."""
        if self.alive:
            self.on_error(f"{context.get('message')}: {context.get('exception')!r}")

    # -- its life --------------------------------------------------------------------------

    def run_soon(self) -> None:
        """Run what was called for, once that can be."""
        if self.soon and not self.runs_soon:
            self.runs_soon = True
            self.clock.after(0.0, self.run_some)

    def run_some(self) -> None:
        """Run what was called for until now."""
        for _ in range(len(self.soon)):
            if self.soon:
                self.run(self.soon.popleft())
        self.runs_soon = False
        self.run_soon()

    def run(self, handle: asyncio.Handle) -> None:
        """Run one callback."""
        if not self.alive or handle.cancelled():
            return
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    def close(self) -> None:
        """The process is dead: nothing that awaits goes on."""
        self.alive = False
        self.soon.clear()
        for task in list(self.tasks):
            task.get_coro().close()
        self.tasks.clear()
