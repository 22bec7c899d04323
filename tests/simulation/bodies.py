"""Bodies of durable functions in the simulation: the real `Body` and event loop run scripts.

A body lives in a process of its coordinator. Between the two, messages come late, twice and in
another order; and the process may die at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from ray_workflows._capture.plans import joined, with_output_name
from ray_workflows._executor.in_order import InOrder
from ray_workflows._executor.inline import InlineAttempt
from ray_workflows._executor.worker.bodies.body import Body, UnreadableOutcome
from ray_workflows._executor.worker.bodies.running import AsyncBody
from ray_workflows._model import messages as msg
from ray_workflows._model.plan import TIMER, Plan, TaskOptions
from ray_workflows._model.steps import EndedStep, Step, StepKind, StepOutcome, StepRecord
from ray_workflows._model.values import Blob, ErrorInfo, Outcome, Value
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError
from tests.simulation import body_scripts as ops
from tests.simulation import scripts
from tests.simulation.body_scripts import Block, mix
from tests.simulation.scripts import Script, build
from tests.simulation.violations import Violation

if TYPE_CHECKING:
    from tests.simulation.executor import SimulatedExecutor
    from tests.simulation.world_of_bodies import WorldOfBodies

#: What is given to a body that stays is there after this many seconds, if nothing is wrong.
GIVEN_SECONDS = 1.0


class StepError(Exception):
    """The error of a script, in the code of a body."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


class Code:
    """The code of a body: runs a script. Subclasses say how steps are asked for."""

    #: Errors of steps.
    errors: tuple[type[Exception], ...] = (StepError,)

    def do(self, plan: Plan) -> Awaitable[str]:
        """Ask for a step that is a plan; gives its value."""
        raise NotImplementedError

    def local(self, op: ops.Local, seen: str) -> Awaitable[str]:
        """Ask for a local step."""
        raise NotImplementedError

    def marked(self, op: ops.Marked, seen: str) -> Awaitable[str]:
        """Ask for a local step that is another one if a mark or the time is."""
        raise NotImplementedError

    def error(self, salt: str) -> Exception:
        """An error of the code itself."""
        raise NotImplementedError

    async def block(self, block: Block, seen: str) -> str:
        for op in block:
            seen = await self.part(op, seen)
        return seen

    async def part(self, op: ops.AnyOp, seen: str) -> str:
        if isinstance(op, ops.Do):
            return mix(seen, await self.do(scripts.with_arguments(op.plan, seen)))
        if isinstance(op, ops.Local):
            return await self.local(op, seen)
        if isinstance(op, ops.Marked):
            await self.marked(op, seen)
        elif isinstance(op, ops.Nap):
            await asyncio.sleep(op.seconds)
        elif isinstance(op, ops.Raise):
            raise self.error(op.salt)
        elif isinstance(op, ops.Together):
            branches = [self.block(each, mix(seen, str(n))) for n, each in enumerate(op.branches)]
            gather = all_or_none if op.stops else asyncio.gather
            return mix(seen, *await gather(*branches))
        elif isinstance(op, ops.Race):
            with suppress(*self.errors, asyncio.TimeoutError):
                await asyncio.wait_for(self.block(op.block, seen), op.seconds)
            return mix(seen, "raced")
        else:
            try:
                return await self.block(op.block, seen)
            except self.errors:
                return await self.block(op.after, mix(seen, "caught"))
        return seen


class InlineCode(Code):
    """As `Code`, on a `Body`.

    Args:
        body: keeps its steps.
        script: what it does.
        seen: its arguments.
        unique: a text that is another one each time.
    """

    def __init__(self, body: Body, script: Script, seen: str, unique: Callable[[], str]) -> None:
        self.body = body
        self.unique = unique
        self.script = script
        self.seen = seen

    def start(self) -> Coroutine[Any, Any, str]:
        """A coroutine of the code."""
        assert self.script.body is not None
        return self.block(self.script.body, self.seen)

    def do(self, plan: Plan) -> Awaitable[str]:
        return self.step(f"do-{plan.digest}", StepKind.PLAN, plan)

    def local(self, op: ops.Local, seen: str) -> Awaitable[str]:
        return self.step(f"local-{op.salt}", StepKind.LOCAL, (op, seen))

    def marked(self, op: ops.Marked, seen: str) -> Awaitable[str]:
        mark = self.body.mark(op.salt, self.unique)
        name = f"{mark}, now {self.body.now()}"
        return self.step(name, StepKind.LOCAL, (ops.Local(op.salt), seen))

    def error(self, salt: str) -> Exception:
        return StepError(ErrorInfo(scripts.SCRIPT_ERROR, salt))

    def step(self, name: str, kind: StepKind, work: Any) -> Awaitable[str]:
        """Ask for a step at once; gives something to await."""
        asked = self.body.ask(name, f"digest {name}", kind, lambda: work)
        awaited: Awaitable[str] = self.body.outcome_of(asked)
        return awaited


