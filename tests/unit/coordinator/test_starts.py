"""A workflow with more to start than others can wait for starts it little by little."""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted
from ray_workflows._model.messages import AttemptReturned
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from tests.unit.coordinator.test_failover import Coordinator, Idle, World
from tests.unit.plans import plan

#: Tasks of the large workflow, and how many of them are started in one step.
TASKS, STARTS = 10, 3


class Noting(Idle):
    """Runs nothing, and notes what it was asked for."""

    def __init__(self) -> None:
        self.started: list[AttemptRequest] = []

    def start(self, request: AttemptRequest, followers: Any = ()) -> None:
        self.started.append(request)

    @property
    def tasks(self) -> list[int]:
        return [request.task for request in self.started]


class Large:
    """A coordinator with a large workflow, of which nothing is started yet."""

    def __init__(self) -> None:
        self.world = World()
        self.coordinator = Coordinator(self.world, "owner", auto_resume=False)
        self.loop = self.coordinator.loop
        self.loop.starter.at_once = STARTS
        self.executor = self.loop.executor = self.loop.starter.executor = Noting()
        self.submit("large", TASKS)
        self.settle()

    def submit(self, workflow_id: str, tasks: int) -> list[Any]:
        """Ask for it; what is answered."""
        answers: list[Any] = []
        many = plan(*((f"t{index}", ()) for index in range(tasks)))
        submit = msg.Submit(many, {}, f"i-{workflow_id}", workflow_id)
        self.loop.ask(workflow_id, submit, answers.append)
        return answers

    def settle(self) -> None:
        """Let what was asked for be committed, and start nothing yet."""
        starts, self.loop.starter.at_once = self.loop.starter.at_once, 0
        self.coordinator.step()
        self.loop.starter.at_once = starts

    def finish(self) -> None:
        while self.loop.step() == 0.0 or self.coordinator.answers:
            if self.coordinator.answers:
                self.coordinator.answers.pop(0)()

    def report(self, request: AttemptRequest) -> None:
        report = AttemptReturned(
            request.task, request.epoch, request.attempt, 0.0, 1.0, value=Value(b"v")
        )
        self.loop.report(request.incarnation, [report])

    @property
    def seq(self) -> int:
        row = self.world.storage.read_catalog("large")
        assert row is not None
        return row.seq


@pytest.fixture
def large() -> Large:
    return Large()


def test_some_in_each_step(large: Large) -> None:
    assert large.executor.tasks == []
    for count in (3, 6, 9):
        assert large.loop.step() == 0.0
        assert large.executor.tasks == list(range(count))
    assert large.loop.step() != 0.0
    assert large.executor.tasks == list(range(TASKS))


def test_others_are_served_in_between(large: Large) -> None:
    large.loop.step()
    answers = large.submit("small", 1)
    large.settle()
    (accepted,) = answers
    assert isinstance(accepted, Accepted)
    large.loop.step()
    large.loop.step()
    started = [request.incarnation for request in large.executor.started]
    assert "i-small" in started
    assert len(started) < TASKS
    large.finish()
    assert len(large.executor.started) == TASKS + 1


def test_results_are_committed_in_between(large: Large) -> None:
    large.loop.step()
    seq = large.seq
    for request in large.executor.started:
        large.report(request)
    large.settle()
    assert large.seq == seq + 1
    assert len(large.executor.started) == STARTS
    large.finish()
    assert large.executor.tasks == list(range(TASKS))


def test_nothing_is_started_while_a_commit_is_on_its_way(large: Large) -> None:
    large.loop.step()
    large.report(large.executor.started[0])
    large.loop.step()
    started = len(large.executor.started)
    assert large.coordinator.answers
    # There is nothing to do until it is durable: no step is due at once.
    assert large.loop.step() != 0.0
    assert len(large.executor.started) == started
    large.finish()
    assert large.executor.tasks == list(range(TASKS))


def test_what_is_canceled_meanwhile_is_not_started(large: Large) -> None:
    large.loop.step()
    large.coordinator.loop.ask("large", msg.Cancel(), lambda answer: None)
    large.settle()
    large.finish()
    assert large.world.status("large") == (WorkflowStatus.CANCELED, "owner")
    assert len(large.executor.started) == STARTS
    assert not large.loop.starter.waiting


def test_each_is_started_once_though_the_journal_is_read_again(large: Large) -> None:
    large.loop.step()
    large.loop.activation.verify(large.loop.active["large"])
    large.finish()
    assert large.executor.tasks == list(range(TASKS))
