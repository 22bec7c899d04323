"""The host of bodies: an actor in which the bodies of durable functions run, without a CPU.

A body runs on a thread while it has something to do; while it waits, it has none. It tells the
coordinator what it asks for by calls, and the coordinator gives it outcomes by calls. If it has
only waited for a second, its attempt ends, and another one runs the body again when there is an
outcome. If a host dies, its bodies run again in others.
"""

from __future__ import annotations

import asyncio
import os
import threading
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
    BatchReport,
    GivenOutcomes,
    ToldProgress,
    decode_batch,
)
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._executor.worker.batch import EncodedBatch, WireReport, home_of
from ray_workflows._executor.worker.bodies.attempt import BodyAttempt, LocalWork
from ray_workflows._executor.worker.bodies.body import UnreadableOutcome
from ray_workflows._executor.worker.bodies.guards import guard_this_process
from ray_workflows._executor.worker.event_loops import UserError, call_on_thread
from ray_workflows._executor.worker.running import RunningAttempt
from ray_workflows._executor.worker.watchdog import watching
from ray_workflows._model import messages as msg
from ray_workflows._model.steps import Step, StepOutcome

T = TypeVar("T")

#: The most bodies of one host at once.
MAX_BODIES = 10_000

#: How many threads run local steps beside bodies. A body has a thread whenever it needs one: local
#: steps may wait for what other bodies do.
MAX_STEP_THREADS = 256

#: How long a body waits before it gives its place back, in seconds.
IDLE_SECONDS = 1.0

#: The most outcomes that are kept for bodies which are not here yet.
MAX_EARLY = 10_000


class BodyHost:
    """Runs bodies of one environment; owned by the coordinator."""

    def __init__(self, *brought: None) -> None:
        """``brought``: the results of the Ray tasks that uploaded its packages."""
        prefer_packages()
        guard_this_process()
        # A step may wait for Ray: it runs on a thread, not in the event loop of this actor.
        os.environ["RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"] = "0"
        self.threads = ThreadPoolExecutor(MAX_BODIES, "ray-workflows-body")
        self.step_threads = ThreadPoolExecutor(MAX_STEP_THREADS, "ray-workflows-step")
        #: By the numbers of their batches.
        self.bodies: dict[int, HostedBody] = {}
        #: Outcomes that have come before their body: Ray may change the order of calls.
        self.early: OrderedDict[int, list[GivenOutcomes]] = OrderedDict()

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
        hosted = HostedBody(run, home.coordinator, self.threads, self.step_threads)
        self.bodies[number] = hosted
        for given in self.early.pop(number, ()):
            hosted.give(given)
        try:
            with watching(running, home.process.watch):
                report = await hosted.run()
        finally:
            hosted.leave()
            del self.bodies[number]
        wire = ENCODER.encode(BatchReport(number, ((0, report),), (0.0,)))
        return [message(wire, {request.incarnation: run.made} if run.made else None)]

    async def give(self, encoded: bytes) -> None:
        """Give a body outcomes of steps."""
        given = GIVEN_DECODER.decode(encoded)
        hosted = self.bodies.get(given.batch)
        if hosted is not None:
            hosted.give(given)
            return
        self.early.setdefault(given.batch, []).append(given)
        if len(self.early) > MAX_EARLY:
            # Those of attempts that have ended are never taken.
            self.early.popitem(last=False)


