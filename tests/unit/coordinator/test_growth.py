"""What a coordinator keeps is bounded by what it drives, however long it lives."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from ray_workflows._coordinator.admission import Admission, Limits
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.state import WorkflowState
from ray_workflows._executor.timers import MAX_CANCELLED
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Received
from ray_workflows._model.messages import AttemptCrashed
from ray_workflows._model.plan import SIGNAL, TIMER, Backoff, Plan
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import ErrorInfo, Value
from tests.unit.coordinator.test_failover import Coordinator, World
from tests.unit.plans import plan

MONTH = 30 * 24 * 3600.0

SLEEPS = plan(("sleep", (), {"kind": TIMER, "duration": MONTH}))
SIGNALS = plan(
    *(
        (f"s{number}", (), {"kind": SIGNAL, "signal": "s", "timeout": MONTH + number})
        for number in range(300)
    )
)
RETRIES = plan(("f", (), {"max_retries": -1, "backoff": Backoff(MONTH, MONTH, 0.0)}))


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator(World(), "one", auto_resume=False)


def submit(coordinator: Coordinator, workflow_id: str, plan: Plan) -> Workflow:
    submit = msg.Submit(plan, {}, f"i-{workflow_id}", workflow_id)
    coordinator.loop.ask(workflow_id, submit, lambda answer: None)
    coordinator.step()
    return coordinator.loop.active[workflow_id]


def ask(coordinator: Coordinator, workflow_id: str, input: msg.Asked) -> None:
    answers: list[Any] = []
    coordinator.loop.ask(workflow_id, input, answers.append)
    coordinator.step()
    assert answers in ([None], [Received()])


def crash(coordinator: Coordinator, workflow: Workflow, attempt: int) -> None:
    report = AttemptCrashed(0, 1, attempt, 0.0, 0.0, error=ErrorInfo("Crash", "killed"))
    coordinator.loop.report(workflow.incarnation, [report])
    coordinator.step()


@pytest.mark.parametrize("waits", [SLEEPS, SIGNALS, RETRIES], ids=["timer", "signals", "back-off"])
def test_a_workflow_that_is_read_again_and_again(coordinator: Coordinator, waits: Plan) -> None:
    loop = coordinator.loop
    before = len(loop.timers.heap)
    workflow = submit(coordinator, "w", waits)
    if waits is RETRIES:
        crash(coordinator, workflow, 1)
    for _ in range(500):
        loop.activation.verify(workflow)
        coordinator.step()
        # One alarm, or one for each attempt that has to wait; cancelled ones go in time.
        assert len(loop.timers.heap) <= 2 * (before + 2) + MAX_CANCELLED
    assert loop.active.holds(workflow)


def test_signals_that_end_waits_with_a_timeout(coordinator: Coordinator) -> None:
    before = len(coordinator.loop.timers.heap)
    submit(coordinator, "w", SIGNALS)
    for number in range(299):
        ask(coordinator, "w", msg.Signal("s", str(number), Value(b"v")))
        assert len(coordinator.loop.timers.heap) <= 2 * (before + 2) + MAX_CANCELLED


def test_a_workflow_that_is_to_be_woken_earlier_and_earlier(coordinator: Coordinator) -> None:
    loop = coordinator.loop
    before = len(loop.timers.heap)
    workflow = submit(coordinator, "w", SLEEPS)
    for number in range(500):
        loop.starter.set_alarm(workflow, loop.clock() + MONTH - number)
        assert len(loop.timers.heap) <= 2 * (before + 2) + MAX_CANCELLED


@pytest.mark.parametrize("waits", [SLEEPS, SIGNALS, RETRIES], ids=["timer", "signals", "back-off"])
def test_a_canceled_workflow_is_freed(coordinator: Coordinator, waits: Plan) -> None:
    states = []
    for number in range(10):
        workflow = submit(coordinator, f"w{number}", waits)
        if waits is RETRIES:
            crash(coordinator, workflow, 1)
        states.append(Freed(workflow))
        del workflow
        ask(coordinator, f"w{number}", msg.Cancel())
    gc.collect()
    assert not any(state.is_there() for state in states)


class Freed:
    """Finds out whether a workflow's working state is kept by anybody."""

    def __init__(self, workflow: Workflow) -> None:
        self.identity = id(workflow.state)

    def is_there(self) -> bool:
        return any(
            id(each) == self.identity
            for each in gc.get_objects()
            if isinstance(each, WorkflowState)
        )


def test_room_is_counted_without_looking_at_all() -> None:
    """The law is that of the simulation: what is counted is what a scan would find."""
    admission = Admission(Limits(max_running=2, max_pending=1))
    assert not any(isinstance(value, dict) and value for value in vars(admission).values())
    running, successful = WorkflowStatus.RUNNING, WorkflowStatus.SUCCESSFUL
    admission.change("w0", None, running)
    assert admission.can_run()
    admission.change("w1", None, running)
    admission.change("w1", running, running)
    assert not admission.can_run()
    admission.change("w2", None, WorkflowStatus.PENDING)
    assert list(admission.waiting) == ["w2"]
    assert not admission.can_queue()
    assert admission.left(10) == 0
    admission.change("w0", running, successful)
    assert admission.can_run()
    admission.change("w0", successful, None)
    admission.change("w1", running, None)
    admission.change("w2", WorkflowStatus.PENDING, None)
    assert admission.can_queue()
    assert admission.left(10) == 3
    assert not admission.waiting
    assert not +admission.counts
