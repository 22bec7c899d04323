"""The host of bodies: an actor in which the bodies of durable functions run, without a CPU.

A body runs on a thread while it has something to do; while it waits, it has none. It tells the
coordinator what it asks for by calls, and the coordinator gives it outcomes by calls. If it has
only waited for a second, its attempt ends, and another one runs the body again when there is an
outcome. If a host dies, its bodies run again in others.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray

from ray_workflows._codec.transport import message, opened
from ray_workflows._environment.attempts import prefer_packages
from ray_workflows._executor.in_order import InOrder
from ray_workflows._executor.protocol import (
    ENCODER,
    GIVEN_DECODER,
    AnyReport,
    AttemptRequest,
    BatchReport,
    GivenOutcome,
    ToldProgress,
    decode_batch,
)
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._executor.worker.batch import EncodedBatch, WireReport, home_of
from ray_workflows._executor.worker.bodies.attempt import BodyAttempt
from ray_workflows._executor.worker.bodies.body import UnreadableOutcome
from ray_workflows._executor.worker.event_loops import UserError
from ray_workflows._executor.worker.running import RunningAttempt
from ray_workflows._executor.worker.watchdog import watching
from ray_workflows._model import messages as msg
from ray_workflows._model.steps import EndedStep, StepOutcome

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The most bodies of one host at once.
MAX_BODIES = 10_000

#: How many threads run bodies and their local steps.
MAX_THREADS = 256

#: How long a body waits before it gives its place back, in seconds.
IDLE_SECONDS = 1.0

#: The most outcomes that are kept for bodies which are not here yet.
MAX_EARLY = 10_000

#: Incarnation, task, epoch and attempt.
Key = tuple[str, int, int, int]


class BodyHost:
    """Runs bodies of one environment; owned by the coordinator."""

    def __init__(self, *brought: None) -> None:
        """``brought``: the results of the Ray tasks that uploaded its packages."""
        prefer_packages()
        # A step may wait for Ray: it runs on a thread, not in the event loop of this actor.
        os.environ["RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"] = "0"
        self.threads = ThreadPoolExecutor(MAX_THREADS, "ray-workflows-body")
        self.bodies: dict[Key, HostedBody] = {}
        #: Outcomes that have come before their body: Ray may change the order of calls.
        self.early: OrderedDict[Key, list[GivenOutcome]] = OrderedDict()

    async def run(self, load: EncodedBatch, pickled_home: bytes) -> list[WireReport]:
        """Run one attempt of a body."""
        home = home_of(pickled_home)
        encoded, nested = opened(load)
        number, sequence, (request,) = decode_batch(encoded)
        live = (nested or {}).get(request.incarnation, {})
        running = RunningAttempt(request, home.coordinator, home.process)
        run = AttemptRun(
            request, home.storage, live, home.process, number, sequence, running=running
        )
        hosted = HostedBody(run, home.coordinator, self.threads)
        key = key_of(request)
        self.bodies[key] = hosted
        for given in self.early.pop(key, ()):
            hosted.give(given)
        try:
            with watching(running, home.process.watch):
                report = await hosted.run()
        finally:
            hosted.leave()
            del self.bodies[key]
        wire = ENCODER.encode(BatchReport(number, ((0, report),), (0.0,)))
        return [message(wire, {request.incarnation: run.made} if run.made else None)]

    async def give(self, encoded: bytes) -> None:
        """Give a body the outcome of a step."""
        given = GIVEN_DECODER.decode(encoded)
        key = (given.incarnation, given.task, given.epoch, given.attempt)
        hosted = self.bodies.get(key)
        if hosted is not None:
            hosted.give(given)
            return
        self.early.setdefault(key, []).append(given)
        if len(self.early) > MAX_EARLY:
            # Those of attempts that have ended are never taken.
            self.early.popitem(last=False)


def key_of(request: AttemptRequest) -> Key:
    """The attempt of a request."""
    return (request.incarnation, request.task, request.epoch, request.attempt)


class HostedBody:
    """One attempt of a body, in the event loop of its host.

    Args:
        run: the attempt.
        coordinator: its handle.
        threads: run the user's code.
    """

    def __init__(self, run: AttemptRun, coordinator: Any, threads: ThreadPoolExecutor) -> None:
        assert run.request.history is not None
        self.run_of = run
        self.coordinator = coordinator
        self.threads = threads
        self.body = BodyAttempt(run)
        self.outcomes: InOrder[StepOutcome] = InOrder(len(run.request.history.outcomes))
        #: Outcomes that the body has not taken.
        self.ready: list[StepOutcome] = list(run.request.history.outcomes)
        #: Set when there is something to do.
        self.news = asyncio.Event()
        self.told = 0
        #: Calls of the coordinator without an answer, and local steps.
        self.pending: set[asyncio.Future[Any]] = set()
        #: Whether the coordinator no longer wants this attempt.
        self.unwanted = False

    def give(self, given: GivenOutcome) -> None:
        """Take the outcome of a step, for the body."""
        self.ready += self.outcomes.add(given.number, given.outcome)
        if self.ready:
            self.news.set()

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function that may block and raise anything, on a thread.

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

    async def run(self) -> AnyReport:
        """Run the attempt to its end, or until it has only waited for a while."""
        try:
            await self.call(self.body.start)
            while True:
                outcomes, self.ready = self.ready, []
                self.news.clear()
                await self.call(self.body.advance, outcomes)
                self.tell()
                self.start_local_steps()
                if self.body.ended:
                    return await self.call(self.body.report)
                if self.body.is_stuck and not self.ready:
                    return await self.call(self.body.stuck)
                if not await self.wait() or self.unwanted:
                    return self.suspended()
        except UserError as raised:
            error = raised.error
            if isinstance(error, UnreadableOutcome):
                error = error.error
            return await self.call(self.run_of.raised, error)

    async def wait(self) -> bool:
        """Wait for the next outcome. Returns False if the body has only waited for a while."""
        while not self.ready and not self.unwanted:
            waits_for_others = not self.pending and self.body.is_waiting
            try:
                await asyncio.wait_for(self.news.wait(), IDLE_SECONDS if waits_for_others else None)
            except asyncio.TimeoutError:
                if not self.ready and not self.pending:
                    return False
            self.news.clear()
        return True

    def leave(self) -> None:
        """End the body where it is; no more of its code runs, but for its ``finally`` blocks."""
        self.unwanted = True
        for each in list(self.pending):
            each.cancel()
        if not self.body.ended:
            self.threads.submit(self.body.leave)

    def suspended(self) -> AnyReport:
        """The report of an attempt that only waits."""
        run = self.run_of
        taken = self.body.taken
        return msg.AttemptSuspended(**run.identity(run.process.time()), taken=taken)

    # -- what it tells ---------------------------------------------------------------------

    def tell(self, ended: EndedStep | None = None) -> None:
        """Tell the coordinator what the body asks for, and a local step that has ended."""
        progress = self.body.progress(ended)
        if progress is None:
            return
        told = ToldProgress(self.run_of.request.incarnation, self.told, progress)
        self.told += 1
        self.follow(self.send(ENCODER.encode(told)))

    async def send(self, encoded: bytes) -> None:
        """Send the coordinator progress; it is repeated until it arrives, or there is no
        coordinator."""
        try:
            wanted = await self.coordinator.body_progress.remote(encoded)
        except Exception as error:
            logger.warning("%s can't go on here: %r", self.run_of.request.where, error)
            wanted = False
        if not wanted:
            self.unwanted = True

    def start_local_steps(self) -> None:
        """Start the local steps that the body asks for, each on a thread."""
        for step, work in self.body.take_work():
            self.follow(self.run_local_step(step, work))

    async def run_local_step(self, step: Any, work: Any) -> None:
        """Run a local step and tell its outcome."""
        try:
            ended = await self.call(self.body.run_local_step, step, work)
        except UserError as raised:
            logger.warning("%s can't go on here: %r", self.run_of.request.where, raised.error)
            self.unwanted = True
        else:
            self.tell(ended)

    def follow(self, work: Any) -> None:
        """Run a coroutine beside the body."""
        task = asyncio.ensure_future(work)
        self.pending.add(task)
        task.add_done_callback(self.followed)

    def followed(self, task: asyncio.Future[Any]) -> None:
        """A coroutine beside the body has ended."""
        self.pending.discard(task)
        self.news.set()


body_host_class = ray.remote(
    num_cpus=0, max_concurrency=MAX_BODIES, max_restarts=0, max_task_retries=0
)(BodyHost)
