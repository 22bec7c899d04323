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
    end_of_worker,
    failure,
    lost_input,
    no_package,
    refused_package,
    unsubmitted,
)
from ray_workflows._executor.live_values import LiveValues, direct_keys, nested_keys, value_keys
from ray_workflows._executor.protocol import (
    ENCODER,
    TOLD_DECODER,
    AnyReport,
    AttemptRequest,
    BatchReport,
    GivenOutcomes,
    ReportSink,
    decode_report,
)
from ray_workflows._executor.scheduling.dispatch import Dispatch
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._executor.scheduling.placement import PlacementCheck
from ray_workflows._executor.scheduling.slots import Answer, SentBatch, WorkerSlot
from ray_workflows._executor.worker.batch import Live, WireReport
from ray_workflows._executor.worker.running import TOLD_AFTER_SECONDS
from ray_workflows._model.messages import AttemptLostInput, BodyEnd
from ray_workflows._model.steps import StepOutcome
from ray_workflows._model.values import Blob, Value

logger = logging.getLogger(__name__)

#: How long progress of a body may come after its end, in seconds.
LATE_SECONDS = 60.0


class RayExecutor:
    """Submits attempts to Ray and turns results into reports.

    All methods may be called from any thread.

    Args:
        cluster: where attempts run.
        report: takes reports; called from Ray's threads.
        later: runs a function soon, and then `flush`.
        aside: runs requests to the head of the cluster, which may block.
        deadlines: timers; by default on a thread of their own.
        clock: the clock.
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
        #: Bodies with outcomes that are not sent.
        self.giving: dict[int, InFlightAttempt] = {}
        #: Numbers of ended batches whose reports are not processed yet.
        self.unsettled: set[int] = set()
        #: Workflows in which a chain of fused attempts killed its worker.
        self.suspects: set[str] = set()
        #: Why the worker ended in which fused attempts may have run that are to be started anew:
        #: by incarnation, and by task, epoch and attempt.
        self.cut_off: dict[str, dict[tuple[int, int, int], str]] = {}

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
            if self.cut_off:
                request = self.with_last_end(request)
                followers = map(self.with_last_end, followers)
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
            # First: an attempt that is not sent yet takes them with its history.
            self.send_outcomes()
            self.dispatch.flush()

    def cancel(self, incarnation: str, task: int) -> None:
        with self.lock:
            flight = self.flight(incarnation, task)
            if flight is not None:
                self.retire(flight)

    def give(self, incarnation: str, task: int, number: int, outcome: StepOutcome) -> None:
        with self.lock:
            flight = self.flight(incarnation, task)
            if flight is None or number != flight.given:
                return  # Its history has the outcome, or that of the next attempt will.
            flight.given += 1
            flight.ungiven.append(outcome)
            self.giving[id(flight)] = flight

    def send_outcomes(self) -> None:
        """Send bodies the outcomes that they were given since: one call of each. The lock is
        held."""
        giving, self.giving = self.giving, {}
        for flight in giving.values():
            outcomes, flight.ungiven = flight.ungiven, []
            if flight.retired:
                continue
            request = flight.request
            sent = None if flight.batch is None else self.dispatch.sent.get(flight.batch)
            if sent is not None and sent.slot is not None:
                first = flight.given - len(outcomes)
                given = GivenOutcomes(sent.number, first, tuple(outcomes))
                self.cluster.give(sent.slot.ref, ENCODER.encode(given))
                continue
            assert request.history is not None
            longer = msgspec.structs.replace(
                request.history, outcomes=(*request.history.outcomes, *outcomes)
            )
            flight.request = msgspec.structs.replace(request, history=longer)

    def release(self, incarnation: str, value: Value) -> None:
        with self.lock:
            live = self.live.get(incarnation)
            if live is not None:
                live.release(value)

    def live_copy(self, incarnation: str, value: Value) -> Any:
        with self.lock:
            live = self.live.get(incarnation)
            # ObjectRefs inside would belong to a worker, and be lost with it.
            if live is None or value.objects or not isinstance(value.data, Blob):
                return None
            return live.objects.get(value.data.key)

    def forget(self, incarnation: str) -> None:
        with self.lock:
            for flight in list(self.flights.get(incarnation, {}).values()):
                self.retire(flight)
            self.live.pop(incarnation, None)
            self.suspects.discard(incarnation)
            self.cut_off.pop(incarnation, None)

    def close(self) -> None:
        """Stop everything. Nothing is reported afterwards."""
        with self.lock:
            for incarnation in list(self.flights):
                self.forget(incarnation)
            self.live.clear()
            self.cluster.close()

    # -- reported by workers ---------------------------------------------------------------

    def attempt_runs(self, incarnation: str, task: int, epoch: int, attempt: int) -> None:
        """An attempt has been running for a while, or, if it has a timeout, starts now."""
        with self.lock:
            flight = self.told_of(incarnation, task, epoch, attempt)
            if flight is None:
                return
            request = flight.request
            if request.options.timeout is None:
                # The function may be new: other attempts need not wait for this one's end.
                self.dispatch.durations.at_least(request.function.digest, TOLD_AFTER_SECONDS)
                self.dispatch.pump(request.template.shape)
            elif not flight.timed:
                flight.timed = True
                self.let_time_run(flight)

    def attempt_waits(
        self, incarnation: str, task: int, epoch: int, attempt: int, waits: int
    ) -> None:
        """An attempt with a timeout waits for the storage if ``waits`` is odd, else goes on."""
        with self.lock:
            flight = self.told_of(incarnation, task, epoch, attempt)
            if flight is not None and waits > flight.waits:
                flight.waits = waits
                if flight.timed:
                    self.let_time_run(flight)

    def body_progress(self, encoded: bytes) -> bool:
        """A body asks for steps. Returns whether its attempt is in flight."""
        told = TOLD_DECODER.decode(encoded)
        each = told.progress
        with self.lock:
            flight = self.told_of(told.incarnation, each.task, each.epoch, each.attempt)
            if flight is None or flight.batch != told.batch:
                return False
            ready = flight.told.add(told.number, each)
            if ready:
                self.report(told.incarnation, ready)
            if flight.end is not None and flight.told.next >= flight.end.told:
                self.land(flight, flight.end)
            return True

    def told_of(
        self, incarnation: str, task: int, epoch: int, attempt: int
    ) -> InFlightAttempt | None:
        """The attempt of a worker's message, if it is in flight."""
        flight = self.flight(incarnation, task)
        if flight is None:
            return None
        request = flight.request
        return flight if (request.epoch, request.attempt) == (epoch, attempt) else None

    def let_time_run(self, flight: InFlightAttempt) -> None:
        """Start the timeout of an attempt, unless it waits for the storage."""
        timeout, waits = flight.request.options.timeout, flight.waits
        if timeout is not None and not waits % 2:
            self.deadlines.after(timeout, lambda: self.expire(flight, waits))

    def batch_overran(self, wire: WireReport) -> None:
        """A member takes long: take the results so far, and run the returned members elsewhere."""
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
                # The whole batch was only prefetched, and was returned.
                self.dispatch.over(sent)
            self.dispatch.pump(sent.shape)

    def batch_done(self, wire: WireReport, answer: Answer) -> None:
        """A batch has ended; its Ray task runs a prefetched one, or gets the next in ``answer``."""
        report, objects = decode_report(wire)
        with self.lock:
            sent = self.dispatch.sent.get(report.number)
            slot = None if sent is None else sent.slot
            if sent is None or slot is None:
                answer(None)
                return
            self.dispatch.over(sent)
            self.learn(sent, report)
            # Send the next batch before processing thousands of reports. Process these even if
            # that fails: the worker won't repeat them.
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
        """Upstream tasks whose unstored values are no longer here."""
        if not request.upstream:
            return ()
        unstored = [
            (number, outcome.value)
            for number, outcome in zip(request.upstream, request.inputs, strict=True)
            # The cheap conditions first: there may be thousands.
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
        """A batch could not be submitted. If it has several members, one of them may be the cause,
        so they are tried one by one. The lock is held."""
        left = sent.left
        for flight in left:
            if len(left) == 1 or isinstance(error, LOST_HEAD_ERRORS):
                self.land(flight, unsubmitted(flight, error))
            else:
                flight.alone = True
                self.run_elsewhere(sent, flight)

    def unprepared(self, flights: list[InFlightAttempt], error: Exception) -> None:
        """Attempts can't be submitted, because their needs were not found. The lock is held."""
        for flight in flights:
            if flight.follows:
                # The engine starts it again when its input is there.
                self.take_out(flight)
            else:
                self.land(flight, unsubmitted(flight, error))

    def done(self, slot: WorkerSlot, future: Any) -> None:
        """A Ray task ended. Called from one of Ray's threads."""
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
                    # It never got this batch, or the message that returned it was lost.
                    self.dispatch.over(sent)
                    for flight in sent.left:
                        self.run_elsewhere(sent, flight)
                self.dispatch.pump(slot.shape)
        except Exception:
            logger.exception("The end of a Ray task could not be handled.")

    def ended_with(self, slot: WorkerSlot, error: BaseException) -> None:
        """A Ray task ended with an error. Ask the head whether a package was missing."""
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
        """A Ray task ended with an error. ``missing``: its missing packages, or why they can't be
        found out."""
        with self.lock:
            self.dispatch.end(slot)
            shared = self.cluster.ended(slot.ref, host_died=isinstance(error, RayActorError))
            if isinstance(missing, Exception):
                for sent in list(slot.loads):
                    self.dispatch.over(sent)
                    self.unprepared(sent.left, missing)
            else:
                self.fail(slot, error, missing, shared)
            self.dispatch.pump(slot.shape)

    def learn(self, sent: SentBatch, report: BatchReport) -> None:
        """Learn the durations of an ended batch's members."""
        taken: dict[str, list[float]] = {}
        members = sent.members
        for (index, _), seconds in zip(report.reports, report.seconds, strict=True):
            digest = members[index].request.template.function.digest
            taken.setdefault(digest, []).append(seconds)
        for digest, each in taken.items():
            self.dispatch.durations.learn(digest, sum(each) / len(each), len(each))

    def settle(self, sent: SentBatch, report: BatchReport, objects: Live) -> None:
        """Process the reports of a batch, which repeat earlier ones."""
        members, number = sent.members, sent.number
        # All of a workflow at once: there may be thousands.
        landed: dict[str, list[AnyReport]] = {}
        for index, found in report.reports:
            flight = members[index]
            if not flight.retired and flight.batch == number:
                incarnation = flight.request.template.incarnation
                if isinstance(found, BodyEnd) and flight.told.next < found.told:
                    self.hold(flight, found)
                    continue
                told = self.landed(flight, found, objects.get(incarnation))
                landed.setdefault(incarnation, []).append(told)
        for incarnation, reports in landed.items():
            sent.open -= len(reports)
            self.report(incarnation, reports)
        for index in report.unstarted:
            self.run_elsewhere(sent, sent.members[index])

    def hold(self, flight: InFlightAttempt, end: BodyEnd) -> None:
        """Keep the end of a body until its progress is here, which Ray may deliver later. If some
        is lost, the body runs again."""
        flight.end = end
        error = RuntimeError("What a durable function had asked for did not arrive.")
        self.deadlines.after(LATE_SECONDS, lambda: self.give_up(flight, error))

    def give_up(self, flight: InFlightAttempt, error: Exception) -> None:
        """Let an attempt run again whose progress was lost."""
        with self.lock:
            self.land(flight, lost_input(flight.request, (), error, flight))

    def run_elsewhere(self, sent: SentBatch, flight: InFlightAttempt, ended: str = "") -> None:
        """Run a member of a batch that is over, or was handed back. ``ended``: why the worker ended
        in which it may have begun, if it may."""
        if not flight.retired and flight.batch == sent.number:
            sent.open -= 1
            request = flight.request
            if flight.follows:
                # It can't run alone without its input. The engine starts it again.
                if ended:
                    key = request.task, request.epoch, request.attempt
                    self.cut_off.setdefault(request.incarnation, {})[key] = ended
                self.take_out(flight)
                return
            flight.batch = None
            flight.behind = None
            flight.request = msgspec.structs.replace(
                request, fused=False, last_end=ended or request.last_end
            )
            self.dispatch.enqueue(flight)

    def with_last_end(self, request: AttemptRequest) -> AttemptRequest:
        """A request that says why the worker ended in which the attempt may have run before."""
        key = request.task, request.epoch, request.attempt
        ended = self.cut_off.get(request.incarnation, {}).get(key)
        return request if ended is None else msgspec.structs.replace(request, last_end=ended)

    def fail(
        self, slot: WorkerSlot, error: BaseException, missing: Collection[str], shared: bool
    ) -> None:
        """A Ray task failed with its batches. If several members are left, one killed the worker:
        those of the first batch run again alone, so that only the guilty one is charged. The guilty
        one may also be in the next batch, if the report of the first was lost with the worker, or
        be a canceled one. Which of them had begun is not known: each gets ``last_end``."""
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
            self.land(left[0][1], failure(left[0][1], error, shared))
            return
        ended = end_of_worker(error)
        for sent, flight in left:
            if sent is loads[0]:
                flight.alone = True
                if flight.follows:
                    # One of the fused tasks killed the worker; running them singly shows which.
                    self.suspects.add(flight.request.incarnation)
            self.run_elsewhere(sent, flight, ended)

    def lack(
        self,
        left: list[tuple[SentBatch, InFlightAttempt]],
        refusal: Exception | None,
        error: BaseException,
    ) -> None:
        """A package was not in the cluster. No attempt is charged. The package is uploaded again,
        unless that is impossible (``refusal``): then no attempt that needs it can run."""
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
        """End a flight, and return its final report."""
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
        """Forget the live copies that the attempt got: the next attempt reads the storage."""
        live = self.live.get(request.incarnation)
        if live is not None:
            live.drop([*direct_keys(request), *nested_keys(request)])
        return msgspec.structs.replace(report, lost=self.missing_inputs(request))

    def flight(self, incarnation: str, task: int) -> InFlightAttempt | None:
        flights = self.flights.get(incarnation)
        return None if flights is None else flights.get(task)

    def take_out(self, flight: InFlightAttempt) -> None:
        """Remove a flight. Later reports of it are ignored."""
        flight.retired = True
        request = flight.request
        incarnation = request.template.incarnation
        flights = self.flights.get(incarnation)
        if flights is not None and flights.get(request.task) is flight:
            del flights[request.task]
            if not flights:
                del self.flights[incarnation]

    # -- stopping --------------------------------------------------------------------------

    def retire(self, flight: InFlightAttempt) -> None:
        """Stop an attempt whose report is not needed, and its fused followers. The lock is held."""
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
        """Stop a Ray task if all its members are unwanted. While it has wanted members, an unwanted
        one runs on: either it is short, or the others are returned to the queue."""
        slot = sent.slot
        if slot is not None and not slot.wanted:
            self.stop(sent)

    def expire(self, flight: InFlightAttempt, waits: int) -> None:
        """Stop an attempt that overran its timeout. It is reported when its Ray task has ended, so
        that it never runs beside the next attempt; if it succeeds meanwhile, that counts. An
        attempt that has waited for the storage since (``waits``) has time left."""
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
                # User code can swallow a soft cancel. Actor calls can't be canceled by force.
                self.cluster.cancel(slot.ref, force=not sent.hosted)
            except Exception as error:
                where = sent.members[0].request.where
                logger.warning("Attempt of %s could not be canceled: %s", where, error)
