"""Drives the engine with durable functions, whose code runs as on a cluster, but without one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ray_workflows._capture.plans import joined, with_output_name
from ray_workflows._engine.state import Phase, Task
from ray_workflows._executor.worker.bodies.body import Body, current_body
from ray_workflows._executor.worker.bodies.running import AsyncBody
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import StartAttempt
from ray_workflows._model.outbox import OutboxMessage, message_id_of
from ray_workflows._model.plan import BODY, Plan
from ray_workflows._model.steps import EndedStep, History, Step, StepKind, StepRecord
from ray_workflows._model.values import ErrorInfo, Outcome, Value
from tests.unit.driver import Driver
from tests.unit.plans import plan

#: The code of durable functions, by the name of their tasks.
Codes = dict[str, Callable[[], Coroutine[Any, Any, bytes]]]

#: Options of a task that is the body of a durable function.
DURABLE = {"kind": BODY}


class StepError(Exception):
    """The error of a step."""


class Anew(BaseException):
    """Ends the code, so that it is begun anew."""


def step(name: str, asked: Plan | None = None, **options: Any) -> Any:
    """A step that is a task, or a plan."""
    body = current_body.get()
    made = asked or plan((name, (), options))
    return body.outcome_of(body.ask(name, "", StepKind.PLAN, lambda: made))


def local(name: str, result: bytes = b"local") -> Any:
    """A step that runs in the process of the body."""
    body = current_body.get()
    return body.outcome_of(body.ask(name, "", StepKind.LOCAL, lambda: result))


def mark(name: str, value: bytes) -> bytes:
    """A value that the body makes once."""
    return current_body.get().mark(name, lambda: value)


def start(child: str) -> str:
    """A workflow that the body starts."""
    started: Any = current_body.get().started(lambda path: child)
    return started.decode() if isinstance(started, bytes) else started


def value_of(outcome: Outcome) -> bytes:
    if outcome.error is not None:
        raise StepError(outcome.error.message)
    assert outcome.value is not None
    assert isinstance(outcome.value.data, bytes)
    return outcome.value.data


class BodyDriver(Driver):
    """``codes``: the durable functions. Bodies run as far as they can after each message."""

    def __init__(self, plan: Plan, codes: Codes, **options: Any) -> None:
        self.codes = codes
        super().__init__(plan, **options)
        self.run_bodies()

    def act(self, action: Callable[..., Any], *args: Any, **fields: Any) -> None:
        """Do something of `Driver`, and let bodies run."""
        action(*args, **fields)
        self.run_bodies()

    def finish(self, *task_ids: str) -> BodyDriver:
        for task_id in task_ids:
            self.act(self.succeed, task_id, task_id.encode())
        return self

    def run_bodies(self) -> None:
        while bodies := [
            task
            for task in self.state.tasks.values()
            if task.options.kind == BODY
            and task.phase is Phase.ACTIVE
            and task.number in self.flying
            and self.state.running
        ]:
            self.run_body(bodies[0])

    def run_body(self, task: Task) -> None:
        """Run one attempt, until it only waits."""
        number, start = task.number, self.flying[task.number]
        kept = self.state.bodies.get(number)
        history = History() if kept is None else kept.history
        body = Body(history, task.task_id, decode=value_of, clock=lambda: self.now)
        name = task.task_id.rpartition("/")[2].partition("#")[0].partition("_")[0]
        code = AsyncBody(body, self.codes[name])
        code.advance(history.outcomes)
        while True:
            ended = self.tell(task, body, start)
            if code.ended:
                self.end(task, code, body)
                return
            if not ended:
                break
            code.advance(self.state.bodies[number].outcomes[body.turn :])
        code.leave()
        self.report(msg.AttemptSuspended, task.task_id, taken=body.turn, told=0)

    def tell(self, task: Task, body: Body, start: StartAttempt) -> tuple[EndedStep, ...]:
        news = body.take_news()
        named = [with_output_name(p, f"{task.task_id}/{step.path}") for step, p in news.opened]
        asked, sizes = joined(named)
        marks = [(each, v.encode() if isinstance(v, str) else v) for each, v in news.marks]
        ended = tuple(
            EndedStep(step, Outcome(Value(work())), self.now, self.now, self.sent_by(step, start))
            for step, work in body.take_work()
        )
        if news.is_empty and not ended:
            return ()
        self.send(
            msg.BodyProgress(
                task=start.task,
                epoch=start.epoch,
                attempt=start.attempt,
                started_at=self.now,
                began=body.now(),
                opened=tuple(step for step, _ in news.opened),
                plan=asked,
                sizes=sizes,
                marks=tuple(self.mark(step, value) for step, value in marks),
                canceled=tuple(news.canceled),
                ended=ended,
                messages=tuple(
                    OutboxMessage(
                        message_id_of(self.state.incarnation, start.task, each.path),
                        child.decode(),
                        Value(b"submission"),
                    )
                    for each, child in marks
                    if each.kind is StepKind.START
                ),
            )
        )
        return ended

    def sent_by(self, step: Step, start: StartAttempt) -> tuple[OutboxMessage, ...]:
        """A local step named "sends" starts a workflow."""
        if step.name != "sends":
            return ()
        sent_as = message_id_of(self.state.incarnation, start.task, f"{step.path}-0")
        return (OutboxMessage(sent_as, "of-a-step", Value(b"submission")),)

    def mark(self, step: Step, value: bytes) -> StepRecord:
        return StepRecord(step, mark=Outcome(Value(value)))

    def end(self, task: Task, code: AsyncBody, body: Body) -> None:
        error = code.error
        if isinstance(error, Anew):
            self.go_on(task.task_id, plan(("", (), DURABLE)))
            return
        if error is None:
            self.succeed(task.task_id, code.result)
            return
        self.report(
            msg.AttemptRaised,
            task.task_id,
            error=ErrorInfo(type(error).__name__, str(error)),
            retryable=task.options.retry_exceptions,
            step=body.failed_step(error),
        )
