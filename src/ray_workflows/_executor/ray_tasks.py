"""The executor on Ray: attempts in Ray tasks without retries of Ray's own.

The engine owns retries: with Ray's, losing a node would run a committed task again.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError, RuntimeEnvSetupError, TaskCancelledError

from ray_workflows._executor.batch import Live, Load
from ray_workflows._executor.calls import Brought, Calls, load_of
from ray_workflows._executor.carriers import (
    AT_ONCE,
    STAY_SECONDS,
    Answer,
    Carrier,
    Carriers,
    Submission,
)
from ray_workflows._executor.deadlines import Deadlines
from ray_workflows._executor.failures import failure, lost_input, raised
from ray_workflows._executor.lanes import (
    LONG_SECONDS,
    TARGET_SECONDS,
    WORTHWHILE_SECONDS,
    Durations,
    Flight,
    Lane,
)
from ray_workflows._executor.live import LiveValues, direct_keys, nested_keys, value_keys
from ray_workflows._executor.protocol import (
    REPORT_DECODER,
    AnyReport,
    AttemptRequest,
    BatchReport,
    ReportSink,
)
from ray_workflows._executor.watch import TOLD_AFTER_SECONDS
from ray_workflows._model.inputs import AttemptLostInput
from ray_workflows._model.values import Value
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: How long the size of the cluster is believed, in seconds.
SLOTS_SECONDS = 1.0


class RayExecutor:
    """Submits attempts to Ray and turns what comes back into reports.

    All methods may be called from any thread. ``report`` is called from Ray's threads.
    ``coordinator`` is the handle through which workers tell of attempts that take long.
    """

    def __init__(self, storage: Storage, report: ReportSink, coordinator: Any) -> None:
        self.report = report
        self.coordinator = coordinator
        self.deadlines = Deadlines()
        self.lock = threading.RLock()
        #: Other ones than those of an earlier life of the coordinator, whose Ray tasks may still
        #: report here.
        self.numbers = itertools.count(time.time_ns())
        self.lanes: dict[str, Lane] = {}
        #: Shapes of lanes to which something was added since the last `flush`.
        self.grown: set[str] = set()
        self.durations = Durations()
        #: By incarnation and task.
        self.flights: dict[str, dict[int, Flight]] = {}
        self.submissions: dict[int, Submission] = {}
        self.carriers = Carriers()
        self.live: dict[str, LiveValues] = {}
        self.calls = Calls(storage, coordinator)
        #: Workflows in which a run of fused attempts took its worker down.
        self.suspects: set[str] = set()
        self.slots_known = (0.0, 1)

    # -- asked by the coordinator ----------------------------------------------------------

    def start(self, request: AttemptRequest, followers: Iterable[AttemptRequest] = ()) -> None:
        with self.lock:
            current = self.flight(request.incarnation, request.task)
            if current is not None:
                running = current.request
                if (running.epoch, running.attempt) == (request.epoch, request.attempt):
                    return
                self.retire(current)
            lost = self.missing_inputs(request)
            if lost:
                self.report(request.incarnation, lost_input(request, lost))
                return
            flight = Flight(request)
            if not flight.alone and request.incarnation not in self.suspects:
                self.durations.fuse(flight, followers)
            flights = self.flights.setdefault(request.incarnation, {})
            for one in (flight, *flight.followers):
                flights[one.request.task] = one
            self.enqueue(flight)

    def flush(self) -> None:
        with self.lock:
            while self.grown:
                self.pump(self.grown.pop())

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
            self.calls.close()

    # -- told by workers -------------------------------------------------------------------

    def attempt_runs(self, incarnation: str, task: int, epoch: int, attempt: int) -> None:
        """An attempt runs, since a while or, if it has a timeout, since now."""
        with self.lock:
            flight = self.flight(incarnation, task)
            if flight is None:
                return
            request = flight.request
            if (request.epoch, request.attempt) != (epoch, attempt):
                return
            timeout = request.options.timeout
            if timeout is None:
                # One of a function that is not known yet: others need not wait for its end.
                self.durations.at_least(request.function.digest, TOLD_AFTER_SECONDS)
                self.pump(request.scene.shape)
            elif not flight.timed:
                flight.timed = True
                self.deadlines.after(timeout, lambda: self.expire(flight))

    def batch_overran(self, number: int, encoded: bytes, objects: Live) -> None:
        """A member takes long: what is done so far, and members to run elsewhere."""
        with self.lock:
            submission = self.submissions.get(number)
            if submission is None:
                return
            self.settle(submission, REPORT_DECODER.decode(encoded), objects)
            carrier = submission.carrier
            if carrier is not None and carrier.loads[0] is submission:
                self.lanes[submission.shape].expects_no_more(carrier)
                self.stop_if_unwanted(submission)
            elif not submission.open:
                # It was at hand only, and is not any more.
                self.over(submission)
            self.pump(submission.shape)

    def batch_done(self, number: int, encoded: bytes, objects: Live, answer: Answer) -> None:
        """A batch is through; its Ray task goes on with what is at hand, or waits for more."""
        with self.lock:
            submission = self.submissions.get(number)
            carrier = None if submission is None else submission.carrier
            if submission is None or carrier is None:
                answer(None)
                return
            lane = self.lanes[submission.shape]
            self.over(submission)
            self.settle(submission, REPORT_DECODER.decode(encoded), objects)
            carrier.hear()
            lane.expects_no_more(carrier)
            if not carrier.fresh or self.carriers.is_crowded(submission.shape, self.slots()):
                carrier.answer = answer
                self.carriers.leave(carrier)
            elif carrier.loads:
                carrier.answer = answer
                self.hand(lane, carrier, [])
            else:
                self.carriers.wait(carrier, answer)
            self.pump(submission.shape)
            if carrier.answer is not None:
                if self.has_room():
                    waits = carrier.waits
                    self.deadlines.after(STAY_SECONDS, lambda: self.leave(carrier, waits))
                else:
                    self.carriers.leave(carrier)

    def leave(self, carrier: Carrier, waits: int) -> None:
        """Nothing has come for it in the time it waits."""
        with self.lock:
            if carrier.answer is not None and carrier.waits == waits:
                self.carriers.leave(carrier)

    def has_room(self) -> bool:
        """Whether every Ray task in flight has a slot, as far as we know."""
        return len(self.carriers.flying) <= self.slots()

    # -- submission ------------------------------------------------------------------------

    def enqueue(self, flight: Flight) -> None:
        shape = flight.request.scene.shape
        lane = self.lanes.get(shape)
        if lane is None:
            lane = self.lanes[shape] = Lane()
        lane.add(flight)
        self.grown.add(shape)

    def pump(self, shape: str) -> None:
        """Submit what waits, as far as it is time. The lock is held."""
        # Looked up each time: a Ray task that has ended at once brings us here again meanwhile.
        while (lane := self.lanes.get(shape)) is not None:
            taking, waits = self.carriers.are_taking(shape), self.carriers.waits(shape)
            now = time.monotonic()
            batch = lane.next_batch(self.durations, self.slots(), now, taking, waits)
            if not batch:
                if lane.idle:
                    del self.lanes[shape]
                elif lane.queues and lane.expected and not lane.looks_again:
                    # Who is expected may take longer than was known.
                    lane.looks_again = True
                    self.deadlines.after(WORTHWHILE_SECONDS, lambda: self.look_again(shape))
                return
            self.submit(lane, batch)

    def look_again(self, shape: str) -> None:
        with self.lock:
            lane = self.lanes.get(shape)
            if lane is not None:
                lane.looks_again = False
                self.pump(shape)

    def slots(self) -> int:
        """How many tasks of one CPU the cluster can run at once."""
        now = time.monotonic()
        known_until, slots = self.slots_known
        if now >= known_until:
            slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
            self.slots_known = (now + SLOTS_SECONDS, slots)
        return slots

    def submit(self, lane: Lane, members: list[Flight]) -> None:
        """Let a Ray task carry a batch that waits for one, or submit another."""
        submission = self.accept(members)
        load, values = load_of(submission, self.live)
        shape = submission.shape
        # Ray brings values to a Ray task of their own.
        if not values and self.carriers.waits(shape) and self.is_carried(submission):
            carrier = self.carriers.take(shape)
            carrier.carry(submission)
            self.hand(lane, carrier, [load])
        else:
            self.send(lane, submission, load, values)

    def accept(self, members: list[Flight]) -> Submission:
        submission = Submission(next(self.numbers), members)
        now = time.time()
        for flight in members:
            flight.batch = submission.number
            flight.submitted_at = now
        self.submissions[submission.number] = submission
        return submission

    def hand(self, lane: Lane, carrier: Carrier, loads: list[Load]) -> None:
        """Answer a carrier with batches, and one more where there is plenty."""
        loads += self.ahead(lane, carrier)
        members = [flight for submission in carrier.loads for flight in submission.members]
        lane.expect(carrier, members, self.durations, time.monotonic())
        carrier.reply(loads)

    def ahead(self, lane: Lane, carrier: Carrier) -> list[Load]:
        """The batch after the one that a carrier has, if there is plenty."""
        members: list[Flight] = []
        if carrier.asks and len(carrier.loads) < AT_ONCE:
            members = lane.next_ahead(self.durations, self.slots())
        if not members:
            return []
        submission = self.accept(members)
        load, values = load_of(submission, self.live)
        if values:
            del self.submissions[submission.number]
            for flight in members:
                flight.batch = None
            lane.put_back(members)
            return []
        carrier.carry(submission)
        return [load]

    def send(self, lane: Lane, submission: Submission, load: Load, values: Brought) -> None:
        """Submit a Ray task, or call a listener host."""
        carrier = Carrier(submission.shape, asks=self.is_carried(submission))
        carrier.carry(submission)
        loads = [load]
        if not submission.listens:
            self.carriers.start(carrier)
            lane.submitted += 1
            if not self.has_room():
                self.carriers.leave_all()
            loads += self.ahead(lane, carrier)
        try:
            carrier.ref = self.calls.send(submission, loads, carrier.asks, values)
            carrier.ref.future().add_done_callback(lambda future: self.done(carrier, future))
        except Exception as error:
            # Options that this Ray refuses, or a secret that is not here: the user's to mend.
            self.end(carrier)
            for each in list(carrier.loads):
                self.over(each)
                for flight in each.left:
                    self.land(flight, raised(flight, error))

    def is_carried(self, submission: Submission) -> bool:
        """Whether it may follow another batch in a Ray task, and be followed by one."""
        seconds = self.durations.get(submission.digest)
        if seconds is None or seconds <= LONG_SECONDS:
            return submission.shareable
        # One that is a batch by itself has a Ray task for the asking, where nobody waits for one.
        return submission.shareable and seconds <= TARGET_SECONDS and self.has_room()

    def missing_inputs(self, request: AttemptRequest) -> tuple[int, ...]:
        """Upstream tasks whose values were not checkpointed and are not here any more."""
        live = self.live.get(request.incarnation)
        objects = live.objects if live is not None else {}
        return tuple(
            number
            for number, outcome in zip(request.upstream, request.inputs, strict=True)
            if not outcome.stored and not any(key in objects for key in value_keys(outcome.value))
        )

    # -- what comes back -------------------------------------------------------------------

    def done(self, carrier: Carrier, future: Any) -> None:
        """A Ray task ended. Called from a thread of Ray's."""
        try:
            with self.lock:
                self.end(carrier)
                try:
                    reports = future.result()
                except Exception as error:
                    self.fail(carrier, error)
                else:
                    for number, (encoded, objects) in reports:
                        submission = self.submissions.get(number)
                        if submission is not None:
                            self.over(submission)
                            self.settle(submission, REPORT_DECODER.decode(encoded), objects)
                    for submission in list(carrier.loads):
                        # It never got them, or they were handed back and that was lost.
                        self.over(submission)
                        for flight in submission.left:
                            self.run_elsewhere(submission, flight)
                self.pump(carrier.shape)
        except Exception:
            logger.exception("The end of a Ray task could not be handled.")

    def end(self, carrier: Carrier) -> None:
        """A Ray task is no more."""
        if carrier in self.carriers.flying:
            lane = self.lanes[carrier.shape]
            lane.submitted -= 1
            lane.expects_no_more(carrier)
            self.carriers.end(carrier)

    def over(self, submission: Submission) -> None:
        """A batch is through, or lost."""
        del self.submissions[submission.number]
        if submission.carrier is not None:
            submission.carrier.loads.remove(submission)
        lane = self.lanes.get(submission.shape)
        if lane is not None:
            lane.landed(submission.digest)
        if not self.submissions:
            self.calls.rack.tidy()

    def settle(self, submission: Submission, report: BatchReport, objects: Live) -> None:
        """Take what a batch has to tell; what it told before is told again."""
        taken: dict[str, list[float]] = {}
        for (index, found), seconds in zip(report.reports, report.seconds, strict=True):
            flight = submission.members[index]
            if flight.retired or flight.batch != submission.number:
                continue
            taken.setdefault(flight.request.function.digest, []).append(seconds)
            self.land(flight, found, objects.get(flight.request.incarnation))
            submission.open -= 1
        for digest, each in taken.items():
            self.durations.learn(digest, sum(each) / len(each), len(each))
        for index in report.unstarted:
            self.run_elsewhere(submission, submission.members[index])

    def run_elsewhere(self, submission: Submission, flight: Flight) -> None:
        if not flight.retired and flight.batch == submission.number:
            submission.open -= 1
            if flight.follows:
                # It has no input of its own there. It is started anew when its input is there.
                self.take_out(flight)
                return
            flight.batch = None
            flight.followers = []
            flight.request = msgspec.structs.replace(flight.request, fused=False)
            self.enqueue(flight)

    def fail(self, carrier: Carrier, error: Exception) -> None:
        """A Ray task failed with what it had. If several members are left, one was guilty: those of
        the batch that ran first run again alone, and only the guilty one will be charged. It may
        have been one of the next batch, if the report of the first was lost with the worker."""
        if isinstance(error, RayError) and not isinstance(error, TaskCancelledError):
            self.forget_dead_hosts(error)
        loads = list(carrier.loads)
        for submission in loads:
            self.over(submission)
        left = [(each, flight) for each in loads for flight in each.left]
        unset = isinstance(error, RuntimeEnvSetupError)
        if unset and any(self.calls.lacked(submission) for submission in loads):
            # Nobody's fault: what the worker was to be set up with had gone from the cluster.
            for _, flight in left:
                self.land(flight, lost_input(flight.request, (), error, flight))
            return
        if len(left) == 1:
            self.land(left[0][1], failure(left[0][1], error))
            return
        for submission, flight in left:
            if submission is loads[0]:
                flight.alone = True
                if flight.follows:
                    # Who of them it was comes out when they run one by one.
                    self.suspects.add(flight.request.incarnation)
            self.run_elsewhere(submission, flight)

    def land(
        self, flight: Flight, report: AnyReport, objects: dict[str, Any] | None = None
    ) -> None:
        """Report a flight, unless it was retired before. The lock is held."""
        if flight.retired:
            return
        self.take_out(flight)
        request = flight.request
        if objects:
            keys = value_keys(getattr(report, "value", None))
            live = self.live.setdefault(request.incarnation, LiveValues())
            live.add(keys, {key: objects[key] for key in keys if key in objects})
        if isinstance(report, AttemptLostInput):
            report = self.without_lost(request, report)
        self.report(request.incarnation, report)

    def without_lost(self, request: AttemptRequest, report: AttemptLostInput) -> AttemptLostInput:
        """Forget the live copies the attempt was given: the next one reads from storage."""
        live = self.live.get(request.incarnation)
        if live is not None:
            live.drop([*direct_keys(request), *nested_keys(request)])
        return msgspec.structs.replace(report, lost=self.missing_inputs(request))

    def forget_dead_hosts(self, error: Exception) -> None:
        if isinstance(error, ray.exceptions.RayActorError):
            self.calls.listener_hosts.clear()

    def flight(self, incarnation: str, task: int) -> Flight | None:
        return self.flights.get(incarnation, {}).get(task)

    def take_out(self, flight: Flight) -> None:
        """What still comes of it is about the past."""
        flight.retired = True
        incarnation = flight.request.incarnation
        flights = self.flights.get(incarnation, {})
        if flights.get(flight.request.task) is flight:
            del flights[flight.request.task]
            if not flights:
                del self.flights[incarnation]

    # -- what is stopped -------------------------------------------------------------------

    def retire(self, flight: Flight) -> None:
        """Stop an attempt whose report nobody wants; the lock is held."""
        self.take_out(flight)
        submission = None if flight.batch is None else self.submissions.get(flight.batch)
        if submission is not None:
            submission.open -= 1
            self.stop_if_unwanted(submission)

    def stop_if_unwanted(self, submission: Submission) -> None:
        """Stop a Ray task when nobody wants anything of it. While there are others in it, one that
        is not wanted runs on: it is short, or those others are handed back."""
        carrier = submission.carrier
        if carrier is not None and not carrier.wanted:
            self.stop(submission)

    def expire(self, flight: Flight) -> None:
        """Stop an attempt that overran its timeout. It is reported when it is really over, so that
        it never runs beside the next one; if it makes it to its end meanwhile, that counts."""
        with self.lock:
            if not flight.retired and flight.batch is not None:
                flight.expired = True
                self.stop(self.submissions[flight.batch])

    def stop(self, submission: Submission) -> None:
        carrier = submission.carrier
        if carrier is not None and carrier.ref is not None:
            carrier.stopped = True
            try:
                # A soft cancel can be swallowed by user code. Actor calls know no force.
                ray.cancel(carrier.ref, force=not submission.listens)
            except Exception as error:
                where = submission.members[0].request.where
                logger.warning("Attempt of %s could not be canceled: %s", where, error)
