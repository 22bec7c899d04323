"""The executor on Ray: attempts in Ray tasks without retries of Ray's own.

The engine owns retries: with Ray's, losing a node would run a committed task again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec
from ray.exceptions import RayActorError, RuntimeEnvSetupError

from ray_workflows._executor.cluster import Aside, Clock, Cluster, Timers
from ray_workflows._executor.deadlines import Deadlines
from ray_workflows._executor.failures import (
    LOST_HEAD_ERRORS,
    failure,
    lost_input,
    no_package,
    refused_package,
    unsubmitted,
)
from ray_workflows._executor.live_values import LiveValues, direct_keys, nested_keys, value_keys
from ray_workflows._executor.protocol import (
    AnyReport,
    AttemptRequest,
    BatchReport,
    ReportSink,
    decode_report,
)
from ray_workflows._executor.scheduling.dispatch import Dispatch
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._executor.scheduling.placement import PlacementCheck
from ray_workflows._executor.scheduling.slots import Answer, SentBatch, WorkerSlot
from ray_workflows._executor.worker.batch import Live, WireReport
from ray_workflows._executor.worker.running import TOLD_AFTER_SECONDS
from ray_workflows._model.messages import AttemptLostInput
from ray_workflows._model.values import Blob, Value

logger = logging.getLogger(__name__)


class RayExecutor:
    """Submits attempts to Ray and turns what comes back into reports.

    All methods may be called from any thread.

    Args:
        cluster: where attempts run.
        report: takes what becomes of them; called from Ray's threads.
        later: has something done soon, after which there is a `flush`.
        aside: runs what asks the head of the cluster, and may wait for it.
        deadlines: calls at times; by default on a thread of its own.
        clock: says what time it is.
    """

    def __init__(
        self,
        cluster: Cluster,
        report: ReportSink,
        later: Callable[[Callable[[], None]], None],
        aside: Aside,
        *,
        deadlines: Timers | None = None,
        clock: Clock = time,
    ) -> None:
        self.cluster = cluster
        self.report = report
        self.later = later
        self.aside = aside
        self.deadlines = Deadlines() if deadlines is None else deadlines
        self.lock = threading.RLock()
        #: By incarnation and task.
        self.flights: dict[str, dict[int, InFlightAttempt]] = {}
        self.live: dict[str, LiveValues] = {}
        self.dispatch = Dispatch(
            cluster,
            self.live,
            self.lock,
            self.deadlines,
            clock,
            aside,
            self.done,
            self.refused,
            self.unprepared,
        )
        self.placement = PlacementCheck(self.dispatch, report)
        #: Numbers of batches that are over, and whose reports are not looked at yet.
        self.unsettled: set[int] = set()
        #: Workflows in which a run of fused attempts took its worker down.
        self.suspects: set[str] = set()

    # -- asked by the coordinator ----------------------------------------------------------

    def start(self, request: AttemptRequest, followers: Iterable[AttemptRequest] = ()) -> None:
        with self.lock:
            incarnation = request.template.incarnation
            current = self.flight(incarnation, request.task)
            if current is not None:
                running = current.request
                if (running.epoch, running.attempt) == (request.epoch, request.attempt):
                    return
                self.retire(current)
            lost = self.missing_inputs(request)
            if lost:
                self.report(incarnation, [lost_input(request, lost)])
                return
            flight = InFlightAttempt(request)
            if followers and not flight.alone and incarnation not in self.suspects:
                self.dispatch.durations.fuse(flight, followers)
            flights = self.flights.get(incarnation)
            if flights is None:
                flights = self.flights[incarnation] = {}
            flights[request.task] = flight
            for one in flight.followers:
                earlier = flights.get(one.request.task)
                if earlier is not None:
                    self.retire(earlier)
                flights[one.request.task] = one
            self.dispatch.enqueue(flight)

    def flush(self) -> None:
        with self.lock:
            self.dispatch.flush()

    def cancel(self, incarnation: str, task: int) -> None:
        with self.lock:
            flight = self.flight(incarnation, task)
            if flight is not None:
                self.retire(flight)

    def release(self, incarnation: str, value: Value) -> None:
        with self.lock:
            live = self.live.get(incarnation)
            if live is not None:
                live.release(value)

    def live_copy(self, incarnation: str, value: Value) -> Any:
        with self.lock:
            live = self.live.get(incarnation)
            # ObjectRefs inside would be those of a worker, and go with it.
            if live is None or value.objects or not isinstance(value.data, Blob):
                return None
            return live.objects.get(value.data.key)

    def forget(self, incarnation: str) -> None:
        with self.lock:
            for flight in list(self.flights.get(incarnation, {}).values()):
                self.retire(flight)
            self.live.pop(incarnation, None)
            self.suspects.discard(incarnation)

    def close(self) -> None:
        """Stop everything; nothing is reported any more."""
        with self.lock:
            for incarnation in list(self.flights):
                self.forget(incarnation)
            self.live.clear()
            self.cluster.close()

    # -- told by workers -------------------------------------------------------------------

    def attempt_runs(self, incarnation: str, task: int, epoch: int, attempt: int) -> None:
        """An attempt runs, since a while or, if it has a timeout, since now."""
        with self.lock:
            flight = self.told_of(incarnation, task, epoch, attempt)
            if flight is None:
                return
            request = flight.request
            if request.options.timeout is None:
                # One of a function that is not known yet: others need not wait for its end.
                self.dispatch.durations.at_least(request.function.digest, TOLD_AFTER_SECONDS)
                self.dispatch.pump(request.template.shape)
            elif not flight.timed:
                flight.timed = True
                self.let_time_run(flight)

    def attempt_waits(
        self, incarnation: str, task: int, epoch: int, attempt: int, waits: int
    ) -> None:
        """An attempt with a timeout waits for the storage, if the number is odd, or goes on."""
        with self.lock:
            flight = self.told_of(incarnation, task, epoch, attempt)
            if flight is not None and waits > flight.waits:
                flight.waits = waits
                if flight.timed:
                    self.let_time_run(flight)

    def told_of(
        self, incarnation: str, task: int, epoch: int, attempt: int
    ) -> InFlightAttempt | None:
        """The attempt that a worker tells of, if it is in flight."""
        flight = self.flight(incarnation, task)
        if flight is None:
            return None
        request = flight.request
        return flight if (request.epoch, request.attempt) == (epoch, attempt) else None

    def let_time_run(self, flight: InFlightAttempt) -> None:
        """Let the timeout of an attempt run from now on, unless it waits for the storage."""
        timeout, waits = flight.request.options.timeout, flight.waits
        if timeout is not None and not waits % 2:
            self.deadlines.after(timeout, lambda: self.expire(flight, waits))

    def batch_overran(self, wire: WireReport) -> None:
        """A member takes long: what is done so far, and members to run elsewhere."""
        report, objects = decode_report(wire)
        with self.lock:
            sent = self.dispatch.sent.get(report.number)
            if sent is None:
                return
            self.settle(sent, report, objects)
            slot = sent.slot
            if slot is not None and slot.loads[0] is sent:
                self.dispatch.ready_queues[sent.shape].expects_no_more(slot)
                self.stop_if_unwanted(sent)
            elif not sent.open:
                # It was at hand only, and is not any more.
                self.dispatch.over(sent)
            self.dispatch.pump(sent.shape)

    def batch_done(self, wire: WireReport, answer: Answer) -> None:
        """A batch is through; its Ray task goes on with what is at hand, or waits for more."""
        report, objects = decode_report(wire)
        with self.lock:
            sent = self.dispatch.sent.get(report.number)
            slot = None if sent is None else sent.slot
            if sent is None or slot is None:
                answer(None)
                return
            self.dispatch.over(sent)
            self.learn(sent, report)
            # The next batch is on its way before thousands of reports are looked at. They are
            # looked at whatever becomes of it: the worker has told all it knows.
            try:
                self.dispatch.go_on(slot, answer)
            finally:
                self.unsettled.add(sent.number)
                self.later(lambda: self.settle_later(sent, report, objects))

    def settle_later(self, sent: SentBatch, report: BatchReport, objects: Live) -> None:
        with self.lock:
            self.unsettled.discard(sent.number)
            self.settle(sent, report, objects)

    def missing_inputs(self, request: AttemptRequest) -> tuple[int, ...]:
        """Upstream tasks whose values were not checkpointed and are not here any more."""
        if not request.upstream:
            return ()
        unstored = [
            (number, outcome.value)
            for number, outcome in zip(request.upstream, request.inputs, strict=True)
            # First what can be told at once: there may be thousands.
            if outcome.value is not None and outcome.value.has_copies and not outcome.stored
        ]
        if not unstored:
            return ()
        live = self.live.get(request.incarnation)
        objects = live.objects if live is not None else {}
        return tuple(
            number
            for number, value in unstored
            if not any(key in objects for key in value_keys(value))
        )

    # -- what comes back -------------------------------------------------------------------

    def refused(self, sent: SentBatch, error: Exception) -> None:
        """A batch could not be submitted. If it has several members, one of them may be why: they
        are tried one by one. The lock is held."""
        left = sent.left
        for flight in left:
            if len(left) == 1 or isinstance(error, LOST_HEAD_ERRORS):
                self.land(flight, unsubmitted(flight, error))
            else:
                flight.alone = True
                self.run_elsewhere(sent, flight)

    def unprepared(self, flights: list[InFlightAttempt], error: Exception) -> None:
        """Attempts can't be submitted, because what they need was not found. The lock is held."""
        for flight in flights:
            if flight.follows:
                # It is started anew when its input is there.
                self.take_out(flight)
            else:
                self.land(flight, unsubmitted(flight, error))

    def done(self, slot: WorkerSlot, future: Any) -> None:
        """A Ray task ended. Called from a thread of Ray's."""
        try:
            try:
                reports = [decode_report(wire) for wire in future.result()]
            except BaseException as error:
                self.ended_with(slot, error)
                return
            with self.lock:
                self.dispatch.end(slot)
                self.cluster.ended(slot.ref, host_died=False)
                for report, objects in reports:
                    sent = self.dispatch.sent.get(report.number)
                    if sent is not None:
                        self.dispatch.over(sent)
                        self.learn(sent, report)
                        self.settle(sent, report, objects)
                for sent in list(slot.loads):
                    # It never got them, or they were handed back and that was lost.
                    self.dispatch.over(sent)
                    for flight in sent.left:
                        self.run_elsewhere(sent, flight)
                self.dispatch.pump(slot.shape)
        except Exception:
            logger.exception("The end of a Ray task could not be handled.")

    def ended_with(self, slot: WorkerSlot, error: BaseException) -> None:
        """A Ray task ended with an error. Whether a package was missing is for the head to say."""
        if isinstance(error, RuntimeEnvSetupError):
            with self.lock:
                loads = list(slot.loads)
            self.aside(
                lambda: self.cluster.missing(loads),
                lambda missing: self.failed(slot, error, missing),
            )
        else:
            self.failed(slot, error, ())

    def failed(
        self, slot: WorkerSlot, error: BaseException, missing: Collection[str] | Exception
    ) -> None:
        """A Ray task ended with an error; it is known which of its packages are missing, or why
        that can't be told."""
        with self.lock:
            self.dispatch.end(slot)
            self.cluster.ended(slot.ref, host_died=isinstance(error, RayActorError))
            if isinstance(missing, Exception):
                for sent in list(slot.loads):
                    self.dispatch.over(sent)
                    self.unprepared(sent.left, missing)
            else:
                self.fail(slot, error, missing)
            self.dispatch.pump(slot.shape)

    def learn(self, sent: SentBatch, report: BatchReport) -> None:
        """How long the members of a batch took that is through."""
        taken: dict[str, list[float]] = {}
        members = sent.members
        for (index, _), seconds in zip(report.reports, report.seconds, strict=True):
            digest = members[index].request.template.function.digest
            taken.setdefault(digest, []).append(seconds)
        for digest, each in taken.items():
            self.dispatch.durations.learn(digest, sum(each) / len(each), len(each))

    def settle(self, sent: SentBatch, report: BatchReport, objects: Live) -> None:
        """Take what a batch has to tell; what it told before is told again."""
        members, number = sent.members, sent.number
        # All of a workflow at once: thousands come together.
        landed: dict[str, list[AnyReport]] = {}
        for index, found in report.reports:
            flight = members[index]
            if not flight.retired and flight.batch == number:
                incarnation = flight.request.template.incarnation
                told = self.landed(flight, found, objects.get(incarnation))
                landed.setdefault(incarnation, []).append(told)
        for incarnation, reports in landed.items():
            sent.open -= len(reports)
            self.report(incarnation, reports)
        for index in report.unstarted:
            self.run_elsewhere(sent, sent.members[index])

    def run_elsewhere(self, sent: SentBatch, flight: InFlightAttempt) -> None:
        if not flight.retired and flight.batch == sent.number:
            sent.open -= 1
            if flight.follows:
                # It has no input of its own there. It is started anew when its input is there.
                self.take_out(flight)
                return
            flight.batch = None
            flight.behind = None
            flight.request = msgspec.structs.replace(flight.request, fused=False)
            self.dispatch.enqueue(flight)

    def fail(self, slot: WorkerSlot, error: BaseException, missing: Collection[str]) -> None:
        """A Ray task failed with what it had. If several members are left, one was guilty: those of
        the batch that ran first run again alone, and only the guilty one will be charged. It may
        have been one of the next batch, if the report of the first was lost with the worker, or one
        that nobody wants any more."""
        loads = list(slot.loads)
        for sent in loads:
            self.dispatch.over(sent)
        left = [(each, flight) for each in loads for flight in each.left]
        unset = isinstance(error, RuntimeEnvSetupError)
        lacked = [sent for sent in loads if unset and self.cluster.lacked(sent, missing)]
        refusal = self.cluster.why_missing(lacked[0], missing) if lacked else refused_package(error)
        if lacked or refusal is not None:
            self.lack(left, refusal, error)
            return
        doubtful = any(sent.has_unwanted for sent in loads)
        if len(left) == 1 and (left[0][1].expired or not doubtful):
            self.land(left[0][1], failure(left[0][1], error))
            return
        for sent, flight in left:
            if sent is loads[0]:
                flight.alone = True
                if flight.follows:
                    # One of the fused tasks killed the worker; running them singly shows which.
                    self.suspects.add(flight.request.incarnation)
            self.run_elsewhere(sent, flight)

    def lack(
        self,
        left: list[tuple[SentBatch, InFlightAttempt]],
        refusal: Exception | None,
        error: BaseException,
    ) -> None:
        """A package was not in the cluster: nobody's fault. It is brought again, unless it is
        refused: then no attempt that needs it can run."""
        for _, flight in left:
            if refusal is None:
                self.land(flight, lost_input(flight.request, (), error, flight))
            else:
                self.land(flight, no_package(flight, refusal))

    def land(self, flight: InFlightAttempt, report: AnyReport) -> None:
        """Report a flight, unless it was retired before. The lock is held."""
        if not flight.retired:
            self.report(flight.request.incarnation, [self.landed(flight, report)])

    def landed(
        self, flight: InFlightAttempt, report: AnyReport, objects: dict[str, Any] | None = None
    ) -> AnyReport:
        """What is to be reported of a flight that is over."""
        self.take_out(flight)
        request = flight.request
        if objects:
            keys = value_keys(getattr(report, "value", None))
            live = self.live.setdefault(request.incarnation, LiveValues())
            live.add(keys, {key: objects[key] for key in keys if key in objects})
        if isinstance(report, AttemptLostInput):
            return self.without_lost(request, report)
        return report

    def without_lost(self, request: AttemptRequest, report: AttemptLostInput) -> AttemptLostInput:
        """Forget the live copies the attempt was given: the next one reads from storage."""
        live = self.live.get(request.incarnation)
        if live is not None:
            live.drop([*direct_keys(request), *nested_keys(request)])
        return msgspec.structs.replace(report, lost=self.missing_inputs(request))

    def flight(self, incarnation: str, task: int) -> InFlightAttempt | None:
        flights = self.flights.get(incarnation)
        return None if flights is None else flights.get(task)

    def take_out(self, flight: InFlightAttempt) -> None:
        """What still comes of it is about the past."""
        flight.retired = True
        request = flight.request
        incarnation = request.template.incarnation
        flights = self.flights.get(incarnation)
        if flights is not None and flights.get(request.task) is flight:
            del flights[request.task]
            if not flights:
                del self.flights[incarnation]

    # -- what is stopped -------------------------------------------------------------------

    def retire(self, flight: InFlightAttempt) -> None:
        """Stop an attempt whose report nobody wants, with those that were to run on its result; the
        lock is held."""
        if flight.retired:
            return
        stopped = [flight, *flight.followers]
        for one in stopped:
            self.take_out(one)
        sent = None if flight.batch is None else self.dispatch.sent.get(flight.batch)
        if sent is not None:
            sent.open -= len(stopped)
            sent.has_unwanted = True
            self.stop_if_unwanted(sent)

    def stop_if_unwanted(self, sent: SentBatch) -> None:
        """Stop a Ray task when nobody wants anything of it. While there are others in it, one that
        is not wanted runs on: it is short, or those others are handed back."""
        slot = sent.slot
        if slot is not None and not slot.wanted:
            self.stop(sent)

    def expire(self, flight: InFlightAttempt, waits: int) -> None:
        """Stop an attempt that overran its timeout. It is reported when it is really over, so that
        it never runs beside the next one; if it makes it to its end meanwhile, that counts. One
        that has waited for the storage since has time left."""
        with self.lock:
            sent = None if flight.batch is None else self.dispatch.sent.get(flight.batch)
            if not flight.retired and sent is not None and flight.waits == waits:
                flight.expired = True
                self.stop(sent)

    def stop(self, sent: SentBatch) -> None:
        slot = sent.slot
        if slot is not None and slot.ref is not None:
            slot.stopped = True
            try:
                # A soft cancel can be swallowed by user code. Actor calls know no force.
                self.cluster.cancel(slot.ref, force=not sent.listens)
            except Exception as error:
                where = sent.members[0].request.where
                logger.warning("Attempt of %s could not be canceled: %s", where, error)
