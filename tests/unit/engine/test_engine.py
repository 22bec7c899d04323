"""The engine, step by step, without anything around it."""

from __future__ import annotations

import random

import msgspec
import pytest

from ray_workflows._engine.commands import commands
from ray_workflows._engine.lifecycle import TIMED_OUT
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import ReleaseValue, StartAttempt, WakeAt
from ray_workflows._model.plan import Backoff
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Value
from tests.unit.driver import BOOM, Driver
from tests.unit.plans import plan

DIAMOND = plan(("a", ()), ("b", (0,)), ("c", (0,)), ("d", (1, 2)))


def test_a_diamond_runs_in_order_and_ends_with_the_output() -> None:
    d = Driver(DIAMOND)
    assert d.running == ["a"]
    d.succeed("a")
    assert d.running == ["b", "c"]
    d.succeed("c")
    d.succeed("b")
    events = d.succeed("d", b"end")
    assert isinstance(events[-1], ev.WorkflowSucceeded)
    assert d.state.status == "SUCCESSFUL"
    assert d.state.output.value == Value(b"end")
    assert not d.state.tasks


def test_pending_runs_nothing_until_it_is_started() -> None:
    d = Driver(DIAMOND, start=False)
    assert d.state.status == "PENDING"
    assert commands(d.state) == []
    d.send(msg.Start())
    assert d.running == ["a"]
    assert d.send(msg.Start()) == []


def test_duplicate_and_stale_reports_change_nothing() -> None:
    d = Driver(plan(("a", (), {"retry_exceptions": True}), ("b", (0,))))
    first = d.flying[0]
    d.fail("a", retryable=True)
    late = msg.AttemptReturned(
        task=first.task,
        epoch=first.epoch,
        attempt=first.attempt,
        started_at=0.0,
        ended_at=0.0,
        value=Value(b"late"),
    )
    assert d.send(late) == []
    d.succeed("a", b"v2")
    assert d.send(late) == []
    assert d.state.tasks[0].outcome.value == Value(b"v2")


def test_an_attempt_of_a_former_holder_does_not_count() -> None:
    d = Driver(plan(("a", ())))
    old = d.flying[0]
    d.claim("h2")
    report = msg.AttemptReturned(
        task=0, epoch=old.epoch, attempt=1, started_at=0.0, ended_at=0.0, value=Value(b"zombie")
    )
    assert d.send(report) == []
    d.succeed("a", b"mine")
    assert d.state.output.value == Value(b"mine")


def test_retries_are_counted_and_end() -> None:
    d = Driver(plan(("a", (), {"max_retries": 2, "retry_exceptions": True})))
    d.fail("a", retryable=True)
    d.crash("a")
    events = d.fail("a", retryable=True)
    assert [type(e).__name__ for e in events] == ["TaskFailed", "WorkflowFailed"]
    assert d.state.status == "FAILED"
    assert events[-1].task_id == "a"


def test_an_error_that_is_not_retryable_fails_at_once() -> None:
    d = Driver(plan(("a", ())))
    d.fail("a")
    assert d.state.status == "FAILED"
    assert commands(d.state) == []


def test_unlimited_retries() -> None:
    d = Driver(plan(("a", (), {"max_retries": -1})))
    for _ in range(50):
        d.crash("a")
    d.succeed("a")
    assert d.state.status == "SUCCESSFUL"


def test_resume_after_failure_gives_a_fresh_budget_and_keeps_siblings() -> None:
    d = Driver(plan(("a", (), {"max_retries": 0}), ("b", ()), ("c", (0, 1))))
    d.crash("a")
    assert d.state.status == "FAILED"
    # The sibling in flight still commits.
    d.succeed("b")
    d.resume()
    assert d.running == ["a"]
    d.succeed("a")
    d.succeed("c")
    assert d.state.status == "SUCCESSFUL"


def test_two_failures_fail_the_workflow_once_and_both_run_again() -> None:
    d = Driver(plan(("a", ()), ("b", ()), ("c", (0, 1))))
    d.fail("a")
    events = d.fail("b")
    assert [type(e).__name__ for e in events] == ["TaskFailed"]
    d.resume()
    assert d.running == ["a", "b"]


def test_catch_exceptions_wraps_value_and_error() -> None:
    d = Driver(plan(("a", (), {"catch_exceptions": True}), ("b", (0,))))
    d.fail("a")
    assert d.running == ["b"]
    assert d.state.tasks[0].outcome.error == BOOM
    assert d.state.tasks[0].outcome.wrapped
    d.succeed("b")
    assert not d.state.output.wrapped

    d = Driver(plan(("a", (), {"catch_exceptions": True})))
    d.succeed("a")
    assert d.state.output.wrapped


