"""The executor on Ray: each attempt a Ray task without retries of Ray's own.

The engine owns retries: with Ray's, losing a node would run a committed task again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

import msgspec
import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from ray_workflows._capture.options import decode_ray_options
from ray_workflows._capture.ray_private import LABELS
from ray_workflows._capture.values import LOST_OBJECT_ERRORS
from ray_workflows._codec.envelope import seal
from ray_workflows._environment.capture import runtime_env_for
from ray_workflows._executor.deadlines import Deadlines
from ray_workflows._executor.listeners import listener_host_class
from ray_workflows._executor.protocol import (
    ENCODER,
    REPORT_DECODER,
    AnyReport,
    AttemptRequest,
    ReportSink,
)
from ray_workflows._executor.worker import Home, remote_run_attempt
from ray_workflows._model.inputs import AttemptCrashed, AttemptLostInput, AttemptRaised
from ray_workflows._model.plan import LISTENER
from ray_workflows._model.values import Blob, ErrorInfo, Value
from ray_workflows.exceptions import TaskTimeoutError
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: Ray tasks of one shape (resources, placement, environment) in flight at once. Enough to fill a
#: large cluster and to show demand to an autoscaler; a pending Ray task costs memory here, so not
#: all of a million ready tasks are submitted. Per shape, so that tasks that wait for a GPU hold
#: back no others.
MAX_IN_FLIGHT = 2_000

#: Ray options that do not change where a task can run.
NOT_SHAPE = ("name", LABELS, "enable_task_events")


class Flight:
    """An attempt on its way: queued here, then a Ray task."""

    __slots__ = ("expired", "ref", "request", "retired", "shape", "submitted_at", "timed")

    def __init__(self, request: AttemptRequest) -> None:
        self.request = request
        self.shape = shape(request)
        self.ref: ray.ObjectRef | None = None
        self.submitted_at = 0.0
        #: Canceled or reported: what still comes of it is about the past.
        self.retired = False
        #: Its timeout runs; it has overrun it and is being stopped.
        self.timed = False
        self.expired = False


class Lane:
    """Attempts of one shape: those that wait here, and how many are with Ray."""

    __slots__ = ("queue", "submitted")

    def __init__(self) -> None:
        self.queue: deque[Flight] = deque()
        self.submitted = 0


def shape(request: AttemptRequest) -> str:
    """What decides where the attempt can run."""
    options = {k: v for k, v in request.options.ray.items() if k not in NOT_SHAPE}
    return repr((request.options.kind, request.environment.code_digest, sorted(options.items())))


class LiveValues:
    """Objects of one workflow in the cluster's object store, by blob key, with counted holds."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.holds: dict[str, int] = {}

    def add(self, value: Value | None, objects: dict[str, Any]) -> None:
        self.objects.update(objects)
        for key in value_keys(value):
            self.holds[key] = self.holds.get(key, 0) + 1

    def release(self, value: Value) -> None:
        for key in value_keys(value):
            holds = self.holds.get(key, 0) - 1
            if holds > 0:
                self.holds[key] = holds
            else:
                self.holds.pop(key, None)
                self.objects.pop(key, None)

    def drop(self, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


def value_keys(value: Value | None) -> list[str]:
    """The blob keys of a value and of the objects in it."""
    if value is None:
        return []
    keys = [blob.key for blob in value.objects]
    if isinstance(value.data, Blob):
        keys.append(value.data.key)
    return keys


class RayExecutor:
    """Submits attempts to Ray and turns what comes back into reports.

    All methods may be called from any thread. ``report`` is called from Ray's threads.
    ``coordinator`` is the handle whose ``attempt_runs`` is told which attempts run.
    """

    def __init__(
        self,
        storage: Storage,
        report: ReportSink,
        coordinator: Any = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self.storage = storage
        self.home: ray.ObjectRef | None = None
        self.report = report
        self.coordinator = coordinator
        self.deadlines = Deadlines()
        self.max_in_flight = max_in_flight
        self.lock = threading.RLock()
        self.lanes: dict[str, Lane] = {}
        self.flights: dict[tuple[str, int], Flight] = {}
        self.live: dict[str, LiveValues] = {}
        self.listener_hosts: dict[str, Any] = {}

    # -- asked by the coordinator ----------------------------------------------------------

    def start(self, request: AttemptRequest) -> None:
        key = (request.incarnation, request.task)
        with self.lock:
            current = self.flights.get(key)
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
            self.flights[key] = flight
            lane = self.lanes.setdefault(flight.shape, Lane())
            lane.queue.append(flight)
            self.pump(flight.shape, lane)

    def cancel(self, incarnation: str, task: int) -> None:
        with self.lock:
            flight = self.flights.get((incarnation, task))
            if flight is not None:
                self.retire(flight)

    def release(self, incarnation: str, value: Value) -> None:
        with self.lock:
            live = self.live.get(incarnation)
            if live is not None:
                live.release(value)

    def forget(self, incarnation: str) -> None:
        with self.lock:
            for flight in [f for k, f in self.flights.items() if k[0] == incarnation]:
                self.retire(flight)
            self.live.pop(incarnation, None)

    def attempt_runs(self, incarnation: str, task: int, epoch: int, attempt: int) -> None:
        """An attempt runs since now: its timeout begins."""
        with self.lock:
            flight = self.flights.get((incarnation, task))
            if flight is None or flight.timed:
                return
            request = flight.request
            if (request.epoch, request.attempt) == (epoch, attempt) and request.options.timeout:
                flight.timed = True
                self.deadlines.after(request.options.timeout, lambda: self.expire(flight))

    def expire(self, flight: Flight) -> None:
        """Stop an attempt that overran its timeout. It is reported when it is really over, so that
        it never runs beside the next one; if it makes it to its end meanwhile, that counts."""
        with self.lock:
            if not flight.retired:
                flight.expired = True
                self.stop(flight)

    def close(self) -> None:
        """Stop everything; nothing is reported any more."""
        with self.lock:
            for flight in list(self.flights.values()):
                self.retire(flight)
            self.live.clear()
            for host in self.listener_hosts.values():
                ray.kill(host)
            self.listener_hosts.clear()

    # -- submission ------------------------------------------------------------------------

    def pump(self, key: str, lane: Lane) -> None:
        """Submit what waits, as far as the window allows. The lock is held."""
        while lane.queue and lane.submitted < self.max_in_flight:
            flight = lane.queue.popleft()
            if flight.retired:
                continue
            flight.submitted_at = time.time()
            # Listeners take no room: they wait in their host, for days if need be.
            lane.submitted += flight.request.options.kind != LISTENER
            try:
                flight.ref = self.submit(flight.request)
            except Exception as error:
                # Options that this Ray refuses: the user's to mend.
                lane.submitted -= flight.request.options.kind != LISTENER
                self.land(flight, raised(flight, error))
                continue
            flight.ref.future().add_done_callback(lambda future, f=flight: self.done(f, future))
        if not lane.queue and not lane.submitted:
            self.lanes.pop(key, None)

    def submit(self, request: AttemptRequest) -> ray.ObjectRef:
        live = self.live.get(request.incarnation)
        objects = live.objects if live is not None else {}
        nested = {key: objects[key] for key in nested_keys(request) if key in objects}
        encoded = ENCODER.encode(request)
        if self.home is None:
            self.home = ray.put(Home(self.storage, self.coordinator))
        if request.options.kind == LISTENER:
            return self.listener_host(request).listen.remote(encoded, self.home, nested)
        keys = [key for key in direct_keys(request) if key in objects]
        options = decode_ray_options(request.options.ray)
        options.setdefault("name", request.task_id)
        options["runtime_env"] = runtime_env_for(request.environment, options.get("runtime_env"))
        remote = remote_run_attempt(options.pop("max_calls", 0))
        return remote.options(**{**options, "max_retries": 0, "retry_exceptions": False}).remote(
            encoded, self.home, nested, keys, *(objects[key] for key in keys)
        )

    def listener_host(self, request: AttemptRequest) -> Any:
        runtime_env = runtime_env_for(request.environment, request.options.ray.get("runtime_env"))
        name = msgspec.json.encode(runtime_env).decode()
        host = self.listener_hosts.get(name)
        if host is None:
            host = listener_host_class.options(runtime_env=runtime_env).remote()
            self.listener_hosts[name] = host
        return host

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

    def done(self, flight: Flight, future: Any) -> None:
        """A Ray task ended. Called from a thread of Ray's."""
        objects: dict[str, Any] = {}
        try:
            encoded, objects = future.result()
            report = REPORT_DECODER.decode(encoded)
        except Exception as error:
            report = self.ray_failure(flight, error)
        try:
            with self.lock:
                lane = self.lanes.setdefault(flight.shape, Lane())
                lane.submitted -= flight.request.options.kind != LISTENER
                self.land(flight, report, objects)
                self.pump(flight.shape, lane)
        except Exception:
            logger.exception("Report of %s could not be handled.", flight.request.where)

    def land(
        self, flight: Flight, report: AnyReport, objects: dict[str, Any] | None = None
    ) -> None:
        """Report a flight, unless it was retired before. The lock is held."""
        if flight.retired:
            return
        flight.retired = True
        request = flight.request
        self.flights.pop((request.incarnation, request.task), None)
        if objects:
            live = self.live.setdefault(request.incarnation, LiveValues())
            live.add(getattr(report, "value", None), objects)
        if isinstance(report, AttemptLostInput):
            report = self.without_lost(request, report)
        self.report(request.incarnation, report)

    def without_lost(self, request: AttemptRequest, report: AttemptLostInput) -> AttemptLostInput:
        """Forget the live copies the attempt was given: the next one reads from storage."""
        live = self.live.get(request.incarnation)
        if live is not None:
            live.drop([*direct_keys(request), *nested_keys(request)])
        return msgspec.structs.replace(report, lost=self.missing_inputs(request))

    def ray_failure(self, flight: Flight, error: Exception) -> AnyReport:
        if flight.expired:
            return timed_out(flight)
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, LOST_OBJECT_ERRORS):
            return lost_input(flight.request, (), error, flight)
        if isinstance(error, RayTaskError):
            return raised(flight, error)
        if isinstance(error, RayError) and not isinstance(error, TaskCancelledError):
            with self.lock:
                self.forget_dead_hosts(error)
        return AttemptCrashed(**identity(flight), error=error_info(error))

    def forget_dead_hosts(self, error: Exception) -> None:
        if isinstance(error, ray.exceptions.RayActorError):
            self.listener_hosts.clear()

    def retire(self, flight: Flight) -> None:
        """Stop an attempt whose report nobody wants; the lock is held."""
        flight.retired = True
        request = flight.request
        self.flights.pop((request.incarnation, request.task), None)
        self.stop(flight)

    def stop(self, flight: Flight) -> None:
        request = flight.request
        if flight.ref is not None:
            try:
                # A soft cancel can be swallowed by user code. Actor calls know no force.
                ray.cancel(flight.ref, force=request.options.kind != LISTENER)
            except Exception as error:
                logger.warning("Attempt of %s could not be canceled: %s", request.where, error)


def direct_keys(request: AttemptRequest) -> list[str]:
    """Keys of live objects that the attempt takes by value."""
    nested = set(request.nested)
    return [
        outcome.value.data.key
        for position, outcome in enumerate(request.inputs)
        if position not in nested
        and outcome.value is not None
        and isinstance(outcome.value.data, Blob)
    ]


def nested_keys(request: AttemptRequest) -> list[str]:
    """Keys of live objects that the attempt gets as ObjectRefs."""
    keys = [blob.key for blob in request.arguments.objects]
    for outcome in request.inputs:
        keys += [blob.key for blob in outcome.value.objects] if outcome.value is not None else []
    for position in request.nested:
        value = request.inputs[position].value
        if value is not None and isinstance(value.data, Blob):
            keys.append(value.data.key)
    for value in request.constants:
        keys += [blob.key for blob in value.objects]
    return keys


def identity(flight: Flight) -> dict[str, Any]:
    request = flight.request
    return {
        "task": request.task,
        "epoch": request.epoch,
        "attempt": request.attempt,
        "started_at": flight.submitted_at,
        "ended_at": time.time(),
    }


def error_info(error: BaseException) -> ErrorInfo:
    """An error of Ray's own, pickled here: nothing of the user's is in it."""
    try:
        exception = Value(b"".join(seal(cloudpickle.dumps(error), [])))
    except Exception:
        exception = None
    return ErrorInfo(
        type_name=type(error).__name__, message=str(error), traceback="", exception=exception
    )


def raised(flight: Flight, error: BaseException) -> AttemptRaised:
    return AttemptRaised(**identity(flight), error=error_info(error), retryable=False)


def timed_out(flight: Flight) -> AttemptRaised:
    request = flight.request
    timeout = request.options.timeout
    assert timeout is not None
    error = TaskTimeoutError(request.workflow_id, request.task_id, timeout)
    return AttemptRaised(
        **identity(flight), error=error_info(error), retryable=request.options.retry_timeouts
    )


def lost_input(
    request: AttemptRequest,
    lost: tuple[int, ...],
    error: BaseException | None = None,
    flight: Flight | None = None,
) -> AttemptLostInput:
    now = time.time()
    return AttemptLostInput(
        task=request.task,
        epoch=request.epoch,
        attempt=request.attempt,
        started_at=flight.submitted_at if flight is not None else now,
        ended_at=now,
        error=error_info(error) if error else ErrorInfo("ObjectLostError", "an input is gone"),
        lost=lost,
    )
