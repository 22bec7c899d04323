"""What a body asks for, held against what it asked for in earlier attempts.

The body takes outcomes one at a time; after each it runs until it only waits: a turn. It must ask
for the same steps in the same turns each time that it runs. This module runs no code of users, and
knows nothing of event loops and threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from ray_workflows._executor.worker.bodies.scopes import current_scope
from ray_workflows._model.steps import (
    CanceledStep,
    History,
    Step,
    StepKind,
    StepOutcome,
    StepRecord,
)
from ray_workflows._model.values import Outcome
from ray_workflows.exceptions import NondeterminismError

logger = logging.getLogger(__name__)

PLAN, LOCAL, MARK, START = StepKind.PLAN, StepKind.LOCAL, StepKind.MARK, StepKind.START

#: The name of steps that wait for a time: of asyncio.sleep, of timeouts.
TIMER = "timer"

#: How many errors are looked at to find the step that an error came from.
MAX_ERRORS = 10_000


class BodyLeft(BaseException):
    """Raised in the code of a body that the host has left: it must not go on here."""


class UnreadableOutcome(BaseException):
    """Raised by `decode` if an outcome can't be read now; it says nothing about the step.

    The outcome is not taken, and the error comes out of `advance`.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


class Asked:
    """A step that the body asked for. ``waker`` is called when its outcome was taken."""

    __slots__ = (
        "canceled",
        "error",
        "kind",
        "line",
        "name",
        "number",
        "path",
        "taken",
        "value",
        "waker",
    )

    def __init__(self, path: str, name: str, kind: StepKind, line: str, number: int) -> None:
        self.path = path
        self.name = name
        self.kind = kind
        #: Where the code asked, as ``file:line``.
        self.line = line
        #: How many steps and tasks the body had made before.
        self.number = number
        self.taken = False
        self.canceled = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.waker: Callable[[], object] | None = None

    def get(self) -> Any:
        """Its value; raises its error. Only after it was taken."""
        if self.error is not None:
            raise self.error
        return self.value


class News(NamedTuple):
    """What the coordinator does not know yet. Plans and values are what the caller gave."""

    opened: list[tuple[Step, Any]]
    canceled: list[CanceledStep]
    marks: list[tuple[Step, Any]]

    @property
    def is_empty(self) -> bool:
        return not (self.opened or self.canceled or self.marks)


def refuse_outcome(outcome: Outcome) -> Any:
    raise TypeError("This body was made without a function that decodes outcomes.")


