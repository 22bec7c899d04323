"""The event loop of an async body: asyncio that does the same each time.

It runs callbacks in the order in which they came, and its time is that of the body. All that has to
do with the world (sockets, threads, signals) is refused: it would not be the same the next time.
The hashes of tasks are the same each time, so that sets of them, as asyncio has some, are too.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import contextvars
import gc
import inspect
import logging
import math
import sys
import threading
from asyncio import _get_running_loop as get_running_loop
from asyncio import _set_running_loop as set_running_loop
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from sys import _getframe as get_frame
from types import CoroutineType, FrameType
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from ray_workflows._executor.worker.bodies.body import BodyLeft
from ray_workflows._executor.worker.bodies.scopes import Scope, current_scope
from ray_workflows._executor.worker.bodies.step_calls import StepCall

logger = logging.getLogger(__name__)

TASKS = vars(asyncio.tasks)

#: Whether tasks can be given a context; before, they always copied the current one.
TAKES_CONTEXT = sys.version_info >= (3, 11)

#: Where coroutines can be that nobody has awaited.
CONTAINERS: frozenset[type] = frozenset(
    (list, tuple, set, dict, type(iter([])), type(iter(())), type(iter(set())), type(iter({})))
)

#: How many callbacks may run without a wait. More are a loop around `asyncio.sleep(0)`, during
#: which no outcome could ever be taken.
MAX_CALLBACKS = 20_000_000

#: How many objects are searched for coroutines that nobody has awaited.
MAX_SEARCHED = 100_000

#: How often a coroutine that is closed may wait again, before it is abandoned.
MAX_CLOSES = 100


class BodyHandle(asyncio.Handle):
    """A callback that is ready."""

    __slots__ = ()

    def run(self) -> None:
        if not self._cancelled:
            self._run()


class BodyTimer(asyncio.TimerHandle):
    """A callback behind a durable timer. ``stop`` cancels the timer."""

    __slots__ = ("stop",)

    stop: Callable[[], object] | None

    def run(self) -> None:
        if not self._cancelled:
            self._run()

    def cancel(self) -> None:
        if not self._cancelled and self.stop is not None:
            self.stop()
        asyncio.Handle.cancel(self)


class BodyTask(asyncio.Task[Any]):
    """A task with a hash that is the same each time: the order of a set of tasks depends on it."""

    def __init__(self, coroutine: Any, number: int, scoped: contextvars.Context, **options: Any):
        self.number = number
        #: Where its coroutine is closed; it has the scope of the task.
        self.scoped = scoped
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self.number


def asyncio_function(frame: FrameType | None) -> str:
    """The function of asyncio.tasks that the user's code called; empty if there is none."""
    name = ""
    while frame is not None and frame.f_globals is TASKS:
        name = frame.f_code.co_name
        frame = frame.f_back
    return name


