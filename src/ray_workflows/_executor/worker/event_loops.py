"""Event loops for listeners, on threads of their own.

Thousands of listeners share a loop. If one blocks the loop, all others start again on a new loop.
This module knows nothing of attempts, storages or Ray.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two checks of the loops.
CHECK_SECONDS = 0.1

#: A loop that has not responded during this many checks is blocked. Not a time, because a starved
#: process delays its checks too.
BLOCKED_LOOKS = 4

#: Threads for blocking work: reading arguments, writing results.
MAX_THREADS = 256


class UserError(Exception):
    """Wraps an exception of user code, also one that would end a thread or an event loop."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


class Member:
    """A coroutine on a shared loop."""

    def __init__(self) -> None:
        #: Its result or `UserError`; a `CancelledError` if it has to start again.
        self.done: Future[Any] = Future()
        self.task: asyncio.Task[Any] | None = None


#: The member whose coroutine is running, which owns tasks that it creates.
creator: ContextVar[Member] = ContextVar("ray_workflows_listener")


class LoopThread:
    """An event loop on a thread of its own, and the coroutines on it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(self.create_task)
        self.lock = threading.Lock()
        self.members: set[Member] = set()
        self.owners: WeakKeyDictionary[Any, Member] = WeakKeyDictionary()
        #: Checks since the loop last responded.
        self.looks = 0
        #: Whether the loop takes no more members.
        self.left = False
        thread = threading.Thread(target=self.run, name="ray-workflows-listeners", daemon=True)
        thread.start()

    def run(self) -> None:
        while not self.loop.is_closed():
            try:
                self.loop.run_forever()
            except BaseException:
                # asyncio does not catch SystemExit and KeyboardInterrupt of a user's task.
                logger.warning("A listener tried to end its process.", exc_info=True)
                continue
            self.loop.close()

    def create_task(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        member = creator.get(None)
        if member is not None:
            self.owners[task] = member
        return task

    def start(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Member | None:
        """Start a coroutine; None if the loop takes no more members."""
        member = Member()
        with self.lock:
            if self.left:
                return None
            self.members.add(member)

        def begin() -> None:
            creator.set(member)
            member.task = self.loop.create_task(follow(member, make))
            # Runs also if the task is canceled before its first step.
            member.task.add_done_callback(lambda _: self.remove(member))

        self.loop.call_soon_threadsafe(begin)
        return member

    def remove(self, member: Member) -> None:
        with self.lock:
            self.members.discard(member)
            over = self.left and not self.members
        if over:
            self.loop.call_soon_threadsafe(self.loop.stop)

    def cancel(self, member: Member) -> None:
        """Stop a coroutine as soon as the loop responds."""
        self.loop.call_soon_threadsafe(lambda: member.task and member.task.cancel())

    def is_blocked(self) -> bool:
        """Whether the loop does not respond."""
        self.looks += 1
        if self.looks == 1:
            self.loop.call_soon_threadsafe(self.come_round)
        return self.looks > BLOCKED_LOOKS

    def leave(self) -> None:
        """Abandon the loop to the coroutine that blocks it; all others start again elsewhere."""
        running = asyncio.current_task(self.loop)
        blocker = None if running is None else self.owners.get(running)
        with self.lock:
            self.left = True
            others = [member for member in self.members if member is not blocker]
        for member in others:
            self.cancel(member)
            member.done.cancel()

    def come_round(self) -> None:
        self.looks = 0


async def follow(member: Member, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Make and run a coroutine, and settle its member."""
    try:
        result = await make()
    except BaseException as error:
        settle(member.done, None, UserError(error))
    else:
        settle(member.done, result, None)


def settle(done: Future[Any], result: Any, error: Exception | None) -> None:
    """Set a result, unless the future is done already."""
    if done.set_running_or_notify_cancel():
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)


async def call_on_thread(threads: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
    """Run a function that may block and raise anything.

    Raises:
        UserError: it raised.
    """

    def guarded() -> tuple[Any, BaseException | None]:
        try:
            return function(*args), None
        except BaseException as error:
            return None, error

    loop = asyncio.get_running_loop()
    result, error = await loop.run_in_executor(threads, guarded)
    if error is not None:
        raise UserError(error)
    return result  # type: ignore[no-any-return]


class Loops:
    """The loops of a process. One is shared; a blocked one ends with the coroutine that blocked
    it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shared: LoopThread | None = None
        self.threads = ThreadPoolExecutor(MAX_THREADS, "ray-workflows-listener-io")

    async def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine. If another one blocks its loop, it is made and started anew.

        Raises:
            UserError: it raised.
        """
        while True:
            thread = self.shared_loop()
            member = thread.start(make)
            if member is None:
                continue
            try:
                done = asyncio.wrap_future(member.done)
                await asyncio.wait([done])
            except asyncio.CancelledError:
                thread.cancel(member)
                raise
            if not done.cancelled():
                result: T = done.result()
                return result

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """As `call_on_thread`."""
        return await call_on_thread(self.threads, function, *args)

    def shared_loop(self) -> LoopThread:
        with self.lock:
            if self.shared is None:
                self.shared = LoopThread()
                threading.Thread(
                    target=self.watch,
                    args=(self.shared,),
                    name="ray-workflows-listener-watch",
                    daemon=True,
                ).start()
            return self.shared

    def watch(self, thread: LoopThread) -> None:
        """Check the shared loop until it is blocked; then abandon it."""
        while True:
            time.sleep(CHECK_SECONDS)
            if thread.is_blocked():
                with self.lock:
                    self.shared = None
                thread.leave()
                return


class OneLoop:
    """A `Loops` for coroutines that never block: runs everything in the caller's event loop."""

    async def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine; raises `UserError`."""
        try:
            return await make()
        except GeneratorExit:
            # The process is ending.
            raise
        except BaseException as error:
            raise UserError(error) from error

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function; raises `UserError`."""
        try:
            return function(*args)
        except BaseException as error:
            raise UserError(error) from error
