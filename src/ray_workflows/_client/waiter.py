"""The waiter: an actor per driver whose calls are the ObjectRefs of ``*_async``.

An ObjectRef that is not ready has to belong to a running task. Thousands of them would each keep
a call pending in the coordinator; here they share one long poll.
"""

from __future__ import annotations

import asyncio
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from ray_workflows._capture.unopened import UnopenedReader
from ray_workflows._client.connection import Connection
from ray_workflows._client.outputs import POLL_SECONDS, Awaited, read_output
from ray_workflows._coordinator.requests import Watched
from ray_workflows._coordinator.wire import ENCODER, OUTPUT_WANTED, POLLED, Poll
from ray_workflows.exceptions import CoordinatorUnavailableError, StorageUnavailableError

#: Outputs kept of workflows that ended before their driver asked.
MAX_EARLY = 10_000

#: Outputs that one driver waits for at once.
MAX_CALLS = 100_000


class Seen(NamedTuple):
    """What a watch has seen: the output of the workflow of an incarnation, or (empty) nothing but
    that it is time to look."""

    incarnation: str
    value: Any = None


LOOK = Seen("")


def read_all(connection: Connection, answered: list[tuple[str, Watched]]) -> list[Seen]:
    """Take the outputs out of what watches have seen; errors as `OutputError`."""
    found = []
    for _, watched in answered:
        if watched.row is None or watched.output is None:
            found.append(LOOK)
            continue
        try:
            value = read_output(connection, watched.row, watched.output)
        except StorageUnavailableError:
            # Whose workflow it is looks, and waits.
            found.append(LOOK)
            continue
        except Exception as error:
            value = OutputError(error)
        found.append(Seen(watched.row.incarnation, value))
    return found


class UnopenedConnection(Connection):
    """A connection of which outputs come as they were stored: a value whose unpickling hangs, or
    ends the process, is its driver's trouble, and nobody else's."""

    def values(self, incarnation: str) -> UnopenedReader:
        """Reads the values of a workflow without unpickling them."""
        return UnopenedReader(self.storage, incarnation)