def test_a_crash_is_not_caught() -> None:
    d = Driver(plan(("a", (), {"catch_exceptions": True, "max_retries": 0})))
    d.crash("a")
    assert d.state.status == "FAILED"


def test_continuations_resolve_their_task() -> None:
    d = Driver(plan(("a", ()), ("b", (0,))))
    d.go_on("a", plan(("x", ()), ("y", (0,))))
    assert d.running == ["x"]
    d.succeed("x")
    d.succeed("y", b"from y")
    assert d.running == ["b"]
    assert d.state.tasks[0].outcome.value == Value(b"from y")


def test_errors_in_continuations_are_caught_by_the_nearest_catcher() -> None:
    d = Driver(plan(("a", (), {"catch_exceptions": True}), ("b", (0,))))
    d.go_on("a", plan(("x", ()), ("side", ()), ("y", (0, 1))))
    d.go_on("x", plan(("deep", ())))
    d.fail("deep")
    # The rest of the continuation is abandoned.
    assert d.running == ["b"]
    assert "side" not in [t.task_id for t in d.state.tasks.values()]
    d.succeed("b")
    assert d.state.status == "SUCCESSFUL"


def test_nested_catchers_wrap_once() -> None:
    d = Driver(plan(("a", (), {"catch_exceptions": True})))
    d.go_on("a", plan(("x", (), {"catch_exceptions": True})))
    d.succeed("x", b"v")
    assert d.state.output.wrapped
    assert d.state.output.value == Value(b"v")


def test_a_catching_tail_continuation_of_the_workflow_itself() -> None:
    d = Driver(plan(("a", (), {"catch_exceptions": True})))
    d.go_on("a", plan(("x", ())))
    d.go_on("x", plan(("y", ())))
    d.fail("y")
    assert d.state.status == "SUCCESSFUL"
    assert d.state.output.error == BOOM


def test_a_loop_of_continuations_keeps_one_frame() -> None:
    d = Driver(plan(("head", ()), ("loop", (0,))))
    d.succeed("head")
    name = "loop"
    for turn in range(200):
        d.go_on(name, plan(("loop", ())))
        name = f"loop_{turn + 1}"
        assert len(d.state.frames) == 1
        assert len(d.state.tasks) == 1
    d.succeed(name)
    assert d.state.status == "SUCCESSFUL"


def test_a_loop_below_a_task_keeps_two_frames() -> None:
    d = Driver(plan(("loop", ()), ("end", (0,))))
    name = "loop"
    for turn in range(50):
        d.go_on(name, plan(("loop", ())))
        name = f"loop_{turn + 1}"
        assert len(d.state.frames) == 2
    d.succeed(name)
    d.succeed("end")
    assert d.state.status == "SUCCESSFUL"


def test_names_are_unique_even_against_names_that_look_generated() -> None:
    d = Driver(plan(("f", ()), ("f", ()), ("f_1", ()), ("f_0", ()), ("g", (0, 1, 2, 3))))
    ids = [t.task_id for t in d.state.tasks.values()]
    assert len(set(ids)) == 5
    assert ids[:2] == ["f", "f_1"]
    assert ids[3] == "f_0"


def test_cancel_stops_and_explicit_resume_goes_on() -> None:
    d = Driver(DIAMOND)
    d.succeed("a")
    flying = dict(d.flying)
    d.send(msg.Cancel())
    assert d.state.status == "CANCELED"
    assert not d.flying
    late = flying[1]
    assert (
        d.send(
            msg.AttemptReturned(
                task=1,
                epoch=late.epoch,
                attempt=late.attempt,
                started_at=0.0,
                ended_at=0.0,
                value=Value(b"x"),
            )
        )
        == []
    )
    d.resume()
    assert d.running == ["b", "c"]


def test_a_canceled_success_is_a_success_again_when_resumed() -> None:
    d = Driver(plan(("a", ())))
    d.succeed("a", b"out")
    d.send(msg.Cancel())
    assert d.state.status == "CANCELED"
    d.resume()
    assert d.state.status == "SUCCESSFUL"
    assert d.state.output.value == Value(b"out")


def test_a_timer_keeps_its_deadline_over_a_crash() -> None:
    d = Driver(plan(("nap", (), {"kind": "timer", "duration": 60.0}), ("b", (0,))))
    assert commands(d.state) == [WakeAt(1060.0)]
    d.now = 1030.0
    d.send(msg.Wake())
    d.claim("h2")
    assert commands(d.state) == [WakeAt(1060.0)]
    d.now = 1060.0
    d.send(msg.Wake())
    assert d.running == ["b"]
    # What a timer produces was captured with it.
    assert d.state.tasks[0].outcome.value == Value(b"nap")


