"""Event loops for listeners, on threads of their own.

Listeners share a loop, thousands at a time. One that blocks it keeps that loop for itself: all
others of it start again on another loop. It knows nothing of attempts, storages or Ray.
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

#: Between two looks at the loops, in seconds.
CHECK_SECONDS = 0.1

#: A loop that has not come round for so many looks is blocked. Not a time: where the machine gives
#: this process none, the looks wait too.
BLOCKED_LOOKS = 4

#: Threads for what blocks: reading arguments, writing results.
MAX_THREADS = 256


class UserError(Exception):
    """Carries what user code raised, also what would end a thread or an event loop."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


class Member:
    """A coroutine on a shared loop."""

    def __init__(self) -> None:
        #: Its result, or a `UserError`; a `CancelledError` if it has to start again.
        self.done: Future[Any] = Future()
        self.task: asyncio.Task[Any] | None = None


#: Whose coroutine creates a task.
creator: ContextVar[Member] = ContextVar("ray_workflows_listener")


class LoopThread:
    """An event loop on a thread of its own, and the coroutines on it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(self.create_task)
        self.lock = threading.Lock()
        self.members: set[Member] = set()
        self.owners: WeakKeyDictionary[Any, Member] = WeakKeyDictionary()
        #: Looks since it came round.
        self.looks = 0
        #: No others come any more.
        self.left = False
        thread = threading.Thread(target=self.run, name="ray-workflows-listeners", daemon=True)
        thread.start()

    def run(self) -> None:
        while not self.loop.is_closed():
            try:
                self.loop.run_forever()
            except BaseException:
                # asyncio lets SystemExit and KeyboardInterrupt of a user's task through.
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
        """Begin to run a coroutine; None if no others come here any more."""
        member = Member()
        with self.lock:
            if self.left:
                return None
            self.members.add(member)

        def begin() -> None:
            creator.set(member)
            member.task = self.loop.create_task(follow(member, make))
            # Also of one that is canceled before its first step.
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
        """Stop a coroutine as soon as the loop comes round."""
        self.loop.call_soon_threadsafe(lambda: member.task and member.task.cancel())

    def is_blocked(self) -> bool:
        """Whether the loop does not come round."""
        self.looks += 1
        if self.looks == 1:
            self.loop.call_soon_threadsafe(self.come_round)
        return self.looks > BLOCKED_LOOKS

    def leave(self) -> None:
        """Leave the loop to what blocks it; all others have to start again elsewhere."""
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
    """Set a result, unless nobody waits for it any more."""
    if done.set_running_or_notify_cancel():
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)


class Loops:
    """The loops of a process. One is shared; those that were blocked end with what blocked them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shared: LoopThread | None = None
        self.threads = ThreadPoolExecutor(MAX_THREADS, "ray-workflows-listener-io")

    async def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine returns. It is made and started anew if another one blocks its loop.

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
        """What a function returns that may block, and may raise whatever it likes.

        Raises:
            UserError: it raised.
        """

        def guarded() -> tuple[Any, BaseException | None]:
            try:
                return function(*args), None
            except BaseException as error:
                return None, error

        loop = asyncio.get_running_loop()
        result, error = await loop.run_in_executor(self.threads, guarded)
        if error is not None:
            raise UserError(error)
        return result  # type: ignore[no-any-return]

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
        """Look at the shared loop until it is blocked; then there is another one."""
        while True:
            time.sleep(CHECK_SECONDS)
            if thread.is_blocked():
                with self.lock:
                    self.shared = None
                thread.leave()
                return


class OneLoop:
    """In place of `Loops` where nothing blocks: everything runs in the caller's event loop."""

    async def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine returns; raises `UserError`."""
        try:
            return await make()
        except GeneratorExit:
            # Its process is going away.
            raise
        except BaseException as error:
            raise UserError(error) from error

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """What a function returns; raises `UserError`."""
        try:
            return function(*args)
        except BaseException as error:
            raise UserError(error) from error
