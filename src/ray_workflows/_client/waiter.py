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
from ray_workflows._client.reader import Reader
from ray_workflows._coordinator.protocol import ENCODER, OUTPUT_WANTED, POLLED, Poll
from ray_workflows._coordinator.requests import Watched
from ray_workflows.exceptions import CoordinatorUnavailableError, StorageUnavailableError

#: The most outputs kept of workflows that ended before their driver asked.
MAX_EARLY = 10_000

#: The most outputs that one driver waits for at once.
MAX_CALLS = 100_000


class Seen(NamedTuple):
    """The answer of a watch, about this incarnation; empty: the coordinator does not drive the
    workflow. ``ended``: ``value`` is its output."""

    incarnation: str
    ended: bool = False
    value: Any = None


def read_all(connection: Reader, answered: list[tuple[str, Watched]]) -> list[Seen]:
    """Read the outputs in answers of watches; errors become `OutputError`."""
    found = []
    for _, watched in answered:
        incarnation = "" if watched.row is None else watched.row.incarnation
        if watched.row is None or watched.output is None:
            found.append(Seen(incarnation))
            continue
        try:
            value = read_output(connection, watched.row, watched.output)
        except StorageUnavailableError:
            # The call for this workflow reads the storage again, and waits for it.
            found.append(Seen(incarnation))
            continue
        except Exception as error:
            value = OutputError(error)
        found.append(Seen(incarnation, True, value))
    return found


class UnopenedValues(Reader):
    """A reader that does not unpickle outputs: a value whose unpickling hangs or ends the process
    must affect its driver alone."""

    def values(self, incarnation: str) -> UnopenedReader:
        """Reads the values of a workflow without unpickling them."""
        return UnopenedReader(self.storage, incarnation)


class UnopenedConnection(UnopenedValues, Connection):
    """A waiter's connection."""


