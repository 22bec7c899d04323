"""The loop's inbox, and blocking work on threads, whose results return to the loop: so a hung store
blocks nothing else.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from ray_workflows._model.errors import name_of, text_of

T = TypeVar("T")

#: Calls from other threads, for the loop to run.
Inbox = queue.SimpleQueue[Callable[[], None]]

#: How long the loop takes in messages before it decides on them, in seconds. Under load there are
#: always more.
TAKE_SECONDS = 0.02

#: Takes the result of blocking work, or the exception it raised.
Continue = Callable[[Any], None]


def work_off(inbox: Inbox, timeout: float | None, seconds: float = TAKE_SECONDS) -> None:
    """Run calls from the inbox for at most ``seconds``; wait for the first until the timeout."""
    try:
        inbox.get(timeout=timeout)()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            inbox.get_nowait()()
    except queue.Empty:
        return


class Offloader(Protocol):
    """Runs blocking work on another thread, unless it is brief. ``then`` is called on the loop."""

    def call(self, work: Callable[[], Any], then: Continue, *, brief: bool = False) -> None:
        """Run ``work``, and later call ``then`` with its result or exception.

        ``brief``: it takes less time than waking another thread.
        """


class ThreadOffloader:
    """`Offloader` on a thread pool; brief work runs at once.

    ``post`` puts a call into the loop's inbox, from any thread.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None], threads: int = 8) -> None:
        self.post = post
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="ray-workflows-io")

    def call(self, work: Callable[[], Any], then: Continue, *, brief: bool = False) -> None:
        def run() -> None:
            try:
                result = work()
            except Exception as error:
                result = error
            except BaseException as error:
                # For example a panic in a storage's native code, or `sys.exit` in a user's own
                # storage. Without a result the loop would wait for ever.
                result = RuntimeError(f"{name_of(error)}: {text_of(error)}")
                result.__cause__ = error
            self.post(lambda: then(result))

        if brief:
            run()
        else:
            self.pool.submit(run)

    def close(self) -> None:
        """Drop queued work and let running work end by itself."""
        self.pool.shutdown(wait=False, cancel_futures=True)
