"""The executor in this process, for tests and simulation: the rules of `RayExecutor` without Ray.

It runs nothing by itself and reads no clock: ``perform`` does the work of an attempt, and ``defer``
decides when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from ray_workflows._executor.in_order import InOrder
from ray_workflows._executor.protocol import AnyReport, AttemptRequest, ReportSink
from ray_workflows._model.messages import AttemptCrashed, AttemptLostInput, BodyProgress
from ray_workflows._model.steps import StepOutcome
from ray_workflows._model.values import Blob, ErrorInfo, Value

#: Does the work of one attempt, given the live objects of its workflow by blob key. Returns the
#: report, and new live objects by blob key.
Perform = Callable[[AttemptRequest, Mapping[str, Any]], tuple[AnyReport, dict[str, Any]]]

#: Takes an attempt and the action that performs it; calls the action at the right time.
Defer = Callable[[AttemptRequest, Callable[[], None]], None]


def at_once(request: AttemptRequest, action: Callable[[], None]) -> None:
    """A `Defer` that performs an attempt at once."""
    action()


class InlineBody(Protocol):
    """An attempt of a body that has begun. It calls `InlineExecutor.told` for what it asks for, and
    `InlineExecutor.land` with its report."""

    def give(self, number: int, outcome: StepOutcome) -> None:
        """Give it an outcome. ``number``: how many it was given before, in its history too."""

    def leave(self) -> None:
        """End it where it is. It may have ended."""


class InlineAttempt:
    """An attempt that was started. ``retired``: canceled or reported. ``body``: what runs it, if it
    is that of a body and has begun. ``given`` and ``news``: as in `InFlightAttempt`."""

    __slots__ = ("body", "given", "news", "request", "retired")

    def __init__(self, request: AttemptRequest) -> None:
        self.request = request
        self.retired = False
        self.body: InlineBody | None = None
        self.given = 0 if request.history is None else len(request.history.outcomes)
        self.news: InOrder[BodyProgress] = InOrder()


#: Begins the attempt of a body, given the live objects of its workflow by blob key.
Begin = Callable[[InlineAttempt, Mapping[str, Any]], InlineBody]


def begin_none(flight: InlineAttempt, live: Mapping[str, Any]) -> InlineBody:
    """A `Begin` of an executor that runs no bodies."""
    raise NotImplementedError(f"{flight.request.where} is a durable function.")


class InlineExecutor:
    """Performs attempts in this process. All methods are called on one thread.

    ``clock`` gives the times in reports about attempts that ``perform`` did not see. ``begin``
    begins those of bodies, which stay in flight until they are reported.
    """

    def __init__(
        self,
        perform: Perform,
        report: ReportSink,
        *,
        clock: Callable[[], float],
        defer: Defer = at_once,
        begin: Begin = begin_none,
    ) -> None:
        self.perform = perform
        self.begin = begin
        self.report = report
        self.clock = clock
        self.defer = defer
        self.flights: dict[tuple[str, int], InlineAttempt] = {}
        #: For each incarnation, live objects by blob key, and the reference count of each.
        self.live: dict[str, dict[str, Any]] = {}
        self.holds: dict[str, dict[str, int]] = {}

    # -- asked by the coordinator ----------------------------------------------------------

    def start(self, request: AttemptRequest, followers: Iterable[AttemptRequest] = ()) -> None:
        key = (request.incarnation, request.task)
        current = self.flights.get(key)
        if current is not None:
            running = current.request
            if (running.epoch, running.attempt) == (request.epoch, request.attempt):
                return
            self.retire(current)
        lost = self.missing_inputs(request)
        if lost:
            self.report(request.incarnation, [self.lost_input(request, lost)])
            return
        flight = InlineAttempt(request)
        self.flights[key] = flight
        self.defer(request, lambda: self.run(flight))

    def flush(self) -> None:
        """Nothing to do: `start` holds nothing back."""

    def cancel(self, incarnation: str, task: int) -> None:
        flight = self.flights.get((incarnation, task))
        if flight is not None:
            self.retire(flight)

    def give(self, incarnation: str, task: int, number: int, outcome: StepOutcome) -> None:
        flight = self.flights.get((incarnation, task))
        if flight is None or number != flight.given:
            return  # Its history has the outcome, or that of the next attempt will.
        flight.given += 1
        if flight.body is not None:
            flight.body.give(number, outcome)
            return
        history = flight.request.history
        assert history is not None
        longer = msgspec.structs.replace(history, outcomes=(*history.outcomes, outcome))
        flight.request = msgspec.structs.replace(flight.request, history=longer)

    def release(self, incarnation: str, value: Value) -> None:
        holds = self.holds.get(incarnation, {})
        for key in value_keys(value):
            left = holds.get(key, 0) - 1
            if left > 0:
                holds[key] = left
            else:
                holds.pop(key, None)
                self.live.get(incarnation, {}).pop(key, None)

    def live_copy(self, incarnation: str, value: Value) -> Any:
        # There is no object store: outputs are read from the storage.
        return None

    def flight(self, incarnation: str, task: int) -> InlineAttempt | None:
        """The attempt of a task that was started and has not ended."""
        return self.flights.get((incarnation, task))

    def forget(self, incarnation: str) -> None:
        for flight in [f for f in self.flights.values() if f.request.incarnation == incarnation]:
            self.retire(flight)
        self.live.pop(incarnation, None)
        self.holds.pop(incarnation, None)

    # -- outcomes --------------------------------------------------------------------------

    def run(self, flight: InlineAttempt) -> None:
        if flight.retired:
            return
        request = flight.request
        live = self.live.get(request.incarnation, {})
        if request.history is None:
            self.land(flight, *self.perform(request, live))
        else:
            flight.body = self.begin(flight, live)

    def told(self, flight: InlineAttempt, number: int, progress: BodyProgress) -> bool:
        """A body asks for steps; ``number``: how often it has told something before. Returns
        whether its attempt is in flight."""
        if flight.retired:
            return False
        ready = flight.news.add(number, progress)
        if ready:
            self.report(flight.request.incarnation, ready)
        return True

    def crash(self, flight: InlineAttempt, error: ErrorInfo) -> None:
        """The worker of an attempt dies."""
        now = self.clock()
        request = flight.request
        report = AttemptCrashed(
            task=request.task,
            epoch=request.epoch,
            attempt=request.attempt,
            started_at=now,
            ended_at=now,
            error=error,
        )
        self.land(flight, report, {})

    def lose(self, incarnation: str, key: str) -> None:
        """Lose a live object, as when a node dies."""
        self.live.get(incarnation, {}).pop(key, None)

    def land(self, flight: InlineAttempt, report: AnyReport, objects: dict[str, Any]) -> None:
        if flight.retired:
            return
        self.retire(flight)
        request = flight.request
        if objects:
            self.live.setdefault(request.incarnation, {}).update(objects)
            holds = self.holds.setdefault(request.incarnation, {})
            for key in value_keys(getattr(report, "value", None)):
                holds[key] = holds.get(key, 0) + 1
        if isinstance(report, AttemptLostInput):
            report = self.lost_input(request, self.missing_inputs(request))
        self.report(request.incarnation, [report])

    def retire(self, flight: InlineAttempt) -> None:
        flight.retired = True
        request = flight.request
        self.flights.pop((request.incarnation, request.task), None)
        if flight.body is not None:
            flight.body.leave()

    def missing_inputs(self, request: AttemptRequest) -> tuple[int, ...]:
        """Upstream tasks whose unstored values are no longer here."""
        live = self.live.get(request.incarnation, {})
        return tuple(
            number
            for number, outcome in zip(request.upstream, request.inputs, strict=True)
            if not outcome.stored and not all(key in live for key in value_keys(outcome.value))
        )

    def lost_input(self, request: AttemptRequest, lost: tuple[int, ...]) -> AttemptLostInput:
        now = self.clock()
        return AttemptLostInput(
            task=request.task,
            epoch=request.epoch,
            attempt=request.attempt,
            started_at=now,
            ended_at=now,
            error=ErrorInfo("ObjectLostError", "an input is gone"),
            lost=lost,
        )


def value_keys(value: Value | None) -> list[str]:
    """The blob keys of a value and of the objects in it."""
    if value is None:
        return []
    keys = [blob.key for blob in value.objects]
    if isinstance(value.data, Blob):
        keys.append(value.data.key)
    return keys