def is_at_hand(watched: Watched) -> bool:
    """Whether the answer of the watch has the whole output, so that nothing need be read."""
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
    """Waits for outputs on behalf of one driver. Time, threads and calls are those of the event
    loop that runs it: in a simulation that is one with a clock of its own.

    Args:
        coordinator: the cluster's.
        client: the name under which the driver has it watch what it submits.
        life: names this process; None: at random. Ray restarts a waiter that dies and repeats its
            calls. The answers to the earlier life are lost, also those that are still to come.
        restarted: whether there was an earlier life; None: ask Ray.
        connect: makes the `Reader` of the storage, given the coordinator and its description.
    """

    def __init__(
        self,
        coordinator: Any,
        client: str,
        *,
        life: str | None = None,
        restarted: bool | None = None,
        connect: Callable[[Any, dict[str, Any]], Reader] = UnopenedConnection,
    ) -> None:
        self.coordinator = coordinator
        self.client = client
        self.life = uuid.uuid4().hex if life is None else life
        self.connect = connect
        self.connecting = asyncio.Lock()
        self.connection: Reader | None = None
        #: The futures that each watch will resolve, in the order in which a poll names the watches.
        self.waiting: dict[str, list[asyncio.Future[Seen]]] = defaultdict(list)
        self.watched: dict[str, int | None] = {}
        #: Answers about workflows that came before their driver asked for the output.
        self.early: dict[str, Seen] = {}
        #: Whether an answer may have come before its driver asked, and is lost.
        self.missed = was_restarted() if restarted is None else restarted
        self.holder_id = ""
        #: The number of non-empty answers from the coordinator.
        self.batches: int | None = 0
        self.poller: asyncio.Task[None] | None = None

    async def output(
        self, workflow_id: str, incarnation: str, task_id: str | None, fresh: bool
    ) -> Any:
        """Wait for an output, as `outputs.await_output`; errors as `OutputError`."""
        try:
            connection = await self.connected()
            monotonic = asyncio.get_running_loop().time
            awaited: Awaited = await patiently(
                lambda: Awaited(
                    connection,
                    workflow_id,
                    task_id,
                    fresh=fresh,
                    incarnation=incarnation,
                    monotonic=monotonic,
                ),
                fresh,
            )
            seq, elsewhere = -1, False
            while True:
                done, value = await patiently(awaited.look, fresh)
                if done:
                    return value
                if awaited.row.seq == seq or elsewhere:
                    # Another cluster drives it, or nothing happened, so poll.
                    await asyncio.sleep(POLL_SECONDS)
                seq = awaited.row.seq
                elsewhere = not (await self.wait(workflow_id, awaited.after)).incarnation
        except Exception as error:
            return OutputError(error)

    async def submitted_output(self, encoded: bytes) -> Any:
        """As `output`, for an `OutputWanted`, which the coordinator watches for us."""
        workflow_id, incarnation, holder_id = OUTPUT_WANTED.decode(encoded)
        seen = self.early.pop(workflow_id, None)
        if seen is None and not self.missed:
            try:
                seen = await self.wait(workflow_id, None, known_to=holder_id)
            except Exception as error:
                return OutputError(error)
        elif seen is not None and seen.incarnation != incarnation:
            # The answer may belong to the ref of another workflow with this id.
            self.missed = True
        if seen is not None and seen.ended and seen.incarnation == incarnation:
            return seen.value
        return await self.output(workflow_id, incarnation, None, True)

    async def connected(self) -> Reader:
        async with self.connecting:
            if self.connection is None:
                description = await self.coordinator.describe.remote()
                self.connection = self.connect(self.coordinator, description)
        return self.connection

    async def wait(self, workflow_id: str, after: int | None, known_to: str = "") -> Seen:
        """Wait for the answer of a watch.

        ``known_to``: the holder id of a coordinator that has the watch already.
        """
        future: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self.waiting[workflow_id].append(future)
        self.watched[workflow_id] = sooner(self.watched.get(workflow_id), after)
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
        """Watch again if the coordinator was restarted, which loses its watches."""
        if holder_id != self.holder_id:
            self.holder_id = holder_id
            await self.watch_again()

    async def watch_again(self) -> None:
        """Register all watches with a coordinator that has lost them."""
        watched = list(self.watched.items())
        await self.coordinator.subscribe.remote(self.client, self.life, watched)

    async def poll(self) -> None:
        """Run the one long poll, while any call waits."""
        try:
            connection = await self.connected()
            time = asyncio.get_running_loop().time
            while self.waiting:
                asked_at, asked = time(), self.holder_id
                poll = ENCODER.encode(Poll(self.client, self.life, self.batches))
                polled = POLLED.decode(await self.coordinator.poll.remote(poll))
                self.holder_id, self.batches = polled.holder_id, polled.batches
                another = asked != polled.holder_id
                # The coordinator has removed our watches, or an answer was lost in transit.
                self.missed = self.missed or (polled.unknown and not another)
                if polled.seen:
                    if all(is_at_hand(watched) for _, watched in polled.seen):
                        # Decode small answers here: a thread would cost more.
                        found = read_all(connection, polled.seen)
                    else:
                        found = await asyncio.to_thread(read_all, connection, polled.seen)
                    for (workflow_id, _), seen in zip(polled.seen, found, strict=True):
                        self.tell(workflow_id, seen)
                elif time() - asked_at < POLL_SECONDS:
                    # A poll that returned early, for whatever reason: pause before the next.
                    await asyncio.sleep(POLL_SECONDS)
                if polled.unknown or another:
                    await self.watch_again()
        except Exception as error:
            gone = CoordinatorUnavailableError(f"The coordinator is gone: {error}")
            for futures in self.waiting.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(gone)
            self.waiting.clear()
            self.watched.clear()

    def tell(self, workflow_id: str, seen: Seen) -> None:
        self.watched.pop(workflow_id, None)
        futures = self.waiting.pop(workflow_id, [])
        if not futures:
            self.missed = self.missed or workflow_id in self.early
            self.early[workflow_id] = seen
            if len(self.early) > MAX_EARLY:
                del self.early[next(iter(self.early))]
                self.missed = True
        for future in futures:
            if not future.done():
                future.set_result(seen)


def was_restarted() -> bool:
    """Whether Ray restarted this actor."""
    with warnings.catch_warnings():
        # Ray itself uses a name here that it has deprecated.
        warnings.simplefilter("ignore")
        restarted: bool = ray.get_runtime_context().was_current_actor_reconstructed
    return restarted


def sooner(one: int | None, other: int | None) -> int | None:
    """The sooner of two watches: growth beyond a seq, or (None) the end."""
    return min((each for each in (one, other) if each is not None), default=None)


async def patiently(read: Callable[[], Any], fresh: bool) -> Any:
    """Read; if `fresh`, try again for as long as the storage is away. A driver that has started a
    workflow waits for the storage as the workflow does, because a failed ref stays failed."""
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