class HostedBody:
    """One attempt of a body, in the event loop of its host.

    Its code, and what it tells the coordinator, run on threads: a turn at a time, and beside it the
    local steps.

    Args:
        run: the attempt.
        coordinator: its handle.
        threads: run the user's code.
        step_threads: run local steps beside it.
    """

    def __init__(
        self,
        run: AttemptRun,
        coordinator: Any,
        threads: ThreadPoolExecutor,
        step_threads: ThreadPoolExecutor,
    ) -> None:
        assert run.request.history is not None
        self.run_of = run
        self.coordinator = coordinator
        self.threads = threads
        self.step_threads = step_threads
        self.body = BodyAttempt(run)
        self.outcomes: InOrder[StepOutcome] = InOrder(len(run.request.history.outcomes))
        #: Outcomes that the body has not taken.
        self.ready: list[StepOutcome] = list(run.request.history.outcomes)
        #: Set when there may be something to do.
        self.woken = asyncio.Event()
        #: How many local steps run beside the body.
        self.local = 0
        #: Why no outcome of a local step could be stored.
        self.trouble: BaseException | None = None
        self.lock = threading.Lock()
        #: How often it has told something.
        self.told = 0

    def give(self, given: GivenOutcomes) -> None:
        """Take outcomes of steps, for the body."""
        for number, outcome in enumerate(given.outcomes, given.number):
            self.ready += self.outcomes.add(number, outcome)
        if self.ready:
            self.woken.set()

    async def run(self) -> AnyReport:
        """Run the attempt to its end, or until it has only waited for a while."""
        try:
            await self.call(self.body.start)
            while True:
                outcomes, self.ready = self.ready, []
                for step, work in await self.call(self.turn, outcomes):
                    self.start_local_step(step, work)
                if self.body.ended:
                    return await self.call(self.body.report, self.told)
                if self.body.is_stuck and not self.ready:
                    return await self.call(self.body.stuck)
                if not await self.wait():
                    return self.suspended()
                if self.trouble is not None:
                    raise UserError(self.trouble)
        except UserError as raised:
            error = raised.error
            if isinstance(error, UnreadableOutcome):
                error = error.error
            return await self.call(self.run_of.raised, error)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """As `call_on_thread`, on a thread for the user's code."""
        return await call_on_thread(self.threads, function, *args)

    async def wait(self) -> bool:
        """Wait for the next outcome. Returns False if the body has only waited for a while."""
        loop = asyncio.get_running_loop()
        while not self.ready and self.trouble is None:
            self.woken.clear()
            if self.local:
                await self.woken.wait()
                continue
            idle = loop.call_later(IDLE_SECONDS, self.woken.set)
            until = idle.when()
            try:
                await self.woken.wait()
            finally:
                idle.cancel()
            if not self.ready and not self.local and loop.time() >= until:
                return False
        return True

    def leave(self) -> None:
        """End the body where it is; no more of its code runs, but for its ``finally`` blocks."""
        if not self.body.ended:
            self.threads.submit(self.body.leave)

    def suspended(self) -> AnyReport:
        """The report of an attempt that only waits."""
        run, taken = self.run_of, self.body.taken
        return msg.AttemptSuspended(**run.identity(run.process.time()), taken=taken, told=self.told)

    # -- on threads ------------------------------------------------------------------------

    def turn(self, outcomes: list[StepOutcome]) -> list[tuple[Step, LocalWork]]:
        """Let the body take outcomes, and tell what it asks for. Returns the local steps to start
        beside it. One for which alone it waits is run at once."""
        body = self.body
        body.advance(outcomes)
        work = body.take_work()
        self.tell(body.progress())
        if len(work) == 1 and body.waits_for_one and not body.ended:
            self.run_local_step(*work.pop())
        return work

    def run_local_step(self, step: Step, work: LocalWork) -> None:
        """Run a local step, and tell its outcome."""
        self.tell(self.body.progress_of(self.body.run_local_step(step, work)))

    def tell(self, progress: msg.BodyProgress | None) -> None:
        """Tell the coordinator something, without waiting for its answer."""
        if progress is None:
            return
        with self.lock:
            number = self.told
            self.told += 1
        run = self.run_of
        told = ToldProgress(run.request.incarnation, run.batch, number, progress)
        self.coordinator.body_progress.remote(ENCODER.encode(told))

    # -- local steps beside it ---------------------------------------------------------------

    def start_local_step(self, step: Step, work: LocalWork) -> None:
        """Run a local step on a thread of its own."""
        self.local += 1
        running = asyncio.ensure_future(
            call_on_thread(self.step_threads, self.run_local_step, step, work)
        )
        running.add_done_callback(self.local_step_ended)

    def local_step_ended(self, running: asyncio.Future[None]) -> None:
        """Note that a local step has ended, and why its outcome could not be stored."""
        self.local -= 1
        error = None if running.cancelled() else running.exception()
        if error is not None:
            assert isinstance(error, UserError)
            self.trouble = error.error
        self.woken.set()


body_host_class = ray.remote(
    num_cpus=0, max_concurrency=MAX_BODIES, max_restarts=0, max_task_retries=0
)(BodyHost)
