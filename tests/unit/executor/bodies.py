"""A coordinator for bodies of durable functions: keeps their history, and answers their steps."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import pytest

from ray_workflows._capture.digests import digest_of
from ray_workflows._executor.worker.bodies.body import Body, News, current_body
from ray_workflows._executor.worker.bodies.running import AsyncBody, PlainBody, RunningBody
from ray_workflows._model.steps import History, Step, StepKind, StepOutcome, StepRecord
from ray_workflows._model.values import ErrorInfo, Outcome, Value

#: When the first body begins.
BEGAN = 1000.0


class StepError(Exception):
    pass


# What the code of bodies calls.


def step(name: str, *args: Any) -> Any:
    body = current_body.get()
    asked = body.ask(name, digest_of(args, {}), StepKind.PLAN, lambda: (name, args), "code.py:1")
    return body.outcome_of(asked)


def local(function: Callable[..., Any], *args: Any) -> Any:
    body = current_body.get()
    name = function.__name__
    return body.outcome_of(body.ask(name, "", StepKind.LOCAL, lambda: function(*args)))


def timer(delay: float) -> Any:
    """For plain bodies; others use asyncio.sleep."""
    body = current_body.get()
    return body.outcome_of(body.timer(delay))


# What the coordinator and the host do.


def value(result: Any) -> Outcome:
    return Outcome(value=Value(json.dumps(result).encode()))


def failure(message: str = "boom") -> Outcome:
    return Outcome(error=ErrorInfo("StepError", message))


def decode(outcome: Outcome) -> Any:
    if outcome.error is not None:
        raise StepError(outcome.error.message)
    assert outcome.value is not None
    assert isinstance(outcome.value.data, bytes)
    return json.loads(outcome.value.data)


def make(
    code: Callable[[], Any],
    history: History = History(),
    *,
    strict: bool = False,
    plain: bool | None = None,
) -> RunningBody:
    body = Body(
        history,
        "Task 'main' of workflow 'w'",
        strict,
        decode=decode,
        timer=lambda delay: ("timer", delay),
        clock=lambda: BEGAN,
    )
    if plain is None:
        plain = not asyncio.iscoroutinefunction(code)
    running = (PlainBody if plain else AsyncBody)(body, code)
    made.append(running)
    return running


made: list[RunningBody] = []


@pytest.fixture(autouse=True)
def leave_bodies() -> Iterator[None]:
    """Leaves the bodies that a test has made."""
    yield
    while made:
        made.pop().leave()


class Coordinator:
    """Runs a body, records its steps and answers them."""

    def __init__(
        self, code: Callable[[], Any], history: History = History(), **options: Any
    ) -> None:
        self.code = code
        self.steps = {record.step.path: record for record in history.steps}
        self.outcomes = list(history.outcomes)
        #: Plans of steps that are open, and the functions of local ones, by path.
        self.plans: dict[str, Any] = {}
        self.works: dict[str, tuple[Step, Callable[[], Any]]] = {}
        #: All that was asked for, by kind, in order.
        self.log: list[str] = []
        self.running = make(code, history, **options)

    @property
    def history(self) -> History:
        return History(tuple(self.steps.values()), tuple(self.outcomes), BEGAN)

    @property
    def open(self) -> list[str]:
        """What the code waits for and the coordinator may answer."""
        answered = {outcome.path for outcome in self.outcomes} | self.canceled
        paths = [
            path for path, record in self.steps.items() if not record.again and record.mark is None
        ]
        return [path for path in (*paths, *self.works) if path not in answered]

    @property
    def canceled(self) -> set[str]:
        return {path for path, record in self.steps.items() if record.canceled is not None}

    @property
    def result(self) -> Any:
        """The result of the body, which has ended."""
        assert self.running.ended
        if self.running.error is not None:
            raise self.running.error
        return self.running.result

    def start(self) -> Coordinator:
        """Run the body up to the end of its history."""
        self.advance(self.outcomes)
        return self

    def advance(self, outcomes: Iterable[StepOutcome] = ()) -> Any:
        self.running.advance(outcomes)
        for taken, work in self.running.body.take_work():
            self.works[taken.path] = taken, work
            self.log.append(f"work {taken.path}")
        return self.record(self.running.body.take_news())

    def record(self, news: News) -> Any:
        """Record news. Returns them, with the paths of the canceled steps alone."""
        for opened, plan in news.opened:
            self.steps[opened.path] = StepRecord(opened)
            self.plans[opened.path] = plan
            self.log.append(f"open {opened.path} at {opened.turn}")
        for marked, made in news.marks:
            self.steps[marked.path] = StepRecord(marked, mark=value(made))
            self.log.append(f"mark {marked.path}")
        for path, turn in map(msgspec.structs.astuple, news.canceled):
            self.steps[path] = StepRecord(self.steps[path].step, canceled=turn)
            self.log.append(f"cancel {path}")
        return news._replace(canceled=[each.path for each in news.canceled])  # type: ignore[misc]

    def answer(self, path: str, outcome: Outcome | None = None) -> Any:
        """Record an outcome, by default of the path itself, and give it to the body."""
        if path in self.works:
            taken, work = self.works.pop(path)
            self.steps[path] = StepRecord(taken)
            outcome = outcome or value(work())
        at = BEGAN + 1 + len(self.outcomes)
        self.outcomes.append(StepOutcome(path, at, outcome or value(path)))
        return self.advance(self.outcomes[-1:])

    def finish(self, chance: random.Random | None = None, fails: Iterable[str] = ()) -> Any:
        """Answer everything, in the order in which it was asked for or a random one."""
        while not self.running.ended:
            paths = self.open
            assert paths, "the body waits for nothing"
            path = chance.choice(paths) if chance else paths[0]
            self.answer(path, failure(path) if path in fails else None)
        return self.result


def run(code: Callable[[], Any], fails: Iterable[str] = (), **options: Any) -> Any:
    """The result of a body whose steps are answered in order."""
    return Coordinator(code, **options).start().finish(fails=fails)
