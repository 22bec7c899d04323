"""Bodies in the executor: the outcomes that they are given, and what they tell."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from ray.exceptions import ActorDiedError

from ray_workflows._codec.transport import message
from ray_workflows._executor.executor import LATE_SECONDS
from ray_workflows._executor.protocol import ENCODER, AttemptRequest, BatchReport, ToldProgress
from ray_workflows._model.messages import (
    AttemptReturned,
    AttemptReturnedPlan,
    AttemptSuspended,
    BodyEnd,
    BodyProgress,
    Crash,
)
from ray_workflows._model.plan import BODY, EMPTY_PLAN, LISTENER
from ray_workflows._model.steps import History, StepOutcome
from ray_workflows._model.values import Outcome, Value
from tests.unit.scheduling import INCARNATION, RayTask, Scheduling, attempt, template


def outcome(path: str) -> StepOutcome:
    return StepOutcome(path, 1.0, Outcome(Value(b"v")))


def body(task: int = 0, *done: str, of: str = "f") -> AttemptRequest:
    history = History(outcomes=tuple(outcome(path) for path in done))
    return msgspec.structs.replace(attempt(template(of, kind=BODY), task), history=history)


def tell(scheduling: Scheduling, number: int, batch: int | None = None) -> bool:
    """The body tells something; ``batch``: of its execution, by default the first one."""
    told = BodyProgress(0, 0, 1, 1.0, began=float(number))
    if batch is None:
        batch = scheduling.cluster.tasks[0].batches()[0][0]
    return scheduling.executor.body_progress(
        ENCODER.encode(ToldProgress(INCARNATION, batch, number, told))
    )


def suspend(scheduling: Scheduling, ray_task: RayTask, told: int) -> None:
    ((number, (request,)),) = ray_task.batches()
    end = AttemptSuspended(request.task, 0, 1, 1.0, 2.0, taken=0, told=told)
    end_with(scheduling, ray_task, number, end)


def end_with(scheduling: Scheduling, ray_task: RayTask, number: int, end: BodyEnd) -> None:
    scheduling.end(ray_task, [message(ENCODER.encode(BatchReport(number, ((0, end),), (0.0,))))])


def given(ray_task: RayTask) -> list[tuple[int, tuple[str, ...]]]:
    return [(each.number, tuple(one.path for one in each.outcomes)) for each in ray_task.given]


def began(scheduling: Scheduling) -> list[float]:
    """Which progress was reported, in this order."""
    return [each.began for each in scheduling.reported if isinstance(each, BodyProgress)]


def give(scheduling: Scheduling, number: int, path: str) -> None:
    scheduling.executor.give(INCARNATION, 0, number, outcome(path))


def test_bodies_hold_no_slot() -> None:
    scheduling = Scheduling(capacity=1)
    for task in range(5):
        scheduling.start(body(task))
    scheduling.flush()
    assert len(scheduling.tasks) == 5


def test_outcomes_of_a_step_of_the_loop_are_one_call() -> None:
    scheduling = Scheduling()
    scheduling.start(body(0, "a"))
    scheduling.flush()
    (ray_task,) = scheduling.tasks
    give(scheduling, 1, "b")
    give(scheduling, 2, "c")
    assert given(ray_task) == []
    scheduling.flush()
    give(scheduling, 3, "d")
    scheduling.flush()
    scheduling.flush()
    assert given(ray_task) == [(1, ("b", "c")), (3, ("d",))]


def test_what_its_history_has_is_not_given_again() -> None:
    scheduling = Scheduling()
    scheduling.start(body(0, "a", "b"))
    scheduling.flush()
    give(scheduling, 1, "b")
    scheduling.flush()
    assert given(scheduling.tasks[0]) == []


def test_an_attempt_that_is_not_sent_takes_outcomes_with_its_history() -> None:
    scheduling = Scheduling()
    scheduling.head_hangs = True  # What the shape needs is not known yet.
    scheduling.start(body(0, "a"))
    scheduling.flush()
    give(scheduling, 1, "b")
    scheduling.flush()
    assert scheduling.tasks == []
    scheduling.head_hangs = False
    scheduling.check()
    scheduling.flush()
    (ray_task,) = scheduling.tasks
    ((_, (request,)),) = ray_task.batches()
    assert request.history is not None
    assert [each.path for each in request.history.outcomes] == ["a", "b"]
    give(scheduling, 2, "c")
    scheduling.flush()
    assert given(ray_task) == [(2, ("c",))]


def test_progress_is_reported_in_its_order_and_once() -> None:
    scheduling = Scheduling()
    scheduling.start(body())
    scheduling.flush()
    for number in (1, 0, 1, 0, 3, 2):
        assert tell(scheduling, number)
    assert began(scheduling) == [0.0, 1.0, 2.0, 3.0]


def test_progress_of_an_attempt_that_is_not_wanted_is_refused() -> None:
    scheduling = Scheduling()
    scheduling.start(body())
    scheduling.flush()
    scheduling.cancel(0)
    assert not tell(scheduling, 0)
    assert scheduling.reported == []
    assert scheduling.tasks[0].canceled


def test_the_end_of_a_body_waits_for_its_progress() -> None:
    scheduling = Scheduling()
    scheduling.start(body())
    scheduling.flush()
    (ray_task,) = scheduling.tasks
    tell(scheduling, 0)
    suspend(scheduling, ray_task, told=3)
    assert scheduling.outcomes == [(0, "BodyProgress")]
    tell(scheduling, 2)
    assert scheduling.outcomes == [(0, "BodyProgress")]
    tell(scheduling, 1)
    assert scheduling.outcomes == [*[(0, "BodyProgress")] * 3, (0, "AttemptSuspended")]
    scheduling.settle()
    assert len(scheduling.outcomes) == 4


@pytest.mark.parametrize("returned", [AttemptReturned, AttemptReturnedPlan])
def test_a_result_waits_for_what_was_sent_before(returned: Any) -> None:
    """The last progress may have messages to other workflows."""
    scheduling = Scheduling()
    scheduling.start(body())
    scheduling.flush()
    (ray_task,) = scheduling.tasks
    ((number, _),) = ray_task.batches()
    result = EMPTY_PLAN if returned is AttemptReturnedPlan else Value(b"v")
    end_with(scheduling, ray_task, number, returned(0, 0, 1, 1.0, 2.0, result, told=1))
    assert scheduling.outcomes == []
    tell(scheduling, 0)
    assert scheduling.outcomes == [(0, "BodyProgress"), (0, returned.__name__)]


def test_a_body_whose_progress_is_lost_runs_again() -> None:
    assert LATE_SECONDS > 1
    scheduling = Scheduling()
    scheduling.start(body())
    scheduling.flush()
    suspend(scheduling, scheduling.tasks[0], told=1)
    assert scheduling.outcomes == []
    scheduling.settle()
    assert scheduling.outcomes == [(0, "AttemptLostInput")]
    assert not isinstance(scheduling.reported[0], BodyEnd)
    assert not tell(scheduling, 0)


def test_an_earlier_execution_under_the_same_number_tells_nothing() -> None:
    scheduling = Scheduling()
    scheduling.start(body())
    scheduling.flush()
    scheduling.executor.forget(INCARNATION)
    scheduling.start(body())
    scheduling.flush()
    (second,) = (task for task in scheduling.tasks if not task.canceled)
    assert not tell(scheduling, 0)
    assert tell(scheduling, 0, second.batches()[0][0])
    give(scheduling, 0, "a")
    scheduling.flush()
    assert [each.batch for each in second.given] == [second.batches()[0][0]]
    assert scheduling.cluster.tasks[0].given == []


@pytest.mark.parametrize(("shared", "crash"), [(True, Crash.PREEMPTED), (False, Crash.KILLED)])
def test_a_body_is_charged_with_the_end_of_its_host_if_it_was_alone(
    shared: bool, crash: Crash
) -> None:
    scheduling = Scheduling()
    scheduling.cluster.shared = shared
    scheduling.start(body())
    scheduling.start(attempt(template("g", kind=LISTENER), 1))
    scheduling.flush()
    for ray_task in scheduling.tasks:
        scheduling.end(ray_task, ActorDiedError())
    found = {each.task: each.crash for each in scheduling.reported}  # type: ignore[attr-defined]
    assert found == {0: crash, 1: Crash.KILLED}
