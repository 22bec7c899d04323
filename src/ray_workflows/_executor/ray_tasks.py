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

from ray_workflows._executor.batch import Live
from ray_workflows._executor.calls import Calls, load_of
from ray_workflows._executor.carriers import STAY_SECONDS, Answer, Carrier, Carriers, Submission
from ray_workflows._executor.deadlines import Deadlines
from ray_workflows._executor.failures import failure, lost_input, raised
from ray_workflows._executor.lanes import WORTHWHILE_SECONDS, Durations, Flight, Lane
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

    def __init__(self, storage: Storage, report: ReportSink, coordinator: Any = None) -> None:
        self.report = report
        self.coordinator = coordinator
        self.deadlines = Deadlines()
        self.lock = threading.RLock()
        self.numbers = itertools.count()
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
            if submission is not None:
                self.lanes[submission.shape].expects_no_more(number)
                self.settle(submission, REPORT_DECODER.decode(encoded), objects)
                self.stop_if_unwanted(submission)
                self.pump(submission.shape)

    def batch_done(self, number: int, encoded: bytes, objects: Live, answer: Answer) -> None:
        """A batch is through, and its Ray task waits for another one, or None."""
        with self.lock:
            submission = self.submissions.get(number)
            carrier = None if submission is None else submission.carrier
            if submission is None or carrier is None:
                answer(None)
                return
            self.over(submission)
            self.carriers.wait(carrier, answer)
            self.settle(submission, REPORT_DECODER.decode(encoded), objects)
            if carrier.fresh and self.has_room():
                waits = carrier.waits
                self.deadlines.after(STAY_SECONDS, lambda: self.leave(carrier, waits))
            else:
                self.carriers.leave(carrier)
            self.pump(submission.shape)

    def leave(self, carrier: Carrier, waits: int) -> None:
        """Nothing has come for it in the time it waits."""
        with self.lock:
            if carrier.waits == waits:
                self.carriers.leave(carrier)

    def may_stay(self, submission: Submission) -> bool:
        """Whether the Ray task of this batch is to ask for another one after it."""
        return self.coordinator is not None and submission.shareable and self.has_room()

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
            batch = lane.next_batch(self.durations, self.slots(), time.monotonic())
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
        submission = Submission(next(self.numbers), members)
        now = time.time()
        for flight in members:
            flight.batch = submission.number
            flight.submitted_at = now
        self.submissions[submission.number] = submission
        lane.submitted += not submission.listens
        try:
            if not self.give(lane, submission):
                self.send(submission)
        except Exception as error:
            # Options that this Ray refuses, or a secret that is not here: the user's to mend.
            if submission.carrier is not None:
                self.carriers.flying.discard(submission.carrier)
            self.over(submission)
            for flight in members:
                self.land(flight, raised(flight, error))

    def give(self, lane: Lane, submission: Submission) -> bool:
        """Let a Ray task carry it that waits for a batch, if there is one."""
        if not submission.shareable or not self.carriers.waits(submission.shape):
            return False
        submission.stays = self.may_stay(submission)
        load, values = load_of(submission, self.live)
        if values:
            return False  # Ray brings them to a Ray task of their own.
        lane.expect(submission.number, submission.members, self.durations, time.monotonic())
        self.carriers.take(submission, load)
        return True

    def send(self, submission: Submission) -> None:
        """Submit a Ray task, or call a listener host."""
        carrier = Carrier(submission)
        if not submission.listens:
            self.carriers.flying.add(carrier)
            if not self.has_room():
                self.carriers.leave_all()
            submission.stays = self.may_stay(submission)
        load, values = load_of(submission, self.live)
        carrier.ref = self.calls.send(submission, load, values)
        carrier.ref.future().add_done_callback(lambda future: self.done(carrier, future))

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
                self.carriers.flying.discard(carrier)
                # Carrier and batch know each other: this would hold its results, gigabytes in the
                # object store, until the garbage collector comes by.
                carrier.ref = None
                submission = carrier.current
                if submission is None:
                    # All that it carried is settled.
                    self.carriers.leave(carrier)
                    return
                self.over(submission)
                try:
                    number, (encoded, objects) = future.result()
                    report = REPORT_DECODER.decode(encoded)
                except Exception as error:
                    self.fail(submission, error)
                else:
                    if number == submission.number:
                        self.settle(submission, report, objects)
                    else:
                        # It gave up waiting before it got this one.
                        for flight in submission.members:
                            self.run_elsewhere(submission, flight)
                self.pump(submission.shape)
        except Exception:
            logger.exception("The end of a Ray task could not be handled.")

    def over(self, submission: Submission) -> None:
        del self.submissions[submission.number]
        if not submission.listens:
            lane = self.lanes.setdefault(submission.shape, Lane())
            lane.landed(submission.number, submission.digest)
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

    def fail(self, submission: Submission, error: Exception) -> None:
        """The Ray task failed. If several members are left, one was guilty: they run again alone,
        and only the guilty one will be charged."""
        if isinstance(error, RayError) and not isinstance(error, TaskCancelledError):
            self.forget_dead_hosts(error)
        unset = isinstance(error, RuntimeEnvSetupError) and self.calls.lacked(submission)
        left = [
            flight
            for flight in submission.members
            if not flight.retired and flight.batch == submission.number
        ]
        if unset:
            # Nobody's fault: what the worker was to be set up with had gone from the cluster.
            for flight in left:
                self.land(flight, lost_input(flight.request, (), error, flight))
            return
        if len(left) == 1:
            self.land(left[0], failure(left[0], error))
            return
        for flight in left:
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
        if not submission.open:
            self.stop(submission)

    def expire(self, flight: Flight) -> None:
        """Stop an attempt that overran its timeout. It is reported when it is really over, so that
        it never runs beside the next one; if it makes it to its end meanwhile, that counts."""
        with self.lock:
            if not flight.retired and flight.batch is not None:
                flight.expired = True
                self.stop(self.submissions[flight.batch])

    def stop(self, submission: Submission) -> None:
        if submission.carrier is not None and submission.carrier.ref is not None:
            try:
                # A soft cancel can be swallowed by user code. Actor calls know no force.
                ray.cancel(submission.carrier.ref, force=not submission.listens)
            except Exception as error:
                where = submission.members[0].request.where
                logger.warning("Attempt of %s could not be canceled: %s", where, error)