def is_at_hand(watched: Watched) -> bool:
    """Whether all of an output is in what the watch saw: nothing has to be waited for."""
    value = None if watched.output is None else watched.output.value
    return value is not None and isinstance(value.data, bytes) and not value.objects


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
    """Waits for outputs on behalf of one driver.

    Args:
        coordinator: the cluster's.
        client: the name under which the driver has it watch what it submits.
    """

    def __init__(self, coordinator: Any, client: str) -> None:
        self.coordinator = coordinator
        self.client = client
        #: Ray restarts a waiter that dies and calls it again. What its earlier life was told is
        #: lost, and what is still told to a call of that life would be.
        self.life = uuid.uuid4().hex
        self.restarted = was_restarted()
        self.connecting = asyncio.Lock()
        self.connection: Connection | None = None
        #: Who waits, by what is watched, and what the watches see of it, in the order of a poll.
        self.waiting: dict[str, list[asyncio.Future[Seen]]] = defaultdict(list)
        self.watched: dict[str, int | None] = {}
        #: What was seen of workflows before their driver asked for the output.
        self.early: dict[str, Seen] = {}
        self.holder_id = ""
        self.poller: asyncio.Task[None] | None = None

    async def output(self, workflow_id: str, task_id: str | None, fresh: bool) -> Any:
        """The output, when it is there; as `outputs.await_output`, errors as `OutputError`."""
        try:
            connection = await self.connected()
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

    async def submitted_output(self, encoded: bytes) -> Any:
        """As `output`, of a workflow that the coordinator watches for us: an `OutputWanted`."""
        workflow_id, incarnation, holder_id = OUTPUT_WANTED.decode(encoded)
        if self.restarted:
            return await self.output(workflow_id, None, True)
        try:
            seen = self.early.pop(workflow_id, None)
            if seen is None or seen.incarnation not in ("", incarnation):
                seen = await self.wait(workflow_id, None, known_to=holder_id)
        except Exception as error:
            return OutputError(error)
        if seen.incarnation == incarnation:
            return seen.value
        return await self.output(workflow_id, None, True)

    async def connected(self) -> Connection:
        async with self.connecting:
            if self.connection is None:
                description = await self.coordinator.describe.remote()
                self.connection = UnopenedConnection(self.coordinator, description)
        return self.connection

    async def wait(self, workflow_id: str, after: int | None, known_to: str = "") -> Seen:
        """Return when a watch has seen something.

        ``known_to``: the holder id of a coordinator that has the watch already.
        """
        future: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self.waiting[workflow_id].append(future)
        self.watched[workflow_id] = after
        if known_to and not self.holder_id:
            self.holder_id = known_to
        if known_to != self.holder_id or not known_to:
            await self.subscribe([(workflow_id, after)])
        if self.poller is None or self.poller.done():
            self.poller = asyncio.create_task(self.poll())
        return await future

    async def subscribe(self, added: list[tuple[str, int | None]]) -> None:
        holder_id = await self.coordinator.subscribe.remote(self.client, self.life, added)
        await self.check_holder(holder_id)

    async def check_holder(self, holder_id: str) -> None:
        """A restarted coordinator knows nothing of what we watched before."""
        if holder_id != self.holder_id:
            await self.watch_again(holder_id)

    async def watch_again(self, holder_id: str) -> None:
        """Watch all that is waited for: the coordinator has forgotten it."""
        self.holder_id = holder_id
        watched = list(self.watched.items())
        await self.coordinator.subscribe.remote(self.client, self.life, watched)

    async def poll(self) -> None:
        """The one long poll, while anybody waits."""
        poll = ENCODER.encode(Poll(self.client, self.life))
        try:
            connection = await self.connected()
            time = asyncio.get_running_loop().time
            while self.waiting:
                asked_at = time()
                polled = POLLED.decode(await self.coordinator.poll.remote(poll))
                if polled.seen:
                    if all(is_at_hand(watched) for _, watched in polled.seen):
                        # A thread would cost more than to take apart what is so small.
                        found = read_all(connection, polled.seen)
                    else:
                        found = await asyncio.to_thread(read_all, connection, polled.seen)
                    for (workflow_id, _), seen in zip(polled.seen, found, strict=True):
                        self.tell(workflow_id, seen)
                elif time() - asked_at < POLL_SECONDS:
                    # Whatever the reason: nobody is asked without a pause.
                    await asyncio.sleep(POLL_SECONDS)
                if polled.unknown:
                    await self.watch_again(polled.holder_id)
                else:
                    await self.check_holder(polled.holder_id)
        except Exception as error:
            gone = CoordinatorUnavailableError(f"The coordinator is gone: {error}")
            for futures in self.waiting.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(gone)
            self.waiting.clear()

    def tell(self, workflow_id: str, seen: Seen) -> None:
        self.watched.pop(workflow_id, None)
        futures = self.waiting.pop(workflow_id, [])
        if not futures:
            self.early[workflow_id] = seen
            if len(self.early) > MAX_EARLY:
                # Who comes for it looks it up.
                oldest = next(iter(self.early))
                del self.early[oldest]
                self.early[oldest] = LOOK
        for future in futures:
            if not future.done():
                future.set_result(seen)


def was_restarted() -> bool:
    """Whether this is not the first life of the actor in this process."""
    with warnings.catch_warnings():
        # On its way to the answer Ray uses a name of its own that it calls deprecated.
        warnings.simplefilter("ignore")
        restarted: bool = ray.get_runtime_context().was_current_actor_reconstructed
    return restarted


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


waiter_class = ray.remote(
    num_cpus=0, max_concurrency=MAX_CALLS, max_restarts=-1, max_task_retries=-1
)(Waiter)