def line_of(frame: FrameType | None) -> str:
    """The line outside of asyncio that led to a frame."""
    while frame is not None and frame.f_globals.get("__name__", "").startswith("asyncio."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""


def refuse(name: str) -> Callable[..., NoReturn]:
    def refused(self: BodyLoop, *args: Any, **options: Any) -> NoReturn:
        raise RuntimeError(
            f"A durable function can't do this itself (loop.{name}), because it may be run again. "
            f"Do it in a step."
        )

    refused.__name__ = name
    return refused


class BodyLoop(asyncio.AbstractEventLoop):
    """A deterministic event loop. It runs when `run_until_idle` is called.

    Args:
        now: the time of the body, in seconds.
        open_timer: takes a delay in seconds, what to call then, and the line that asked for it.
            Returns a function that cancels the timer.
        next_number: counts tasks.
        salt: is added to hashes of tasks. Of less than 28 bits. asyncio has a set of all tasks of
            the process, in which those of many bodies should not have the same hashes.
        quiet: whether errors that nobody looks at need no log, because they were logged before.
    """

    def __init__(
        self,
        now: Callable[[], float],
        open_timer: Callable[[float, Callable[[], None], str], Callable[[], object]],
        next_number: Callable[[], int],
        salt: int = 0,
        quiet: Callable[[], bool] = lambda: False,
    ) -> None:
        self.now = now
        self.open_timer = open_timer
        self.next_number = next_number
        self.salt = salt << 32
        self.quiet = quiet
        self.ready: deque[BodyHandle | BodyTimer] = deque()
        #: Tasks that are not done, in the order in which they were made.
        self.tasks: dict[asyncio.Task[Any], None] = {}
        #: Async generators that have begun and are in use, by their number.
        self.generators: WeakValueDictionary[int, AsyncGenerator[Any, Any]] = WeakValueDictionary()
        self.begun_generators = 0
        self.generator_scope = Scope("generators")
        self.factory: Any = None
        self.handler: Any = None
        self.thread: int | None = None
        #: Whether it runs no more callbacks, and whether its code must not go on.
        self.halted = False
        self.left = False
        #: What stopped it: SystemExit or KeyboardInterrupt of a callback, or endless polling.
        self.fatal: BaseException | None = None

    # Running.

    def run_until_idle(self) -> None:
        """Run what is ready, and what becomes ready by that, until nothing is."""
        ready = self.ready
        before = self.enter()
        try:
            for _ in range(MAX_CALLBACKS):
                if not ready or self.halted:
                    break
                ready.popleft().run()
            else:
                raise RuntimeError(
                    "The durable function does not wait for anything: it seems to poll with "
                    "asyncio.sleep(0). Nothing happens while it does. Wait for a step, a signal "
                    "or a sleep of some length."
                )
        except BaseException as error:
            # Callbacks catch all but SystemExit and KeyboardInterrupt.
            self.fatal = error
            self.halted = True
        finally:
            self.exit(before)

    def enter(self) -> tuple[Any, Any]:
        """Be the running loop of this thread. Returns what was before."""
        before = get_running_loop(), sys.get_asyncgen_hooks()
        self.thread = threading.get_ident()
        set_running_loop(self)
        sys.set_asyncgen_hooks(self.begin_generator, self.drop_generator)
        return before

    def exit(self, before: tuple[Any, Any]) -> None:
        loop, hooks = before
        sys.set_asyncgen_hooks(*hooks)
        set_running_loop(loop)
        self.thread = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the running loop of this thread."""
        before = self.enter()
        try:
            yield
        finally:
            self.exit(before)

    def is_running(self) -> bool:
        return self.thread is not None

    def is_closed(self) -> bool:
        return self.left

    def close(self) -> None:
        self.refuse_if_running()
        self.leave()

    def refuse_if_running(self) -> None:
        if self.is_running():
            raise RuntimeError("The event loop of a durable function can't be closed by its code.")

    def leave(self) -> None:
        """Close all coroutines. Their `finally` blocks run; nothing they ask for is done."""
        self.left = self.halted = True
        self.ready.clear()
        with self.running():
            for task in reversed(self.tasks):
                if isinstance(task.get_coro(), StepCall):
                    continue
                context = task.scoped if isinstance(task, BodyTask) else contextvars.copy_context()
                with suppress(BaseException):
                    context.run(close_coroutine, task.get_coro())
            self.tasks.clear()
            for generator in list(self.generators.values()):
                close_generator(generator)
            self.generators.clear()
        self.ready.clear()

    # Callbacks and time.

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = BodyHandle(callback, args, self, context)
        self.ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if self.thread != threading.get_ident():
            raise RuntimeError(
                "A durable function can't be called by another thread (loop.call_soon_threadsafe), "
                "because it may be run again. Do it in a step."
            )
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        if math.isnan(delay):
            raise ValueError("The delay of a timer is not a number (NaN).")
        timer = BodyTimer(self.now() + delay, callback, args, self, context)
        timer.stop = None
        if delay <= 0:
            self.ready.append(timer)
        elif not math.isinf(delay):
            timer.stop = self.open_timer(
                delay, lambda: self.ready.append(timer), line_of(get_frame(1))
            )
        return timer

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        # Rounded, because a time since 1970 has an error of some 0.2 microseconds.
        return self.call_later(round(when - self.now(), 6), callback, *args, context=context)

    def time(self) -> float:
        return self.now()

    # Tasks and futures.

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        """Create a task. It has a scope of its own, unless it only waits for a step."""
        if self.left:
            if asyncio.iscoroutine(coro):
                coro.close()
            raise BodyLeft
        # A copy, also of one that is given: each task has a scope of its own.
        context = contextvars.copy_context() if context is None else context.copy()
        if isinstance(coro, StepCall):
            # As asyncio.as_completed makes them in the order of addresses.
            number = coro.asked.number
        else:
            called = asyncio_function(get_frame(1))
            if called == "as_completed":
                coro.close()
                raise TypeError(
                    "In a durable function asyncio.as_completed can't make tasks of coroutines: "
                    "it would do so in another order each time. Make the tasks first, in a fixed "
                    "order: [asyncio.create_task(f(x)) for x in xs]"
                )
            number = self.next_number()
            scope = current_scope.get(None)
            # asyncio.wait_for makes a task before Python 3.12, and none since.
            if called != "wait_for" and scope is not None:
                context.run(current_scope.set, scope.child())
        return self.add_task(coro, number, name or f"Task-{number}", context, options)

    def add_task(
        self,
        coro: Awaitable[Any],
        number: int,
        name: str,
        context: contextvars.Context,
        options: dict[str, Any],
    ) -> asyncio.Task[Any]:
        """Create a task that runs in a context."""
        make: Callable[..., asyncio.Task[Any]]
        if self.factory is None:
            make = partial(BodyTask, coro, self.salt + number, context, loop=self, name=name)
        else:
            make = partial(self.factory, self, coro)
        task = make(context=context, **options) if TAKES_CONTEXT else context.run(make, **options)
        if self.factory is not None and hasattr(task, "set_name"):
            task.set_name(name)
        if not task.done():
            self.tasks[task] = None
            task.add_done_callback(self.forget)
        return task

    def forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)

    def set_task_factory(self, factory: Any) -> None:
        self.factory = factory

    def get_task_factory(self) -> Any:
        return self.factory

    # Async generators.

    def begin_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self.begun_generators += 1
        self.generators[self.begun_generators] = generator

    def drop_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close a generator that nobody uses any more."""
        if self.left or self.thread != threading.get_ident():
            close_generator(generator)
            return
        # Not a child of the task that runs: garbage is collected in any of them.
        context = contextvars.copy_context()
        context.run(current_scope.set, self.generator_scope)
        self.add_task(generator.aclose(), 0, "Task-generator", context, {})

    async def shutdown_asyncgens(self) -> None:
        generators = list(self.generators.values())
        self.generators.clear()
        for generator in generators:
            await generator.aclose()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    # Errors that nobody looks at.

    def set_exception_handler(self, handler: Any) -> None:
        self.handler = handler

    def get_exception_handler(self) -> Any:
        return self.handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        logger.error(
            "%s", context.get("message", "Error in a durable function"), exc_info=error or None
        )

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.left or self.quiet():
            return
        if self.handler is None:
            self.default_exception_handler(context)
            return
        try:
            self.handler(self, context)
        except Exception:
            logger.exception("The exception handler of a durable function raised.")

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Debug mode is for loops that wait for real time."""


def refused_names() -> Iterator[str]:
    """What asyncio's loops have and this one has not."""
    for name, value in vars(asyncio.AbstractEventLoop).items():
        if callable(value) and not name.startswith("_") and name not in vars(BodyLoop):
            yield name


for refused_name in list(refused_names()):
    setattr(BodyLoop, refused_name, refuse(refused_name))


def is_unstarted(coroutine: CoroutineType[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED


def close_unstarted(root: Any) -> None:
    """Close what a coroutine has made and not awaited: Python would warn of it."""
    todo, seen, searched = [root], {id(root)}, 0
    while todo and searched < MAX_SEARCHED:
        item = todo.pop()
        for each in gc.get_referents(item):
            searched += 1
            kind = type(each)
            follows = kind in CONTAINERS
            if kind is FrameType:
                follows = True
                # It refers to the globals of its module.
                seen.update((id(each.f_globals), id(each.f_builtins)))
            if kind is CoroutineType:
                if is_unstarted(each):
                    each.close()
                else:
                    follows = True
            if follows and id(each) not in seen:
                seen.add(id(each))
                todo.append(each)


def close_coroutine(coroutine: Any) -> None:
    """End a coroutine, also if it waits in its `finally` blocks."""
    close_unstarted(coroutine)
    for _ in range(MAX_CLOSES):
        with suppress(BaseException):
            coroutine.close()
        if getattr(coroutine, "cr_frame", None) is None:
            return


def close_generator(generator: AsyncGenerator[Any, Any]) -> None:
    """Run the `finally` blocks of an async generator, up to the first that waits."""
    with suppress(BaseException):
        generator.aclose().__await__().send(None)