async def all_or_none(*coroutines: Coroutine[Any, Any, str]) -> list[str]:
    """As asyncio.gather; the first error cancels the others, as in a TaskGroup."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return [task.result() for task in tasks]


def timer(seconds: float) -> Plan:
    """The plan of a timer."""
    return build([(Script("timer"), TaskOptions(kind=TIMER, duration=seconds), ())])


class HostedBody:
    """An attempt of a body in its process: it runs, tells, is given outcomes, and waits."""

    def __init__(self, executor: SimulatedExecutor, flight: InlineAttempt, seen: str) -> None:
        self.executor = executor
        self.life = executor.life
        self.world: WorldOfBodies = executor.world  # type: ignore[assignment]
        self.flight = flight
        self.request = flight.request
        self.made_by = executor.maker(self.request)
        history = self.request.history
        assert history is not None
        self.outcomes: InOrder[StepOutcome] = InOrder(len(history.outcomes))
        #: Outcomes that the code has not taken, and all that it was given.
        self.ready = list(history.outcomes)
        self.given: list[StepOutcome] = []
        self.script = scripts.decode(self.request.function)
        self.body = Body(
            history,
            self.request.where,
            strict=True,
            decode=self.decode,
            timer=timer,
            clock=self.life.clock,
        )
        self.began = self.body.now()
        code = InlineCode(
            self.body, self.script, seen, lambda: f"{self.made_by} {self.world.number()}"
        )
        self.code = AsyncBody(self.body, code.start)
        #: How often it has told something, and how many local steps run.
        self.told = 0
        self.local = 0
        #: Counts what happens to it, to know whether anything has.
        self.changes = 0
        self.scheduled = False
        #: It has ended, or its process has; whether that died.
        self.gone = False
        self.died = False

    # -- what others do to it --------------------------------------------------------------

    def give(self, number: int, outcome: StepOutcome) -> None:
        """The coordinator sends an outcome: late, and perhaps twice."""
        self.executor.bring_late(lambda: self.take(number, outcome))

    def take(self, number: int, outcome: StepOutcome) -> None:
        self.ready += self.outcomes.add(number, outcome)
        self.wake()

    def leave(self) -> None:
        """The process ends it, or itself."""
        if not self.gone:
            self.gone = True
            self.executor.bodies.pop(self, None)
            self.code.leave()

    def die(self) -> None:
        """Its process dies, and some of its messages with it."""
        self.died = True
        self.leave()

    # -- what it does ----------------------------------------------------------------------

    def wake(self) -> None:
        """Go on soon."""
        self.changes += 1
        if not self.scheduled and not self.gone:
            self.scheduled = True
            self.world.clock.after(self.world.rng.uniform(0.001, 0.03), self.go_on)

    def go_on(self) -> None:
        """Run the code until it waits."""
        self.scheduled = False
        if self.gone or not self.life.exists:
            return
        outcomes, self.ready = self.ready, []
        self.given += outcomes
        self.judge()
        try:
            self.code.advance(outcomes)
        except UnreadableOutcome as trouble:
            self.end(self.executor.trouble(self.request, trouble.error, self.made_by))
            return
        if self.body.failure is not None:
            raise Violation("replay of bodies", f"{self.request.where}: {self.body.failure}")
        self.tell()
        for step, make in self.body.take_work():
            self.start_local(step, *make())
        if self.code.ended:
            self.end_with_result()
            return
        if self.code.stuck and not self.ready:
            raise Violation("replay of bodies", f"{self.request.where} waits for nothing")
        self.wait()

    def judge(self) -> None:
        """What it is given is what the journal has, in that order."""
        current = self.world.monitor.body_of(self.request)
        if current is None:
            return
        if self.given != current.outcomes[: len(self.given)]:
            given = [each.path for each in self.given]
            recorded = [each.path for each in current.outcomes]
            raise Violation("given", f"{self.made_by} got {given}, recorded are {recorded}")

    def wait(self) -> None:
        """Give the place back, if nothing happens for a while."""
        if self.local or self.ready:
            return
        changes, seconds = self.changes, self.world.rng.choice([0.05, 0.5, 1.8])

        def look() -> None:
            if self.gone or not self.life.exists or changes != self.changes:
                return
            self.judge_missing()
            identity = self.executor.identity(self.request)
            self.end(msg.AttemptSuspended(**identity, taken=self.body.turn, told=0))

        self.world.clock.after(seconds, look)

    def judge_missing(self) -> None:
        """Where nothing is wrong, a body that stays is given all that is recorded."""
        current = self.world.monitor.body_of(self.request)
        if current is None or not self.world.undisturbed:
            return
        missing = current.outcomes[len(self.given) :]
        if missing and missing[0].at < self.world.clock.now - GIVEN_SECONDS:
            raise Violation("given", f"{self.made_by} was not given {missing[0].path}")

    def end_with_result(self) -> None:
        request, code = self.request, self.code
        identity = self.executor.identity(request)
        if isinstance(code.error, StepError):
            info = code.error.info
            raised = msg.AttemptRaised(
                **identity,
                error=ErrorInfo(info.type_name, info.message, self.made_by),
                retryable=request.options.retry_exceptions,
                step=self.body.failed_step(code.error),
            )
            self.end(raised)
        elif code.error is not None:
            raise Violation("replay of bodies", f"{request.where}: {code.error!r}")
        else:
            self.end(self.executor.body_result(request, self.script, code.result, self.made_by))

    def end(self, report: Any) -> None:
        """It has ended; that is known at some time."""
        self.leave()
        if isinstance(report, msg.BodyEnd):
            report = msgspec.structs.replace(report, told=self.told)
        faults, rng = self.world.faults, self.world.rng
        delay = rng.uniform(0.0, 0.05)
        if faults.hit(faults.report_late):
            delay += rng.uniform(0.5, 10.0)

        def land() -> None:
            if self.life.exists:
                self.executor.land_body(self.flight, report)

        self.world.clock.after(delay, land)

    # -- steps -----------------------------------------------------------------------------

    def decode(self, outcome: Outcome) -> str:
        """The value of a step; raises its error."""
        if outcome.error is not None and not outcome.wrapped:
            raise StepError(outcome.error)
        try:
            value = outcome.value
            data: bytes | None = None
            if value is not None:
                data = value.data if isinstance(value.data, bytes) else self.read(value.data)
        except (StorageUnavailableError, StorageCorruptError) as trouble:
            raise UnreadableOutcome(trouble) from trouble
        return scripts.seen_as(outcome, data)

    def read(self, blob: Blob) -> bytes:
        return bytes(self.life.storage.read_blob(self.request.incarnation, blob))

    def stored(self, data: bytes) -> Blob:
        """A value in a blob."""
        key = f"{self.made_by}.{self.world.number()}"
        return self.life.storage.write_blob(self.request.incarnation, key, [data])

    def tell(self, ended: EndedStep | None = None) -> None:
        """Tell the coordinator what it does not know."""
        news = self.body.take_news()
        if news.is_empty and ended is None:
            return
        request = self.request
        plans = [
            with_output_name(plan, f"{request.task_id}/{step.path}") for step, plan in news.opened
        ]
        plan, sizes = joined(plans)
        progress = msg.BodyProgress(
            request.task,
            request.epoch,
            request.attempt,
            self.life.clock(),
            began=self.began,
            opened=tuple(step for step, _ in news.opened),
            plan=plan,
            sizes=sizes,
            marks=tuple(
                StepRecord(step, mark=Outcome(Value(scripts.pack(value, self.made_by))))
                for step, value in news.marks
            ),
            canceled=tuple(news.canceled),
            ended=() if ended is None else (ended,),
        )
        number, self.told = self.told, self.told + 1

        def arrive() -> None:
            if not (self.died and self.world.rng.random() < 0.5):
                self.executor.told(self.flight, number, progress)

        self.executor.bring_late(arrive)

    def start_local(self, step: Step, op: ops.Local, seen: str) -> None:
        """Run a local step; it ends at some time."""
        self.local += 1
        began, rng = self.life.clock(), self.world.rng
        self.world.monitor.local_begins(self.request, step.path)

        def end() -> None:
            if self.gone or not self.life.exists:
                return
            if op.fails:
                outcome = Outcome(error=ErrorInfo(scripts.SCRIPT_ERROR, op.salt, self.made_by))
            else:
                data = scripts.pack(ops.local_result(op, seen), self.made_by)
                try:
                    outcome = Outcome(Value(self.stored(data) if op.large else data))
                except StorageUnavailableError as trouble:
                    self.end(self.executor.trouble(self.request, trouble, self.made_by))
                    return
            self.local -= 1
            self.changes += 1
            self.tell(EndedStep(step, outcome, began, self.life.clock()))
            self.wait()

        self.world.clock.after(rng.choice([0.01, 0.3, 3.0]) * rng.random(), end)
