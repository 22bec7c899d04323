"""Blocking work on threads, its result back on the loop: a hung store freezes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

#: Takes the result of blocking work, or the exception it raised.
Continue = Callable[[Any], None]


class Io(Protocol):
    """Runs blocking work, elsewhere but for what is brief. ``then`` is called on the loop."""

    def call(self, work: Callable[[], Any], then: Continue, *, brief: bool = False) -> None:
        """Run ``work`` and hand ``then`` what it returned or raised, later.

        ``brief``: it takes less time than to wake another thread for it.
        """


class ThreadIo:
    """`Io` on a pool of threads, but for what is brief.

    ``post`` brings a callable to the loop; any thread calls it.
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
            self.post(lambda: then(result))

        if brief:
            run()
        else:
            self.pool.submit(run)

    def close(self) -> None:
        """Give up waiting work and let running work end by itself."""
        self.pool.shutdown(wait=False, cancel_futures=True)