class Body:
    """The steps of a body: those of its history, those it asks for, those it waits for.

    Args:
        history: what it did in earlier attempts.
        where: names the workflow and the task, for messages.
        strict: raise if arguments of a step differ from the recorded ones; otherwise log a warning.
        decode: gives the value of an outcome, or raises the error of the step. Raises
            `UnreadableOutcome` if it can do neither.
        timer: makes the plan of a timer from its delay in seconds.
        clock: the time at which the body begins, if the history has none.

    Raises:
        UnreadableOutcome: a mark can't be read now.
    """

    def __init__(
        self,
        history: History,
        where: str,
        strict: bool = False,
        *,
        decode: Callable[[Outcome], Any] = refuse_outcome,
        timer: Callable[[float], Any] = float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.where = where
        self.strict = strict
        self.decode = decode
        self.timer_plan = timer
        self.records = {record.step.path: record for record in history.steps}
        #: The last turn of which anything is recorded.
        self.last = max((record.step.turn for record in history.steps), default=-1)
        #: Recorded steps for which the body must have asked at the end of a turn, by turn. What
        #: was dropped for another try may be asked for in another turn.
        self.expected: dict[int, list[StepRecord]] = {}
        for record in history.steps:
            if record.step.kind is not MARK and not record.again:
                self.expected.setdefault(record.step.turn, []).append(record)
        #: Values of marks, by path. Read now, because no code of the body can deal with an
        #: `UnreadableOutcome`.
        self.marks: dict[str, Any] = {
            record.step.path: decode(record.mark)
            for record in history.steps
            if record.mark is not None
        }
        self.patches: dict[str, bool] = {}
        #: How many outcomes the body has taken.
        self.turn = 0
        self.time = history.began or clock()
        self.count = 0
        self.asked: set[str] = set()
        #: What it asked for in this turn.
        self.latest: list[Asked] = []
        #: Steps without an outcome, by path.
        self.open: dict[str, Asked] = {}
        #: How many of them the process of the body runs itself.
        self.local = 0
        self.news = News([], [], [])
        self.work: dict[str, tuple[Step, Callable[[], Any]]] = {}
        #: Errors of steps, by their identity: how early the step was asked for, and its path.
        self.errors: dict[int, tuple[int, str, BaseException]] = {}
        self.failure: NondeterminismError | None = None
        self.left = False
        #: The thread in which the code of the body runs; None: any.
        self.thread: int | None = None
        #: Whether the code is a coroutine.
        self.is_async = False
        #: What asks give to the code: a value, or something to await. Set by what runs the code.
        self.outcome_of: Callable[[Asked], Any] = Asked.get
        #: Stops the code as soon as possible. Set by what runs the code.
        self.halt: Callable[[], object] = lambda: None

    @property
    def replaying(self) -> bool:
        """Whether the code does what it did in an earlier attempt."""
        return self.turn <= self.last

    def now(self) -> float:
        """The time of the body, in seconds since 1970: that of the last outcome taken."""
        return self.time

    def next_number(self) -> int:
        self.count += 1
        return self.count

    # What the code asks for.

    def check(self) -> None:
        """Raise if the code must not go on, or is not the body's."""
        if self.left:
            raise BodyLeft
        if self.failure is not None:
            raise self.failure
        if self.thread is not None and threading.get_ident() != self.thread:
            raise RuntimeError(
                f"{self.where}: another thread asked for a step. Only the code of the durable "
                f"function itself can: threads may come in another order when it runs again."
            )

    def ask(
        self, name: str, digest: str, kind: StepKind, work: Callable[[], Any], line: str = ""
    ) -> Asked:
        """Ask for a step of the code that runs.

        Args:
            name: of the function.
            digest: of its arguments; empty if they can't be compared.
            kind: PLAN or LOCAL.
            work: of a PLAN step: makes its plan. Called here, and only if the step is not recorded.
                Of a LOCAL step: does its work. The host calls it.
            line: where the code asks, as ``file:line``.

        Raises:
            NondeterminismError: the code asked for something else in an earlier attempt.
            BodyLeft: the code must not go on.
        """
        self.check()
        path = current_scope.get().place(name)
        asked = Asked(path, name, kind, line, self.next_number())
        record = self.records.get(path)
        if record is not None:
            recorded = record.step
            if recorded.name != name:
                raise self.fail(self.of_history(recorded), self.of_code(asked))
            if digest != recorded.digest and digest and recorded.digest:
                self.differs(asked)
        if record is None or record.again:
            step = Step(path, name, digest, self.turn, kind)
            if kind is PLAN:
                # First: if it raises, there is no step, and nothing to be recorded.
                plan = work()
                if record is None and self.turn <= self.last:
                    missing = self.missing()
                    raise self.fail(
                        self.of_history(missing.step) if missing else "no such step",
                        self.of_code(asked),
                    )
                self.news.opened.append((step, plan))
            else:
                self.work[path] = step, work
        if kind is LOCAL:
            self.local += 1
        self.asked.add(path)
        self.latest.append(asked)
        self.open[path] = asked
        return asked

    def timer(self, delay: float, line: str = "") -> Asked:
        """Ask for a timer, in seconds from now."""
        return self.ask(TIMER, f"{delay!r}", PLAN, lambda: self.timer_plan(delay), line)

    def cancel(self, asked: Asked) -> None:
        """The code waits no longer for a step."""
        if asked.taken or asked.canceled or self.left:
            return
        asked.canceled = True
        if asked.kind is LOCAL:
            # The coordinator does not know it. If its work goes on, its outcome is ignored.
            if self.work.pop(asked.path, None):
                self.local -= 1
                del self.open[asked.path]
            return
        record = self.records.get(asked.path)
        if record is None or record.again or record.canceled is None:
            self.news.canceled.append(CanceledStep(asked.path, self.turn))

    def mark(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that is made once in the life of the body, for this name in this scope."""
        self.check()
        return self.marked(current_scope.get().within(name), name, make)

    def patched(self, name: str) -> bool:
        """Whether the code may do what it does since a change.

        It answers the same for the whole life of the body: otherwise a body that went on after the
        change would do one thing at first, and the other when it runs again.
        """
        self.check()
        answer = self.patches.get(name)
        if answer is None:
            path = f"patched:{name}"
            answer = path in self.records or not self.replaying
            if answer:
                self.marked(path, path, lambda: True)
            self.patches[name] = answer
        return answer

    def started(self, make: Callable[[str], str]) -> str:
        """The id of a workflow that the code starts; ``make`` does so, given the path of the call.

        Raises:
            NondeterminismError: an earlier attempt did something else.
        """
        self.check()
        path = current_scope.get().place("start")
        if path not in self.marks:
            # First, as the plan of a step: if it raises, nothing is started.
            child = make(path)
            if self.turn <= self.last:
                missing = self.missing()
                raise self.fail(
                    self.of_history(missing.step) if missing else "no such step",
                    f"the start of workflow {child!r}, after {self.turn} outcomes",
                )
            self.marked(path, "start", lambda: child, START)
        self.asked.add(path)
        started: str = self.marks[path]
        return started

    def marked(self, path: str, name: str, make: Callable[[], Any], kind: StepKind = MARK) -> Any:
        if path not in self.marks:
            self.marks[path] = value = make()
            self.news.marks.append((Step(path, name, "", self.turn, kind), value))
        return self.marks[path]

    # Turns.

    def take(self, outcome: StepOutcome) -> None:
        """Take an outcome, and begin the next turn with it.

        Raises:
            UnreadableOutcome: it was not taken.
        """
        path = outcome.path
        asked = self.open.get(path)
        if asked is None:
            record = self.records.get(path)
            if path in self.asked:
                raise ValueError(f"{self.where}: the outcome of step {path!r} came twice.")
            self.fail(
                f"an outcome of {self.of_history(record.step) if record else f'step {path!r}'}",
                "no such step until now",
            )
            return
        if not asked.canceled:
            try:
                asked.value = self.decode(outcome.outcome)
            except UnreadableOutcome:
                raise
            except BaseException as error:
                asked.error = error
                self.errors.setdefault(id(error), (asked.number, path, error))
        del self.open[path]
        if asked.kind is LOCAL:
            self.local -= 1
        self.turn += 1
        self.latest = []
        self.time = max(self.time, outcome.at)
        asked.taken = True
        if asked.waker is not None:
            asked.waker()

    def end_turn(self, ended: bool = False) -> None:
        """The code waits, or has ended: hold what it asked for against the history."""
        if self.turn > self.last or self.failure is not None or self.left:
            return
        missing = self.missing()
        if missing is None and ended and self.turn < self.last:
            later = (record for turn in self.expected for record in self.expected[turn])
            missing = next((each for each in later if each.step.path not in self.asked), None)
        if missing is not None:
            asked = "nothing more: it has ended" if ended else self.instead()
            self.fail(self.of_history(missing.step), asked)

    def missing(self) -> StepRecord | None:
        """The first recorded step of this turn for which the code has not asked yet."""
        for record in self.expected.get(self.turn, ()):
            if record.step.path not in self.asked:
                return record
        return None

    def instead(self) -> str:
        """The first step that the code asked for in this turn, and that is not recorded for it."""
        expected = {record.step.path for record in self.expected.get(self.turn, ())}
        found = (asked for asked in self.latest if asked.path not in expected)
        asked = next(found, None)
        return "no such step" if asked is None else self.of_code(asked)

    # What the host takes.

    def take_news(self) -> News:
        news, self.news = self.news, News([], [], [])
        return news

    def take_work(self) -> list[tuple[Step, Callable[[], Any]]]:
        work, self.work = list(self.work.values()), {}
        return work

    def failed_step(self, error: BaseException) -> str:
        """The path of the step whose error led to an error; the one that was asked for first.

        Empty if there is none.
        """
        found: list[tuple[int, str]] = []
        seen: set[int] = set()
        todo: list[Any] = [error]
        while todo and len(seen) < MAX_ERRORS:
            each = todo.pop()
            if not isinstance(each, BaseException) or id(each) in seen:
                continue
            seen.add(id(each))
            if id(each) in self.errors:
                found.append(self.errors[id(each)][:2])
            todo += each.__cause__, each.__context__
            members = getattr(each, "exceptions", ())
            if isinstance(members, (list, tuple)):
                todo += members
        return min(found)[1] if found else ""

    def warn_of_forgotten_steps(self) -> None:
        """The code has ended: log a warning of each step that it asked for and never awaited."""
        for asked in self.open.values():
            if asked.waker is None and not asked.canceled:
                logger.warning(
                    "%s ended without awaiting its step %r, asked for at %s. The step is stopped.",
                    *(self.where, asked.path, asked.line or "its call"),
                )

    # Differences.

    def fail(self, recorded: str, asked: str) -> NondeterminismError:
        """Remember that the code does not do what it did. Returns the error for the caller.

        What it asked for since is not told: nobody knows which of it was meant.
        """
        if self.failure is None:
            self.failure = NondeterminismError(self.where, recorded, asked)
            self.news, self.work = News([], [], []), {}
            self.halt()
        return self.failure

    def differs(self, asked: Asked) -> None:
        if self.strict:
            raise self.fail(
                f"step {asked.path!r} with other arguments", f"{self.of_code(asked)} with these"
            )
        logger.warning(
            "%s: step %r has other arguments at %s than in an earlier attempt. It keeps the "
            "outcome that is recorded for it.",
            self.where,
            asked.path,
            asked.line or "its call",
        )

    def of_history(self, step: Step) -> str:
        return f"step {step.path!r} of {step.name!r}, asked for after {step.turn} outcomes"

    def of_code(self, asked: Asked) -> str:
        where = f" at {asked.line}" if asked.line else ""
        return f"step {asked.path!r} of {asked.name!r}{where}, after {self.turn} outcomes"


#: The body whose code runs.
current_body: ContextVar[Body] = ContextVar("ray_workflows_body")
