"""Drives the engine by hand: every step checks the invariants and the laws of replay."""

from __future__ import annotations

from typing import Any

from ray_workflows._codec.journal import encode_events, events_from
from ray_workflows._engine.commands import commands
from ray_workflows._engine.decide import decide
from ray_workflows._engine.decision import Surroundings
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.invariants import check
from ray_workflows._engine.replay import replay
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Tag
from ray_workflows._model.commands import CancelAttempt, Command, StartAttempt
from ray_workflows._model.events import Event
from ray_workflows._model.plan import Plan
from ray_workflows._model.values import Blob, ErrorInfo, Value
from tests.support.states import check_same, check_snapshot

#: Snapshots are compared up to this many events: each comparison looks at the whole state.
SNAPSHOTS = 200

BOOM = ErrorInfo("ValueError", "boom")


class Driver:
    #: Whether each step replays the journal, which takes as long as it is long.
    replays = True

    def __init__(
        self,
        plan: Plan,
        start: bool = True,
        timeout: float | None = None,
        history: tuple[Event, ...] = (),
        *,
        workflow_id: str = "wf",
        incarnation: str = "i1",
        now: float = 1000.0,
        tags: dict[str, Tag] | None = None,
        parent: str = "",
        request_id: str = "",
        can_wait: bool = True,
    ) -> None:
        self.state = WorkflowState(workflow_id, incarnation)
        self.journal: list[Event] = []
        #: What was restored from a snapshot of the step before.
        self.restored = check_snapshot(self.state)
        self.flying: dict[int, StartAttempt] = {}
        #: What was new by the last message.
        self.deltas: list[Command] = []
        self.now = now
        self.answer: object = None
        self.send(
            msg.Submit(
                plan=plan,
                metadata={},
                timeout=timeout,
                history=history or None,
                tags=tags or {},
                parent=parent,
                request_id=request_id,
            ),
            can_run=start,
            can_wait=can_wait,
        )

    def send(self, message: msg.Message, holder: str = "h1", **around: bool) -> list[Event]:
        decision = decide(self.state, message, self.now, Surroundings(holder, **around))
        self.answer = decision.answer
        events = decision.events
        # Through the bytes: what is not encoded faithfully shows up here.
        events = events_from(encode_events(events))
        self.deltas.clear()
        for event in events:
            for command in evolve(self.state, event):
                self.deltas.append(command)
                if isinstance(command, StartAttempt):
                    self.flying[command.task] = command
                elif isinstance(command, CancelAttempt):
                    self.flying.pop(command.task, None)
        self.journal += events
        check(self.state)
        if not self.replays:
            return events
        replayed = replay(self.state.workflow_id, self.state.incarnation, self.journal)
        assert commands(replayed) == commands(self.state)
        if len(self.journal) <= SNAPSHOTS:
            check_same(replayed, self.state)
            for event in events:
                evolve(self.restored, event)
            check_same(self.restored, self.state)
            self.restored = check_snapshot(self.state)
        return events

    def number(self, task_id: str) -> int:
        found = [n for n, t in self.state.tasks.items() if t.task_id == task_id]
        assert len(found) == 1, (task_id, [t.task_id for t in self.state.tasks.values()])
        return found[0]

    @property
    def running(self) -> list[str]:
        return sorted(
            self.state.tasks[c.task].task_id
            for c in commands(self.state)
            if isinstance(c, StartAttempt)
        )

    def report(self, kind: type[msg.AttemptReport], task_id: str, **fields: Any) -> list[Event]:
        start = self.flying.pop(self.number(task_id))
        return self.send(
            kind(
                task=start.task,
                epoch=start.epoch,
                attempt=start.attempt,
                started_at=self.now,
                ended_at=self.now,
                **fields,
            )
        )

    def succeed(self, task_id: str, data: bytes = b"v") -> list[Event]:
        return self.report(msg.AttemptReturned, task_id, value=Value(data))

    def succeed_unstored(self, task_id: str) -> list[Event]:
        return self.report(
            msg.AttemptReturned, task_id, value=Value(Blob(f"live-{task_id}", 1, ""))
        )

    def go_on(self, task_id: str, plan: Plan) -> list[Event]:
        return self.report(msg.AttemptReturnedPlan, task_id, plan=plan)

    def fail(self, task_id: str, retryable: bool = False) -> list[Event]:
        return self.report(msg.AttemptRaised, task_id, error=BOOM, retryable=retryable)

    def crash(self, task_id: str) -> list[Event]:
        return self.report(msg.AttemptCrashed, task_id, error=ErrorInfo("Crash", "killed"))

    def resume(self, holder: str = "h1") -> list[Event]:
        return self.send(msg.Resume(canceled=True), holder)

    def claim(self, holder: str, *, live: bool = True) -> list[Event]:
        """A coordinator takes the workflow over, with or without the values that are not stored."""
        return self.send(msg.Claim(), holder, live=live)
