"""The executor of one coordinator: scripts instead of user code, on workers that die."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ray_workflows._executor.inline import InlineAttempt, InlineExecutor
from ray_workflows._executor.protocol import AnyReport, AttemptRequest, News
from ray_workflows._model import messages as msg
from ray_workflows._model.plan import LISTENER
from ray_workflows._model.values import Blob, ErrorInfo, Outcome, Value
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError
from tests.simulation import scripts
from tests.simulation.bodies import HostedBody
from tests.simulation.violations import Violation

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World

#: No attempt takes longer.
MAX_SECONDS = 45.0

#: One that takes longer than this is heard of while it runs.
TOLD_AFTER_SECONDS = 0.25

#: How long a message between a body and its coordinator takes.
MESSAGE_SECONDS = 0.2

#: How long progress of a body may come after its end, as in `RayExecutor`.
LATE_SECONDS = 60.0

#: Identity of an attempt within one executor.
Key = tuple[str, int, int, int]


class LostInput(Exception):
    """A live value is gone."""


def key_of(incarnation: str, report: Any) -> Key:
    return incarnation, report.task, report.epoch, report.attempt


class Judged:
    """Judges every start of an executor, and brings reports to the loop. It comes before an
    executor among the bases of a class."""

    def __init__(self, world: World, life: Life, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.world = world
        self.life = life
        #: Attempts that were started, and of these those whose reports are with the loop, or on the
        #: way there: never to start again. One that ran at once after another one may be started
        #: when it was reported, if nothing could be made of its report yet.
        self.started: set[Key] = set()
        self.reported: set[Key] = set()
        #: Live values by why they are gone.
        self.released: set[tuple[str, str]] = set()

    # -- asked by the coordinator ----------------------------------------------------------

    def start(self, request: AttemptRequest, followers: Iterable[AttemptRequest] = ()) -> None:
        life, world = self.life, self.world
        life.may_crash()
        world.monitor.started(life.name, life.known.get(request.incarnation, 0), request)
        key = key_of(request.incarnation, request)
        if life.elapsed() > life.loop.lease_until:
            raise Violation("lease", f"{request.where} started by {life.name} without a lease")
        if key in self.reported:
            raise Violation("repeated", f"{request.where}: attempt {key[2:]} was reported")
        self.started.add(key)
        for outcome in request.inputs:
            self.judge_released(request, outcome)
        world.trace("start %s %d/%d by %s", request.task_id, *key[2:], life.name)
        super().start(request, followers)  # type: ignore[misc]

    def judge_released(self, request: AttemptRequest, outcome: Outcome) -> None:
        if outcome.value is None or outcome.stored:
            return
        assert isinstance(outcome.value.data, Blob)
        if (request.incarnation, outcome.value.data.key) in self.released:
            raise Violation("released", f"{request.where}: its input was released before")

    def release(self, incarnation: str, value: Value) -> None:
        super().release(incarnation, value)  # type: ignore[misc]
        if isinstance(value.data, Blob) and not value.stored:
            self.released.add((incarnation, value.data.key))

    def forget(self, incarnation: str) -> None:
        super().forget(incarnation)  # type: ignore[misc]
        self.reported = {key for key in self.reported if key[0] != incarnation}

    def cancel(self, incarnation: str, task: int) -> None:
        super().cancel(incarnation, task)  # type: ignore[misc]
        self.reported = {key for key in self.reported if key[:2] != (incarnation, task)}

    # -- reports on their way --------------------------------------------------------------

    def send(self, incarnation: str, reports: Sequence[News]) -> None:
        """Bring reports to the loop, perhaps twice."""
        for report in reports:
            if isinstance(report, (msg.FoundUnplaceable, msg.BodyProgress)):
                # Of the executor itself, which is where the loop is.
                self.bring(incarnation, report)
            else:
                self.send_one(incarnation, report)

    def send_one(self, incarnation: str, report: msg.AttemptNews) -> None:
        faults, rng = self.world.faults, self.world.rng
        key = key_of(incarnation, report)
        if key in self.started and not isinstance(report, msg.AttemptFoundCorruption):
            # Of a workflow that has failed, there is nothing to release: it comes to light again.
            self.reported.add(key)
        self.arrive(incarnation, report)
        if faults.hit(faults.report_twice):
            delay = rng.choice([0.01, 1.0, 20.0]) * rng.random()
            self.world.clock.after(delay, lambda: self.arrive(incarnation, report))

    def arrive(self, incarnation: str, report: msg.AttemptNews) -> None:
        life = self.life
        if life.exists:
            self.world.trace(
                "report %s %d %d/%d to %s",
                type(report).__name__,
                report.task,
                report.epoch,
                report.attempt,
                life.name,
            )
            self.bring(incarnation, report)

    def bring(self, incarnation: str, report: News) -> None:
        life = self.life
        if life.exists:
            life.post(lambda: life.loop.report(incarnation, [report]))


class SimulatedExecutor(Judged, InlineExecutor):
    """Runs scripts after a while."""

    def __init__(self, world: World, life: Life) -> None:
        super().__init__(
            world,
            life,
            self.run_script,
            self.send,
            clock=life.clock,
            defer=self.plan_fate,
            begin=self.begin_body,
        )
        #: The bodies in the processes of this coordinator.
        self.bodies: dict[HostedBody, None] = {}
        #: Ends of bodies that came before some of their progress.
        self.held: dict[InlineAttempt, msg.BodyEnd] = {}

    def requests(self) -> list[AttemptRequest]:
        """The attempts that run."""
        return [flight.request for flight in self.flights.values()]

    # -- what becomes of attempts ----------------------------------------------------------

    def plan_fate(self, request: AttemptRequest, action: Callable[[], None]) -> None:
        world, faults, rng = self.world, self.world.faults, self.world.rng
        flight = self.flights[request.incarnation, request.task]
        delay = rng.uniform(0.001, 0.3)
        if rng.random() < 0.1:
            delay = rng.uniform(0.5, 4.0)
        if request.options.kind == LISTENER:
            delay = rng.uniform(0.1, 8.0)
            if scripts.decode(request.function).endless:
                return
        delay = min(delay * faults.slowness, MAX_SECONDS)
        if delay > TOLD_AFTER_SECONDS:
            world.clock.after(TOLD_AFTER_SECONDS, lambda: self.tell(flight))
        if faults.hit(faults.report_late):
            delay += rng.uniform(0.5, 10.0)
        if faults.hit(faults.worker_crash):
            # Its report is lost with it; that it died is noticed at some time.
            error = ErrorInfo("WorkerCrashed", "killed", self.maker(request))
            if request.history is not None:
                # It dies while it runs, or when it has ended.
                world.clock.after(delay, lambda: self.run_on_worker(action))
                delay += rng.choice([0.1, 2.0]) * rng.random()
                world.clock.after(delay, lambda: self.end_host(flight))
            delay = min(delay * rng.choice([1.0, 1.0, 10.0]), MAX_SECONDS)
            world.clock.after(delay, lambda: self.crash_worker(flight, error))
            return
        world.clock.after(delay, lambda: self.run_on_worker(action))

    def tell(self, flight: InlineAttempt) -> None:
        """Report that the attempt runs, as a worker does."""
        request = flight.request
        news = msg.AttemptRuns(request.task, request.epoch, request.attempt, self.life.clock())
        self.arrive(request.incarnation, news)

    def crash_worker(self, flight: InlineAttempt, error: ErrorInfo) -> None:
        if self.life.exists and flight not in self.held:
            self.crash(flight, error)

    def run_on_worker(self, action: Callable[[], None]) -> None:
        if not self.life.exists:
            return
        faults = self.world.faults
        if faults.hit(faults.value_lost):
            self.lose_one()
        action()

    def lose_one(self) -> None:
        keys = [(i, key) for i, objects in sorted(self.live.items()) for key in sorted(objects)]
        if keys:
            incarnation, key = self.world.rng.choice(keys)
            self.world.trace("live value %s of %s is lost", key, incarnation)
            self.lose(incarnation, key)

    def maker(self, request: AttemptRequest) -> str:
        """A name of one execution, in the characters that a blob key may have."""
        return f"{request.blob_prefix}.{self.life.name}.{self.world.number()}"

    def identity(self, request: AttemptRequest) -> dict[str, Any]:
        """What the report of an attempt begins with."""
        now = self.life.clock()
        return {
            "task": request.task,
            "epoch": request.epoch,
            "attempt": request.attempt,
            "started_at": now,
            "ended_at": now,
        }

    def run_script(
        self, request: AttemptRequest, live: Mapping[str, Any]
    ) -> tuple[AnyReport, dict[str, Any]]:
        made_by = self.maker(request)
        identity = self.identity(request)
        faults = self.world.faults
        if faults.hit(faults.found_corruption):
            error = ErrorInfo("StorageCorruptError", "a blob is damaged", made_by)
            return msg.AttemptFoundCorruption(**identity, error=error), {}
        try:
            return self.run_with_inputs(request, live, made_by, identity)
        except (StorageCorruptError, StorageUnavailableError, LostInput) as error:
            return self.trouble(request, error, made_by), {}

    def trouble(self, request: AttemptRequest, error: BaseException, made_by: str) -> AnyReport:
        """The report of an attempt that ended for no reason of its own."""
        identity = self.identity(request)
        info = ErrorInfo(type(error).__name__, str(error), made_by)
        if isinstance(error, StorageCorruptError):
            # It was deleted while its holder seemed dead, and its blobs with it.
            return msg.AttemptFoundCorruption(**identity, error=info)
        if isinstance(error, StorageUnavailableError):
            return msg.AttemptLostStorage(**identity, error=info)
        assert isinstance(error, LostInput)
        return msg.AttemptLostInput(**identity, error=ErrorInfo("", "", made_by))

    def run_with_inputs(
        self,
        request: AttemptRequest,
        live: Mapping[str, Any],
        made_by: str,
        identity: dict[str, Any],
    ) -> tuple[AnyReport, dict[str, Any]]:
        script = scripts.decode(request.function)
        seen = [self.see(request, outcome, live) for outcome in request.inputs]
        if script.failures < 0 or request.attempt <= script.failures:
            error = ErrorInfo(scripts.SCRIPT_ERROR, script.salt, made_by)
            retryable = request.options.retry_exceptions
            return msg.AttemptRaised(**identity, error=error, retryable=retryable), {}
        if script.flaky > self.world.monitor.failures_of(request.incarnation, script.salt):
            error = ErrorInfo(scripts.FLAKY_ERROR, script.salt, made_by)
            return msg.AttemptRaised(**identity, error=error, retryable=False), {}
        assert isinstance(request.arguments.data, bytes)
        text = scripts.core(script, scripts.unpack(request.arguments.data), seen)
        objects: dict[str, Any] = {}
        return self.result(request, script, text, made_by, objects), objects

    def result(
        self,
        request: AttemptRequest,
        script: scripts.Script,
        text: str,
        made_by: str,
        objects: dict[str, Any] | None = None,
    ) -> AnyReport:
        """The report of a result. ``objects`` gets the live ones."""
        identity = self.identity(request)
        if script.turns or script.plan is not None:
            plan = scripts.continuation(script, request.options, text)
            plan = msgspec.structs.replace(plan, digest=made_by)
            return msg.AttemptReturnedPlan(**identity, plan=plan)
        data = scripts.pack(text, made_by)
        made: dict[str, Any] = {}
        if not request.checkpoint:
            value = Value(Blob(made_by, len(data), ""))
            made[made_by] = data
        elif script.large:
            blob = self.life.storage.write_blob(request.incarnation, made_by, [data])
            value = Value(blob)
            made[blob.key] = data
        else:
            value = Value(data)
        if objects is not None:
            objects.update(made)
        return msg.AttemptReturned(**identity, value=value)

    # -- bodies ----------------------------------------------------------------------------

    def begin_body(self, flight: InlineAttempt, live: Mapping[str, Any]) -> HostedBody:
        """The attempt of a body begins in its process."""
        request, faults = flight.request, self.world.faults
        script = scripts.decode(request.function)
        trouble: BaseException | None = None
        text = ""
        try:
            if faults.hit(faults.found_corruption):
                raise StorageCorruptError("a blob is damaged")
            seen = [self.see(request, outcome, live) for outcome in request.inputs]
            assert isinstance(request.arguments.data, bytes)
            text = scripts.core(script, scripts.unpack(request.arguments.data), seen)
        except (StorageCorruptError, StorageUnavailableError, LostInput) as error:
            trouble = error
        hosted = HostedBody(self, flight, text)
        self.bodies[hosted] = None
        if trouble is None:
            hosted.wake()
        else:
            hosted.end(self.trouble(request, trouble, hosted.made_by))
        return hosted

    def body_result(
        self, request: AttemptRequest, script: scripts.Script, text: str, made_by: str
    ) -> AnyReport:
        """The report of the result of a body."""
        try:
            return self.result(request, script, text, made_by)
        except StorageUnavailableError as error:
            return self.trouble(request, error, made_by)

    def end_host(self, flight: InlineAttempt) -> None:
        """The process of a body ends, and nobody knows of it yet."""
        if isinstance(flight.body, HostedBody):
            flight.body.die()

    def bring_late(self, arrive: Callable[[], None]) -> None:
        """Bring a message from a body to its coordinator, or back: late, and perhaps twice."""
        world, rng = self.world, self.world.rng

        def act() -> None:
            if self.life.exists:
                arrive()

        for _ in range(2 if world.faults.hit(world.faults.report_twice) else 1):
            world.clock.after(rng.choice([0.01, MESSAGE_SECONDS]) * rng.random(), act)

    def land_body(self, flight: InlineAttempt, report: AnyReport) -> None:
        """The end of a body. All of its progress comes first, unless it raised."""
        if isinstance(report, msg.BodyEnd) and flight.news.next < report.told:
            self.held[flight] = report
            self.world.clock.after(LATE_SECONDS, lambda: self.give_up(flight))
        else:
            self.land(flight, report, {})

    def told(self, flight: InlineAttempt, number: int, progress: msg.BodyProgress) -> bool:
        wanted = super().told(flight, number, progress)
        held = self.held.get(flight)
        if held is not None and flight.news.next >= held.told:
            del self.held[flight]
            self.land(flight, held, {})
        return wanted

    def give_up(self, flight: InlineAttempt) -> None:
        """The progress of a body is lost: it runs again."""
        if self.held.pop(flight, None) is not None and self.life.exists:
            error = LostInput("its progress did not arrive")
            self.land(flight, self.trouble(flight.request, error, ""), {})

    def close(self) -> None:
        """All its processes end with the coordinator."""
        for hosted in list(self.bodies):
            hosted.leave()

    def see(self, request: AttemptRequest, outcome: Outcome, live: Mapping[str, Any]) -> str:
        value = outcome.value
        if value is None:
            return scripts.seen_as(outcome, None)
        if isinstance(value.data, bytes):
            return scripts.seen_as(outcome, value.data)
        if value.data.key in live:
            return scripts.seen_as(outcome, live[value.data.key])
        if not value.data.stored:
            raise LostInput
        return scripts.seen_as(
            outcome, bytes(self.life.storage.read_blob(request.incarnation, value.data))
        )