def test_a_lost_value_is_computed_again_with_what_it_needs() -> None:
    unstored = {"checkpoint": False}
    d = Driver(plan(("a", (), unstored), ("b", (0,), unstored), ("c", (1,)), ("d", (0, 2))))
    d.succeed_unstored("a")
    d.succeed_unstored("b")
    assert d.running == ["c"]
    d.claim("h2", live=False)
    assert d.running == ["a"]
    d.succeed_unstored("a")
    assert d.running == ["b"]
    d.succeed_unstored("b")
    assert d.running == ["c"]
    d.succeed("c")
    d.succeed("d")
    assert d.state.status == "SUCCESSFUL"


def test_a_stored_value_is_never_lost() -> None:
    d = Driver(DIAMOND)
    d.succeed("a")
    assert d.claim("h1", live=False) == []


def test_a_lost_input_is_not_charged() -> None:
    d = Driver(plan(("a", (), {"checkpoint": False}), ("b", (0,), {"max_retries": 0})))
    d.succeed_unstored("a")
    d.report(msg.AttemptLostInput, "b", error=BOOM, lost=(0,))
    assert d.running == ["a"]
    d.succeed_unstored("a")
    d.succeed("b")
    assert d.state.status == "SUCCESSFUL"


@pytest.mark.parametrize(
    ("value", "released"),
    [
        (Value(b"A", (Blob("inside", 1, "c"),)), True),
        (Value(Blob("large", 1, "c")), True),
        # All of it is in the journal: there are no live copies.
        (Value(b"A"), False),
    ],
)
def test_values_are_released_after_their_last_consumer(value: Value, released: bool) -> None:
    from ray_workflows._engine.decide import decide
    from ray_workflows._engine.evolve import evolve

    d = Driver(DIAMOND)
    d.report(msg.AttemptReturned, "a", value=value)
    d.succeed("b")
    start = d.flying[2]
    report = msg.AttemptReturned(
        task=2,
        epoch=start.epoch,
        attempt=start.attempt,
        started_at=0.0,
        ended_at=0.0,
        value=Value(b"C"),
    )
    (event,) = decide(d.state, report, 0.0).events
    deltas = evolve(d.state, event)
    assert (ReleaseValue(value) in deltas) is released
    assert any(isinstance(c, StartAttempt) and c.task == 3 for c in deltas)


def test_the_output_is_stored_whatever_was_said() -> None:
    d = Driver(plan(("a", (), {"checkpoint": False}), ("b", (0,), {"checkpoint": False})))
    assert not d.state.checkpoints(d.state.tasks[0])
    assert d.state.checkpoints(d.state.tasks[1])


def test_continuations_inherit_checkpoint() -> None:
    d = Driver(plan(("a", (), {"checkpoint": False}), ("b", (0,))))
    d.go_on("a", plan(("x", ()), ("y", (0,), {"checkpoint": True})))
    assert not d.state.checkpoints(d.state.tasks[d.number("x")])
    assert d.state.checkpoints(d.state.tasks[d.number("y")])


def test_pauses_between_attempts_double_up_to_a_maximum() -> None:
    backoff = Backoff(initial=2.0, maximum=5.0)
    driver = Driver(plan(("a", (), {"max_retries": -1, "backoff": backoff})))
    pauses = []
    for _ in range(4):
        (failed,) = driver.fail("a", retryable=True)
        pauses.append(failed.retry_at - driver.now)
    assert pauses == [2.0, 4.0, 5.0, 5.0]
    # 2.0**1024 is no float.
    for _ in range(1100):
        (failed,) = driver.fail("a", retryable=True)
    assert failed.retry_at - driver.now == 5.0


def test_jitter_takes_a_part_off_each_pause_and_replays() -> None:
    backoff = Backoff(initial=10.0, maximum=10.0, jitter=0.5)
    tasks = [(f"t{i}", (), {"backoff": backoff}) for i in range(50)]
    driver = Driver(plan(*tasks, ("end", tuple(range(50)))))
    pauses = [driver.fail(f"t{i}", retryable=True)[0].retry_at - driver.now for i in range(50)]
    assert all(5.0 <= pause <= 10.0 for pause in pauses)
    assert len(set(pauses)) > 40
    assert max(pauses) - min(pauses) > 3.0


def test_a_pause_outlives_the_holder() -> None:
    driver = Driver(plan(("a", (), {"backoff": Backoff(100.0, 100.0)})))
    driver.fail("a", retryable=True)
    driver.claim("h2")
    (start,) = commands(driver.state)
    assert (start.attempt, start.not_before) == (2, driver.now + 100)


