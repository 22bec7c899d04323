"""One attempt of a body: its code, its steps, and its report."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import random
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any, NamedTuple, TypeVar

import msgspec
import ray
from ray.dag import DAGNode

from ray_workflows._capture.dag import check_arguments
from ray_workflows._capture.digests import digest_of
from ray_workflows._capture.pickling import ATOMS, copied, pickle_value
from ray_workflows._capture.plans import joined, same_task_plan, timer_plan, with_output_name
from ray_workflows._capture.steps import StepCapture, own_name
from ray_workflows._capture.values import ValueWriter
from ray_workflows._executor.protocol import AnyReport
from ray_workflows._executor.worker import context
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._executor.worker.bodies.body import Asked, Body, UnreadableOutcome
from ray_workflows._executor.worker.bodies.running import AsyncBody, PlainBody, RunningBody
from ray_workflows._executor.worker.bodies.scopes import current_scope
from ray_workflows._model import messages as msg
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import Plan
from ray_workflows._model.steps import EndedStep, Step, StepKind, StepOutcome, StepRecord, step_id
from ray_workflows._model.values import Outcome, Value
from ray_workflows._ray import private
from ray_workflows.exceptions import (
    PayloadCodecError,
    StorageCorruptError,
    StorageUnavailableError,
)

T = TypeVar("T")

#: Errors that say nothing about a step: the whole attempt has them.
NO_OUTCOMES = (StorageUnavailableError, StorageCorruptError, PayloadCodecError)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a durable function is a coroutine function."""
    return inspect.iscoroutinefunction(inspect.unwrap(function))


def callable_of(target: Any) -> Callable[..., Any]:
    """What a local step calls: a plain function, or a method of an actor, for whose answer it
    waits."""
    if not isinstance(target, ray.actor.ActorMethod):
        return target  # type: ignore[no-any-return]

    def call(*args: Any, **kwargs: Any) -> Any:
        return ray.get(target.remote(*args, **kwargs))

    call.__qualname__ = private.method_name(target)
    return call


def is_bound_later(target: Any) -> bool:
    """Whether it is a remote function, or one with options."""
    return not isinstance(target, (type, ray.actor.ActorMethod)) and hasattr(target, "bind")


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, or the error that it raises, without the frames of asyncio."""

    async def guarded() -> tuple[Any, BaseException | None]:
        try:
            return await coroutine, None
        except BaseException as error:
            return None, error

    result, error = asyncio.run(guarded())
    if error is not None:
        raise error
    return result


def alone(error: BaseException | None) -> BaseException | None:
    """An error out of groups that have no other: a TaskGroup makes one for the error of its
    block."""
    members = getattr(error, "exceptions", None)
    while isinstance(members, tuple) and len(members) == 1:
        error = members[0]
        members = getattr(error, "exceptions", None)
    return error


class LocalWork(NamedTuple):
    """A plain function and its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class ContinueAsNew(BaseException):
    """Ends the code of a body, which is begun anew as ``plan``."""

    def __init__(self, plan: Plan) -> None:
        super().__init__("The durable function is begun anew.")
        self.plan = plan


