"""The Ray actor around the loop. Its methods only pass requests on; one thread runs the loop.

`Coordinator.__init__` touches no storage and never raises: an actor whose restart raised would be
dead for good. What is wrong with the storage is said to whoever asks.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import ray

from ray_workflows._codec.journal import decode_entry, decode_plan
from ray_workflows._coordinator.claims import LEASE_SECONDS, this_holder
from ray_workflows._coordinator.io import ThreadIo
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.orphans import Orphans
from ray_workflows._coordinator.requests import (
    Accepted,
    CancelRequest,
    DeleteRequest,
    Reply,
    Request,
    ResumeRequest,
    SignalRequest,
    Submission,
    SubmitRequest,
    Submitted,
    Watched,
    WatchRequest,
    seconds_more,
)
from ray_workflows._coordinator.room import Limits
from ray_workflows._coordinator.verbs import Verbs
from ray_workflows._executor.ray_tasks import RayExecutor
from ray_workflows._model.inputs import AttemptNews, AttemptRuns
from ray_workflows._model.plan import EnvironmentChange
from ray_workflows._model.values import Value
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    StorageError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: Where the coordinator of a cluster is found.
ACTOR_NAME = "coordinator"
NAMESPACE = "ray_workflows"

#: A verb that is not answered within this many seconds is answered with an error.
ANSWER_SECONDS = 20.0

#: New objects after which the process of a coordinator looks for garbage among them. By default it
#: is 700, and a quarter of engine and loop is looking: states are large, and refer to no cycles.
YOUNG_OBJECTS = 20_000

#: How long one poll of a client waits at most, in seconds.
POLL_SECONDS = 60.0

#: Calls that may wait in the coordinator at once.
MAX_CALLS = 10_000


def post(events: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    """Bring an answer from the loop's thread to Ray's."""
    events.call_soon_threadsafe(action)


def submit_request(submission: Submission, reply: Reply) -> SubmitRequest:
    """The request to the loop for what a driver submits."""
    fork = submission.fork
    return SubmitRequest(
        submission.workflow_id,
        reply,
        submission.incarnation,
        decode_plan(submission.plan),
        submission.metadata,
        submission.request_id,
        submission.timeout,
        None if fork is None else tuple(decode_entry(fork, where="fork")),
        submission.change,
        asks_first=submission.change is None,
    )


class Settings(msgspec.Struct, frozen=True):
    """How a coordinator works, as long as its cluster lives; see `init`."""

    limits: Limits = Limits()
    auto_resume: bool = False
    lease_seconds: float = LEASE_SECONDS


class WatchList:
    """What one client waits for. ``polled_at`` tells whether it is still there, ``life`` which life
    of it is the latest."""

    def __init__(self) -> None:
        self.life = ""
        self.answered: list[tuple[str, Watched]] = []
        self.polled_at = time.monotonic()
        #: What its polls wait for.
        self.news: asyncio.Future[None] | None = None

    def tell(self, workflow_id: str, watched: Watched) -> None:
        """A watch is answered. Nothing stays live until a client comes that may be gone."""
        self.answered.append((workflow_id, msgspec.structs.replace(watched, live=None)))
        self.wake()

    def wake(self) -> None:
        """Let polls return."""
        if self.news is not None and not self.news.done():
            self.news.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Return when there is an answer, or nothing for so long."""
        if self.answered:
            return
        events = asyncio.get_running_loop()
        if self.news is None or self.news.done():
            self.news = events.create_future()
        timer = events.call_later(seconds, self.wake)
        await self.news
        timer.cancel()


