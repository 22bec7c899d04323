"""The waiter: an actor per driver whose calls are the ObjectRefs of ``*_async``.

An ObjectRef that is not ready has to belong to a running task. Thousands of them would each keep
a call pending in the coordinator; here they share one long poll.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import ray

from ray_workflows._client.connection import Connection
from ray_workflows._client.outputs import POLL_SECONDS, Awaited
from ray_workflows.exceptions import CoordinatorUnavailableError, StorageUnavailableError

#: Outputs that one driver waits for at once.
MAX_CALLS = 100_000


class OutputError(ray.exceptions.RayTaskError):  # type: ignore[misc]
    """Carries an error through an ObjectRef: ``ray.get`` raises the error itself.

    Raised in the actor it would come out wrapped, without its ``__cause__``.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__("ray_workflows", str(error), error)
        self.error = error

    def as_instanceof_cause(self) -> BaseException:
        """What ``ray.get`` raises."""
        return self.error

    def __reduce__(self) -> tuple[Any, ...]:
        return OutputError, (self.error,)


class Waiter:
    """Waits for outputs on behalf of one driver."""

    def __init__(self, coordinator: Any) -> None:
        self.coordinator = coordinator
        self.connection: Connection | None = None
        self.client = uuid.uuid4().hex
        self.changed: dict[str, list[asyncio.Event]] = defaultdict(list)
        self.watched: dict[str, int | None] = {}
        self.holder_id = ""
        self.poller: asyncio.Task[None] | None = None
        self.failure: Exception | None = None

    async def output(self, workflow_id: str, task_id: str | None, fresh: bool) -> Any:
        """The output, when it is there; as `outputs.await_output`, errors as `OutputError`."""
        try:
            if self.connection is None:
                description = await self.coordinator.describe.remote()
                self.connection = Connection(self.coordinator, description)
            connection = self.connection
            awaited: Awaited = await patiently(
                lambda: Awaited(connection, workflow_id, task_id, fresh=fresh), fresh
            )
            seen = -1
            while True:
                done, value = await patiently(awaited.look, fresh)
                if done:
                    return value
                if awaited.row.seq == seen:
                    await asyncio.sleep(POLL_SECONDS)
                seen = awaited.row.seq
                await self.wait(workflow_id, awaited.after)
        except Exception as error:
            return OutputError(error)

    async def wait(self, workflow_id: str, after: int | None) -> None:
        """Return when `Awaited.look` may find something new."""
        event = asyncio.Event()
        self.changed[workflow_id].append(event)
        self.watched[workflow_id] = after
        await self.subscribe([(workflow_id, after)])
        if self.poller is None or self.poller.done():
            self.poller = asyncio.create_task(self.poll())
        await event.wait()
        if self.failure is not None:
            raise CoordinatorUnavailableError(f"The coordinator is gone: {self.failure}")

    async def subscribe(self, added: list[tuple[str, int | None]]) -> None:
        holder_id = await self.coordinator.subscribe.remote(self.client, added)
        await self.check_holder(holder_id)

    async def check_holder(self, holder_id: str) -> None:
        """A restarted coordinator knows nothing of what we watched before."""
        if holder_id != self.holder_id:
            self.holder_id = holder_id
            await self.coordinator.subscribe.remote(self.client, list(self.watched.items()))

    async def poll(self) -> None:
        """The one long poll, while anybody waits."""
        try:
            while self.changed:
                holder_id, answered = await self.coordinator.poll.remote(self.client)
                for workflow_id in answered:
                    self.watched.pop(workflow_id, None)
                    for event in self.changed.pop(workflow_id, []):
                        event.set()
                await self.check_holder(holder_id)
        except Exception as error:
            self.failure = error
            for events in self.changed.values():
                for event in events:
                    event.set()
            self.changed.clear()


async def patiently(read: Callable[[], Any], fresh: bool) -> Any:
    """What is read. Who has started a workflow waits for the storage as the workflow does: a ref
    that has failed can't be mended."""
    while True:
        try:
            return await asyncio.to_thread(read)
        except StorageUnavailableError:
            if not fresh:
                raise
            await asyncio.sleep(POLL_SECONDS)


waiter_class = ray.remote(num_cpus=0, max_concurrency=MAX_CALLS)(Waiter)