class BodyAttempt:
    """One attempt of a body in this process. One thread at a time uses it, but for
    `run_local_step`.

    Args:
        run: the attempt, as any other.
    """

    def __init__(self, run: AttemptRun) -> None:
        self.run = run
        self.code: RunningBody | None = None
        self.scope = context.running(run.request, run.sequence)
        self.steps = StepCapture(ValueWriter(run.storage, run.request.incarnation), self.capture)
        #: Sources of random numbers, by the scopes of asyncio tasks.
        self.randoms: dict[str, random.Random] = {}
        #: Makes the keys of blobs unique.
        self.numbers = itertools.count()
        #: Messages to other workflows that the coordinator does not know yet.
        self.outgoing: list[OutboxMessage] = []

    def patiently(self, work: Callable[[], T]) -> T:
        """Run work of this package, as `AttemptRun.patiently`. It is not the body's own code, which
        is guarded (`guards`)."""
        token = current_attempt.set(None)
        try:
            return self.run.patiently(work)
        finally:
            current_attempt.reset(token)

    # -- the code --------------------------------------------------------------------------

    def start(self) -> None:
        """Load the code and its arguments. None of it runs yet."""
        self.function, args, kwargs = self.run.loaded()
        function = self.function
        history = self.run.request.history
        assert history is not None
        self.body = Body(
            history,
            self.run.request.where,
            bool(getattr(function, "strict", False)),
            decode=self.decode,
            timer=self.timer,
            clock=self.run.process.time,
        )
        self.began = self.body.now()
        around = copy_context()
        around.run(context.attempt.set, self.scope)
        around.run(current_attempt.set, self)
        kind: type[RunningBody] = AsyncBody if is_async(function) else PlainBody
        code = functools.partial(function, *args, **kwargs)
        self.code = around.run(kind, self.body, code)

    def advance(self, outcomes: list[StepOutcome]) -> None:
        """Give the code outcomes, one by one, until it only waits or has ended."""
        assert self.code is not None
        self.code.advance(outcomes)

    def leave(self) -> None:
        """End the code where it is."""
        if self.code is not None:
            self.code.leave()

    @property
    def ended(self) -> bool:
        """Whether the code has ended."""
        return self.code is not None and self.code.ended

    @property
    def is_waiting(self) -> bool:
        """Whether the code waits for steps that others run, and for nothing else."""
        return self.code is not None and self.code.idle

    @property
    def waits_for_one(self) -> bool:
        """Whether the code waits for one step alone."""
        return len(self.body.open) == 1

    @property
    def is_stuck(self) -> bool:
        """Whether the code waits for nothing that could come."""
        return self.code is not None and self.code.stuck

    @property
    def taken(self) -> int:
        """How many outcomes the code has taken."""
        return self.body.turn

    def report(self, told: int) -> AnyReport:
        """The report of the end of the code. ``told``: how often progress was reported."""
        run, code = self.run, self.code
        assert code is not None
        run.metadata = self.scope.metadata
        anew = alone(code.error)
        if isinstance(anew, ContinueAsNew):
            report = run.returned_plan(anew.plan, run.process.time())
            return msgspec.structs.replace(report, told=told)
        if code.error is None:
            try:
                return msgspec.structs.replace(run.returned(code.result), told=told)
            except BaseException as error:
                return run.raised(error)
        report = run.raised(code.error)
        if isinstance(report, msg.AttemptRaised):
            report = msgspec.structs.replace(report, step=self.body.failed_step(code.error))
        return report

    def stuck(self) -> AnyReport:
        """The report of code that waits for ever."""
        return self.run.raised(
            RuntimeError(
                f"{self.run.request.where} waits, and not for a step: nothing can wake it. It may "
                f"only await steps, and what its own asyncio tasks set: workflow.step(f, ...), not "
                f"f.remote(...)."
            )
        )

    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ContinueAsNew:
        """What ends the code, so that it is begun anew with these arguments."""
        self.body.check()
        run = self.run
        if current_scope.get().path:
            raise RuntimeError(
                f"{run.request.where}: only the main coroutine can call continue_as_new(). Let it "
                f"await this asyncio task, and call it then."
            )
        task = f"task '{run.request.task_id}', begun anew"
        check_arguments(self.function, args, kwargs, task=run.request.task_id)
        prefix = f"{run.blob_prefix}-anew{next(self.numbers)}"
        plan = self.patiently(
            lambda: same_task_plan(
                run.request.function,
                run.request.options,
                args,
                kwargs,
                writer=ValueWriter(run.storage, run.request.incarnation),
                prefix=prefix,
                task=task,
            )
        )
        return ContinueAsNew(plan)

    def random(self) -> random.Random:
        """Random numbers for the asyncio task that calls."""
        scope = current_scope.get().path
        found = self.randoms.get(scope)
        if found is None:
            request = self.run.request
            of = f"{request.workflow_id} {request.task_id} {scope}"
            seed = self.body.mark("random", lambda: self.run.process.seed(of))
            found = self.randoms[scope] = random.Random(seed)
        return found

    def started(self, make: Callable[[str], context.Outgoing]) -> str:
        """The id of a workflow that the code starts. It begins when the call is durable, once.

        Args:
            make: makes the message for it, given the path of the call; not called if an earlier
                attempt has sent the message.
        """

        made: list[OutboxMessage] = []

        def send(path: str) -> str:
            outgoing = self.patiently(lambda: make(path))
            made.extend(self.run.write_messages([outgoing], f"start{next(self.numbers)}"))
            return outgoing.target

        child = self.body.started(send)
        self.outgoing += made
        return child

    # -- steps -----------------------------------------------------------------------------

    def step(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        line: str,
    ) -> Asked:
        """Ask for a step."""
        if isinstance(target, DAGNode):
            if args or kwargs or options:
                raise TypeError(
                    "step() takes no arguments and options for a DAG node: it has its own. Give "
                    "them to bind() and options()."
                )
            call = self.steps.of_node(target)
        elif is_bound_later(target):
            bound = target.options(**options) if options else target
            call = self.steps.call(bound, args, kwargs, once=bool(options))
        else:
            return self.local_step(target, args, kwargs, options, line)
        name, digest = call.target.name, call.digest
        return self.body.ask(name, digest, StepKind.PLAN, lambda: self.steps.plan(call), line)

    def local_step(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        line: str,
    ) -> Asked:
        """Ask for a step that runs in this process."""
        if options:
            raise TypeError("Options are for remote functions: a plain function has none.")
        is_method = isinstance(target, ray.actor.ActorMethod)
        if not is_method and (isinstance(target, type) or not callable(target)):
            raise TypeError(
                f"step() takes a remote function, a DAG node, a durable function or a plain "
                f"function, not {target!r:.100}."
            )
        function = callable_of(target)
        if not ATOMS.issuperset(map(type, (*args, *kwargs.values()))):
            # What the step changes in place would be lost when the code runs again.
            args, kwargs = copied((args, kwargs))
        work = LocalWork(function, args, kwargs)
        digest = digest_of(args, kwargs)
        return self.body.ask(own_name(function), digest, StepKind.LOCAL, lambda: work, line)

    def capture(self, node: DAGNode) -> Plan:
        """The plan of a step. Its large parts are stored."""
        prefix = f"{self.run.blob_prefix}-step{next(self.numbers)}"
        return self.patiently(lambda: self.run.capture(node, prefix))

    def timer(self, delay: float) -> Plan:
        """The plan of a timer."""
        return timer_plan("timer", delay)

    def decode(self, outcome: Outcome) -> Any:
        """The value of a step; raises its error."""
        reader, where = self.run.reader, f"step of {self.run.request.where}"
        raised = None if outcome.wrapped else outcome.error
        try:
            if raised is None:
                return self.patiently(lambda: reader.read_outcome(outcome, where=where))
            error = self.patiently(lambda: reader.read_error(raised, where=where))
        except Exception as trouble:
            # Of the storage, or of its contents: the code must not see it.
            raise UnreadableOutcome(trouble) from trouble
        raise error

    # -- what it tells ---------------------------------------------------------------------

    def progress(self) -> msg.BodyProgress | None:
        """What the coordinator does not know yet; None if it knows everything. Not during a turn:
        what is asked for in a turn is recorded together."""
        news = self.body.take_news()
        if news.is_empty:
            return None
        outgoing, self.outgoing = self.outgoing, []
        task_id = self.run.request.task_id
        plan, sizes = joined(
            [with_output_name(plan, step_id(task_id, step.path)) for step, plan in news.opened]
        )
        return self.told(
            opened=tuple(step for step, _ in news.opened),
            plan=plan,
            sizes=sizes,
            marks=tuple(self.mark(step, value) for step, value in news.marks),
            canceled=tuple(news.canceled),
            messages=tuple(outgoing),
        )

    def progress_of(self, ended: EndedStep) -> msg.BodyProgress:
        """That a local step has ended."""
        return self.told(ended=(ended,))

    def told(self, **parts: Any) -> msg.BodyProgress:
        """Progress of this attempt."""
        run, request = self.run, self.run.request
        return msg.BodyProgress(
            task=request.task,
            epoch=request.epoch,
            attempt=request.attempt,
            started_at=run.started_at,
            began=self.began,
            node=run.process.node_id,
            **parts,
        )

    def mark(self, step: Step, value: Any) -> StepRecord:
        """The record of a value that the code has made. Such values are small."""
        pickled = pickle_value(value, where=step.path)
        stored = ValueWriter(self.run.storage, self.run.request.incarnation).write_plain(pickled)
        assert stored is not None, step.path
        return StepRecord(step, mark=Outcome(stored))

    def take_work(self) -> list[tuple[Step, LocalWork]]:
        """The local steps to start."""
        return [(step, make()) for step, make in self.body.take_work()]

    def run_local_step(self, step: Step, work: LocalWork) -> EndedStep:
        """Run a local step to its end, and store its outcome.

        Raises:
            StorageError: its outcome can't be stored now, or it met an error of a storage: that is
                no outcome, as it is none of a task.
        """
        run = self.run
        began = run.process.time()
        where = f"step '{step.path}' of {run.request.where}"
        key = f"{run.blob_prefix}-step{next(self.numbers)}"
        writer = ValueWriter(run.storage, run.request.incarnation)
        try:
            with context.running(run.request, run.sequence, step.path) as scope:
                result = work.function(*work.args, **work.kwargs)
                if inspect.iscoroutine(result):
                    result = awaited(result)
            value: Value = run.patiently(lambda: writer.write(result, key=key, where=where))
            outcome = Outcome(value)
            messages = run.write_messages(scope.outgoing, f"step{next(self.numbers)}")
        except BaseException as error:
            if isinstance(error, NO_OUTCOMES):
                raise
            if isinstance(error, SystemExit):
                # As of a task: it must not end the body.
                info = run.describe_exit(error)
            else:
                info = run.write_error(error, writer, where, f"{key}-error")
            outcome, messages = Outcome(error=info), ()
        return EndedStep(step, outcome, began, run.process.time(), messages)


#: The attempt of the body whose code runs.
current_attempt: ContextVar[BodyAttempt | None] = ContextVar(
    "ray_workflows_body_attempt", default=None
)