class Coordinator:
    """Drives workflows, one per storage and cluster. Detached, restarted by Ray for ever."""

    def __init__(self, storage: Storage, settings: Settings, package_version: str) -> None:
        self.storage = storage
        self.settings = settings
        self.package_version = package_version
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.broken: Exception | None = None
        gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
        self.watching: dict[str, WatchList] = {}
        context = ray.get_runtime_context()
        self.holder = this_holder(context.get_actor_id())
        self.executor = RayExecutor(storage, self.report, context.current_actor, self.inbox.put)
        self.loop = Loop(
            storage,
            self.executor,
            ThreadIo(self.inbox.put),
            self.holder.holder_id,
            clock=time.time,
            new_id=lambda: uuid.uuid4().hex,
            limits=settings.limits,
        )
        self.lease = Lease(self.loop, self.holder, seconds=settings.lease_seconds)
        self.orphans = Orphans(self.loop, self.lease)
        self.verbs = Verbs(self.loop, self.lease)
        threading.Thread(target=self.drive, name="ray-workflows-loop", daemon=True).start()

    # -- the loop's thread -----------------------------------------------------------------

    def drive(self) -> None:
        self.lease.start()
        if self.settings.auto_resume:
            self.orphans.look()
        self.storage.listen(self.holder.holder_id, lambda: self.inbox.put(self.lease.look))
        while True:
            try:
                timeout = self.loop.step()
                action = self.inbox.get(timeout=timeout)
                while True:
                    action()
                    action = self.inbox.get_nowait()
            except queue.Empty:
                continue
            except Exception as error:
                # A bug of ours. Work goes on; the error is in the log and in `describe`.
                self.broken = error
                logger.exception("The coordinator's loop met an unexpected error.")

    def report(self, incarnation: str, reports: Sequence[AttemptNews]) -> None:
        self.inbox.put(lambda: self.loop.report(incarnation, reports))

    # -- what drivers call -----------------------------------------------------------------
    # Errors are returned, not raised: Ray would wrap them, and their causes would be lost.

    def put(self, make: Callable[[Reply], Request]) -> asyncio.Future[Any]:
        """Put a request to the loop; its answer to be.

        At once, not when its turn among tasks comes: what a client calls next finds it there.
        """
        events = asyncio.get_running_loop()
        future: asyncio.Future[Any] = events.create_future()

        def settle(value: Any) -> None:
            if not future.done():
                future.set_result(value)

        request = make(lambda value: post(events, lambda: settle(value)))
        self.inbox.put(lambda: self.verbs.ask(request))
        return future

    async def request(self, make: Callable[[Reply], Request]) -> Any:
        """Put a request to the loop and wait for its answer, but not for ever."""
        (answer,) = await self.in_time([self.put(make)], ANSWER_SECONDS)
        return answer

    async def in_time(self, asked: Sequence[asyncio.Future[Any]], seconds: float) -> list[Any]:
        """The answers; where there is none after so many seconds, the reason."""

        def give_up() -> None:
            reason = self.why_no_answer(seconds)
            for each in asked:
                if not each.done():
                    each.set_result(reason)

        timer = asyncio.get_running_loop().call_later(seconds, give_up)
        answers = [await each for each in asked]
        timer.cancel()
        return answers

    def why_no_answer(self, seconds: float) -> Exception:
        reason = self.loop.storage_error or self.loop.commit_error
        if isinstance(reason, StorageError):
            return reason
        if reason is not None:
            return StorageUnavailableError(
                f"The storage {self.storage.url} does not answer: {reason}. Nothing that was "
                f"acknowledged is lost; work goes on when it returns."
            )
        return CoordinatorUnavailableError(
            f"The coordinator did not answer within {seconds:.0f} s. Try again; if it "
            f"stays so, look into the log of the actor '{ACTOR_NAME}' ({NAMESPACE})."
        )

    async def submit(self, submissions: list[Submission], client: str | None = None) -> Submitted:
        """Create or resume workflows: for each `Accepted`, `Finished`, `Stopped`
        or an error.

        ``client`` watches those that are accepted, as if it had subscribed to them.
        """
        asked = [self.put(self.submission(each, client)) for each in submissions]
        return await self.answers(asked, submissions)

    async def run(self, submission: Submission) -> tuple[Submitted, Watched | None]:
        """As `submit`, of one; once it is accepted, what `watch_one` sees. One call, because a
        caller who waits anyway would only be woken once more."""
        asked = self.put(self.submission(submission, None))
        # Right behind it: when this is looked at, it is in hand.
        watch = self.put(lambda reply: WatchRequest(submission.workflow_id, reply, None))
        submitted = await self.answers([asked], [submission])
        if isinstance(submitted.answers[0], Accepted):
            return submitted, await watch
        watch.cancel()
        return submitted, None

    async def answers(
        self, asked: list[asyncio.Future[Any]], submissions: list[Submission]
    ) -> Submitted:
        """What is answered to submissions, or why nothing is."""
        seconds = ANSWER_SECONDS + seconds_more(submissions)
        answers = await self.in_time(asked, seconds)
        return Submitted(self.holder.holder_id, answers)

    def submission(
        self, submission: Submission, client: str | None
    ) -> Callable[[Reply], SubmitRequest]:
        """What makes the request to the loop for what a driver submits."""
        watches = None if client is None else self.watches(client)
        events = asyncio.get_running_loop()

        def make(reply: Reply) -> SubmitRequest:
            def watch(answer: Any) -> None:
                # Before it is started, so that its end can't be missed.
                if watches is not None and isinstance(answer, Accepted):
                    self.add_watch(watches, events, submission.workflow_id, None)
                reply(answer)

            return submit_request(submission, watch)

        return make

    async def resume(
        self, workflow_id: str, canceled: bool, change: EnvironmentChange | None = None
    ) -> Any:
        """Resume a workflow: `Accepted`, `Finished` or an error."""
        return await self.request(lambda reply: ResumeRequest(workflow_id, reply, canceled, change))

    async def cancel(self, workflow_id: str) -> Any:
        """Cancel a workflow: None or an error."""
        return await self.request(lambda reply: CancelRequest(workflow_id, reply))

    async def signal(
        self, workflow_id: str, name: str, signal_id: str, value: Value, incarnation: str
    ) -> Any:
        """Give a workflow a signal: None or an error."""
        return await self.request(
            lambda reply: SignalRequest(workflow_id, reply, name, signal_id, value, incarnation)
        )

    async def delete(self, workflow_id: str) -> Any:
        """Delete a workflow: None or an error."""
        return await self.request(lambda reply: DeleteRequest(workflow_id, reply))

    async def watch_one(self, workflow_id: str, after: int | None) -> Any:
        """Wait for one workflow, as in `WatchRequest`: a `Watched`."""
        return await self.put(lambda reply: WatchRequest(workflow_id, reply, after))

    async def subscribe(self, client: str, life: str, added: list[tuple[str, int | None]]) -> str:
        """Add watches, ``(workflow id, after)`` as in `WatchRequest`, to those of a client.

        Returns the holder id: when it changes, watches given before are lost.
        """
        watches = self.watches(client)
        watches.life = life
        events = asyncio.get_running_loop()
        for workflow_id, after in added:
            self.add_watch(watches, events, workflow_id, after)
        return self.holder.holder_id

    async def poll(self, client: str, life: str) -> tuple[str, list[tuple[str, Watched]]]:
        """Wait until watches of a client are answered; the holder id, and what they saw.

        An answered watch is over. Answered at once for a client that is not known, and empty after
        `POLL_SECONDS`, so that the calls of clients that are gone end. The call of a life that is
        over takes nothing from the next one.
        """
        watches = self.watching.get(client)
        answered: list[tuple[str, Watched]] = []
        if watches is not None:
            watches.life = life
            await watches.wait(POLL_SECONDS)
        if watches is not None and watches.life == life:
            watches.polled_at = time.monotonic()
            answered, watches.answered = watches.answered, []
        return self.holder.holder_id, answered

    def watches(self, client: str) -> WatchList:
        """What a client waits for, which is about to wait for more. Who is gone is forgotten."""
        found = self.watching.setdefault(client, WatchList())
        found.polled_at = time.monotonic()
        oldest = found.polled_at - 3 * POLL_SECONDS
        for gone in [c for c, watches in self.watching.items() if watches.polled_at < oldest]:
            del self.watching[gone]
        return found

    def add_watch(
        self,
        watches: WatchList,
        events: asyncio.AbstractEventLoop,
        workflow_id: str,
        after: int | None,
    ) -> None:
        request = WatchRequest(
            workflow_id,
            lambda watched: post(events, lambda: watches.tell(workflow_id, watched)),
            after,
        )
        self.inbox.put(lambda: self.verbs.ask(request))

    async def attempt_runs(
        self, incarnation: str, task: int, epoch: int, attempt: int, started_at: float
    ) -> None:
        """A worker says that an attempt runs, and since when."""
        self.executor.attempt_runs(incarnation, task, epoch, attempt)
        self.report(incarnation, [AttemptRuns(task, epoch, attempt, started_at)])

    async def batch_overran(self, number: int, encoded: bytes, objects: dict[str, Any]) -> None:
        """A worker hands back what waits behind an attempt that takes long."""
        self.executor.batch_overran(number, encoded, objects)

    async def batch_done(self, number: int, encoded: bytes, objects: dict[str, Any]) -> Any:
        """A worker reports a batch, and waits for another one; None if there is none."""
        events = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = events.create_future()

        def take(load: Any) -> None:
            if not answered.done():
                answered.set_result(load)

        self.executor.batch_done(
            number, encoded, objects, lambda load: post(events, lambda: take(load))
        )
        return await answered

    async def describe(self) -> dict[str, Any]:
        """What it is and how it fares."""
        return {
            "storage": self.storage,
            "url": self.storage.url,
            "settings": self.settings,
            "version": self.package_version,
            "holder": self.holder,
            "storage_error": self.loop.storage_error,
            "unexpected_error": repr(self.broken) if self.broken else None,
            "workflows": len(self.loop.workflows),
        }


coordinator_class = ray.remote(
    num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=MAX_CALLS
)(Coordinator)
