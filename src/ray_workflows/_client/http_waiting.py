"""The memory of the provider of HTTP events: the tasks that ask for events, and waiting
requests."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

from ray_workflows._client.http_events import signal_name

#: The most keys, of all workflows, whose listeners the provider remembers; the oldest are dropped.
MAX_REMEMBERED = 100_000


class Takers:
    """The tasks whose listeners have asked for events that are not acknowledged yet. Only for
    detecting mistakes, so it may forget."""

    def __init__(self) -> None:
        #: By incarnation and name of the signal: a key may be as large as a request.
        self.tasks: OrderedDict[tuple[str, str], str] = OrderedDict()

    def take(self, incarnation: str, key: str, task_id: str | None) -> str | None:
        """Reserve an event for a task. Returns the task that has it: the first that asked. A user's
        own listener gives no ``task_id``."""
        if task_id is None:
            return None
        taker = self.tasks.setdefault((incarnation, signal_name(key)), task_id)
        if len(self.tasks) > MAX_REMEMBERED:
            self.tasks.popitem(last=False)
        return taker

    def forget(self, incarnation: str, key: str) -> None:
        """Forget an acknowledged event."""
        self.tasks.pop((incarnation, signal_name(key)), None)


class News:
    """Wakes requests that wait for news of an event of a workflow."""

    def __init__(self) -> None:
        self.waiting: dict[tuple[str, str], set[asyncio.Event]] = defaultdict(set)

    def tell(self, incarnation: str, key: str) -> None:
        """Wake all who wait for this event."""
        for waiter in self.waiting.get((incarnation, key), ()):
            waiter.set()

    def is_awaited(self, incarnation: str, key: str) -> bool:
        """Whether a listener or a sender waits for news of this event."""
        return (incarnation, key) in self.waiting

    async def wait_until(
        self, incarnation: str, key: str, look: Callable[[], Any], seconds: float
    ) -> Any:
        """Wait until the result of ``look`` is true, and return it; after ``seconds``, return its
        last result."""
        waiter = asyncio.Event()
        self.waiting[incarnation, key].add(waiter)
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            while True:
                waiter.clear()
                found = await asyncio.to_thread(look)
                left = deadline - asyncio.get_running_loop().time()
                if found or left <= 0:
                    return found
                try:
                    await asyncio.wait_for(waiter.wait(), left)
                except asyncio.TimeoutError:
                    continue
        finally:
            self.waiting[incarnation, key].discard(waiter)
            if not self.waiting[incarnation, key]:
                del self.waiting[incarnation, key]
