"""Drives workflows with bodies of durable functions by hand."""

from __future__ import annotations

from typing import Any

from ray_workflows._capture.plans import joined
from ray_workflows._engine.state import Body, Phase
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import GiveOutcome, StartAttempt
from ray_workflows._model.plan import Plan
from ray_workflows._model.steps import EndedStep, Step, StepKind
from ray_workflows._model.values import Outcome, Value
from tests.unit.driver import BOOM, Driver
from tests.unit.plans import plan


def step(path: str, turn: int = 0, kind: StepKind = StepKind.PLAN) -> Step:
    return Step(path, path, "digest", turn, kind)


def task(name: str, **options: Any) -> Plan:
    """The plan of a step that is one task."""
    return plan((name, (), options))


class BodyDriver(Driver):
    """Drives a workflow with bodies; ``body`` names the one that is meant."""

    body = "body"

    def tell(self, begun: StartAttempt | None = None, **fields: Any) -> list[ev.Event]:
        """The running attempt of the body, or one that had begun, tells something."""
        start = begun or self.flying[self.number(self.body)]
        progress = msg.BodyProgress(
            start.task, start.epoch, start.attempt, self.now, 900.0, **fields
        )
        return self.send(progress)

    def ask(self, *steps: tuple[Step, Plan], **fields: Any) -> list[ev.Event]:
        """The body asks for steps."""
        whole, sizes = joined([each for _, each in steps])
        opened = tuple(each for each, _ in steps)
        return self.tell(opened=opened, plan=whole, sizes=sizes, **fields)

    def ask_for(self, *names: str, turn: int = 0) -> list[ev.Event]:
        """The body asks for steps that are a task each, of the same name."""
        return self.ask(*((step(name, turn), task(name)) for name in names))

    def end_local(self, path: str, turn: int = 0, outcome: Outcome | None = None) -> None:
        """A local step of the body ends."""
        ended = outcome or Outcome(Value(path.encode()))
        self.tell(ended=(EndedStep(step(path, turn, StepKind.LOCAL), ended, self.now, self.now),))

    def suspend(self, taken: int) -> list[ev.Event]:
        return self.report(msg.AttemptSuspended, self.body, taken=taken, told=0)

    def raise_error(self, path: str = "", *, retryable: bool = False) -> list[ev.Event]:
        """The body raises; ``path``: the error of this step."""
        return self.report(msg.AttemptRaised, self.body, error=BOOM, retryable=retryable, step=path)

    @property
    def record(self) -> Body:
        """What is recorded of the body."""
        return self.state.bodies[self.number(self.body)]

    @property
    def taken(self) -> list[str]:
        """The paths of the recorded outcomes."""
        return [each.path for each in self.record.outcomes]

    @property
    def given(self) -> list[tuple[int, str]]:
        """What the last message gave to the attempt."""
        return [
            (each.number, each.outcome.path)
            for each in self.deltas
            if isinstance(each, GiveOutcome)
        ]

    @property
    def phase(self) -> Phase:
        return self.state.tasks[self.number(self.body)].phase