def test_what_is_heard_of_a_running_attempt_changes_nothing() -> None:
    driver = Driver(plan(("a", ())))
    news = msg.AttemptRuns(task=0, epoch=0, attempt=1, started_at=driver.now - 1)
    assert driver.send(news) == [
        ev.AttemptStarted(at=driver.now, task=0, attempt=1, started_at=driver.now - 1)
    ]
    assert driver.running == ["a"]
    assert driver.send(msgspec.structs.replace(news, attempt=2)) == []
    assert driver.send(msgspec.structs.replace(news, epoch=1)) == []
    driver.succeed("a")
    assert driver.send(news) == []


def test_a_workflow_that_overruns_its_timeout_fails_and_stops() -> None:
    driver = Driver(plan(("a", ()), ("b", ()), ("c", (0, 1))), timeout=10.0)
    driver.succeed("a")
    started = driver.flying[1]
    assert commands(driver.state)[-1] == WakeAt(driver.now + 10)
    driver.now += 9.9
    assert driver.send(msg.Wake()) == []
    driver.now += 0.1
    assert driver.send(msg.Wake()) == [ev.WorkflowTimedOut(at=driver.now)]
    assert driver.state.status is WorkflowStatus.FAILED
    assert driver.state.error is not None
    assert driver.state.error.type_name == TIMED_OUT
    assert driver.flying == {}
    late = msg.AttemptReturned(1, started.epoch, started.attempt, 0.0, 0.0, Value(b"late"))
    assert driver.send(late) == []


def test_a_resumed_workflow_has_its_whole_time_again() -> None:
    driver = Driver(plan(("a", ())), timeout=10.0)
    driver.now += 10
    driver.send(msg.Wake())
    driver.now += 100
    driver.send(msg.Resume(), can_run=False)
    assert driver.state.deadline is None
    driver.now += 100
    driver.send(msg.Start())
    assert driver.state.deadline == driver.now + 10
    assert driver.running == ["a"]
    driver.claim("h2")
    assert driver.state.deadline == driver.now + 10
    driver.succeed("a")
    assert driver.state.status is WorkflowStatus.SUCCESSFUL
    driver.now += 100
    assert driver.send(msg.Wake()) == []


def test_release_and_claim_again() -> None:
    d = Driver(DIAMOND)
    d.send(msg.Release(error=BOOM))
    assert d.state.released
    assert commands(d.state) == []
    assert d.send(msg.Release(error=BOOM)) == []
    d.resume("h1")
    assert d.running == ["a"]
    assert d.state.epoch == 1


def test_requests_to_cancel_are_left_for_the_holder() -> None:
    d = Driver(DIAMOND)
    assert d.send(msg.Cancel(), "h2", driven_elsewhere=True)
    assert d.state.cancel_requested
    assert d.send(msg.Cancel(), "h2", driven_elsewhere=True) == []
    assert commands(d.state) == [WakeAt(0.0)]
    d.send(msg.Wake())
    assert d.state.status == "CANCELED"


@pytest.mark.parametrize("seed", range(200))
def test_any_order_of_reports_ends_every_workflow(seed: int) -> None:
    rng = random.Random(seed)
    options = [
        {},
        {"catch_exceptions": True},
        {"checkpoint": False},
        {"retry_exceptions": True, "max_retries": 1},
        {"kind": "timer", "duration": 5.0},
    ]

    def random_plan(size: int) -> object:
        tasks = []
        loose: set[int] = set()
        for index in range(size):
            upstream = tuple(rng.sample(range(index), min(index, rng.randint(0, 2))))
            loose -= set(upstream)
            loose.add(index)
            tasks.append((rng.choice("abc"), upstream, rng.choice(options)))
        tasks.append(("end", tuple(sorted(loose)), rng.choice(options)))
        return plan(*tasks)

    d = Driver(random_plan(rng.randint(0, 6)))
    for _ in range(400):
        if d.state.status == "SUCCESSFUL":
            break
        if d.state.status in ("FAILED", "CANCELED"):
            d.resume(rng.choice(["h1", "h2"]))
            continue
        if d.state.timers:
            d.now += 5
            d.send(msg.Wake())
            continue
        due = [c for c in commands(d.state) if isinstance(c, StartAttempt)]
        d.flying.update({c.task: c for c in due})
        task = d.state.tasks[rng.choice(due).task]
        action = rng.random()
        if action < 0.1:
            d.crash(task.task_id)
        elif action < 0.3:
            d.fail(task.task_id, task.options.retry_exceptions)
        elif action < 0.4 and len(d.journal) < 100:
            d.go_on(task.task_id, random_plan(rng.randint(0, 2)))
        elif action < 0.45:
            d.send(msg.Cancel())
        elif action < 0.55:
            d.claim(f"h{rng.random()}", live=False)
        elif d.state.checkpoints(task):
            d.succeed(task.task_id)
        else:
            d.succeed_unstored(task.task_id)
    assert d.state.status == "SUCCESSFUL"
