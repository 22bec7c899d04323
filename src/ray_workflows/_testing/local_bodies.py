"""Bodies of durable functions in the process of an `Environment`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import msgspec

from ray_workflows._capture.dag import function_name
from ray_workflows._executor.in_order import InOrder
from ray_workflows._executor.inline import InlineAttempt, InlineExecutor
from ray_workflows._executor.protocol import AnyReport, AttemptRequest
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._executor.worker.bodies.attempt import BodyAttempt, LocalWork
from ray_workflows._executor.worker.bodies.body import UnreadableOutcome
from ray_workflows._executor.worker.bodies.host import IDLE_SECONDS
from ray_workflows._model import messages as msg
from ray_workflows._model.plan import Function
from ray_workflows._model.steps import Step, StepOutcome
from ray_workflows.testing.clock import VirtualClock

#: A body that has taken more outcomes than this stays until it ends or the cluster crashes, so that
#: a loop of many waits does not take time that grows with its square.
MAX_REPLAYED = 100


class Place(Protocol):
    """Where a body runs: a `LocalCluster`."""

    executor: InlineExecutor
    ready: deque[Callable[[], None]]
    clock: VirtualClock
    stand_in: Callable[[AttemptRequest], Callable[..., Any] | None]
    began: Callable[[AttemptRequest, bool], None]


class LocalBody:
    """An attempt of a body, an `InlineBody`. What it does waits in the queue of its cluster.

    Args:
        cluster: where it runs.
        flight: the attempt.
        run: as of any other attempt.
    """

    def __init__(self, cluster: Place, flight: InlineAttempt, run: AttemptRun) -> None:
        assert flight.request.history is not None
        self.cluster = cluster
        self.executor = cluster.executor
        self.flight = flight
        self.run = run
        self.body = BodyAttempt(run)
        self.given: InOrder[StepOutcome] = InOrder(len(flight.request.history.outcomes))
        self.ready: list[StepOutcome] = list(flight.request.history.outcomes)
        self.local = 0
        self.told = 0
        #: Since when it waits, if it does.
        self.waits_since: float | None = None
        self.later(self.begin)

    def later(self, action: Callable[[], None]) -> None:
        """Do something when the cluster has time, if the attempt goes on until then."""

        def act() -> None:
            if not self.flight.retired:
                action()

        self.cluster.ready.append(act)

    # -- asked by the executor -------------------------------------------------------------

    def give(self, number: int, outcome: StepOutcome) -> None:
        """Take an outcome."""
        self.ready += self.given.add(number, outcome)
        self.later(self.turn)

    def leave(self) -> None:
        """End the code where it is."""
        if not self.body.ended:
            self.body.leave()

    # -- what it does ----------------------------------------------------------------------

    def begin(self) -> None:
        """Load the code, and run it up to the end of its history."""
        try:
            self.body.start()
        except BaseException as error:
            self.land(self.run.raised(error))
        else:
            self.turn()

    def turn(self) -> None:
        """Let the code take what has come."""
        outcomes, self.ready = self.ready, []
        try:
            self.body.advance(outcomes)
        except UnreadableOutcome as unreadable:
            self.land(self.run.raised(unreadable.error))
            return
        self.tell(self.body.progress())
        for step, work in self.body.take_work():
            self.local += 1
            self.later(partial(self.run_local_step, step, work))
        self.waits_since = None
        if self.body.ended:
            self.land(self.body.report(self.told))
        elif self.body.is_stuck and not self.ready:
            self.land(self.body.stuck())
        else:
            self.waits_since = self.cluster.clock()

    def run_local_step(self, step: Step, work: LocalWork) -> None:
        """Run a local step, on a thread: a test may be a coroutine itself."""
        like = of_local_step(self.flight.request, step, work)
        stand_in = self.cluster.stand_in(like)
        self.cluster.began(like, stand_in is not None)
        if stand_in is not None:
            work = work._replace(function=stand_in)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.body.run_local_step, step, work)
        trouble = running.exception()
        if trouble is not None:
            self.land(self.run.raised(trouble))
            return
        ended = running.result()
        self.local -= 1
        self.tell(self.body.progress_of(ended))

    def tell(self, progress: msg.BodyProgress | None) -> None:
        """Tell the coordinator something."""
        if progress is not None:
            self.executor.told(self.flight, self.told, progress)
            self.told += 1

    def leaves_at(self) -> float | None:
        """When it gives its place back; None if it has something to do."""
        if self.flight.retired or self.waits_since is None or self.local or self.ready:
            return None
        if self.body.taken > MAX_REPLAYED:
            return None
        return self.waits_since + IDLE_SECONDS

    def suspend(self) -> None:
        """Give its place back: it has only waited for a while."""
        run = self.run
        self.land(
            msg.AttemptSuspended(
                **run.identity(run.process.time()), taken=self.body.taken, told=self.told
            )
        )

    def land(self, report: AnyReport) -> None:
        """Report the end of the attempt."""
        self.executor.land(self.flight, report, self.run.made)


def of_local_step(request: AttemptRequest, step: Step, work: LocalWork) -> AttemptRequest:
    """A request that names a local step: mocks and tests look at its function and its id."""
    function = Function("", function_name(work.function), b"")
    template = msgspec.structs.replace(request.template, function=function)
    task_id = f"{request.task_id}/{step.path}"
    return msgspec.structs.replace(request, task_id=task_id, template=template)
