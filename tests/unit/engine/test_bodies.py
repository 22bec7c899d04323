"""Bodies of durable functions in the engine: the steps they ask for, and attempts that wait."""

from __future__ import annotations

import pytest

from ray_workflows._capture.plans import joined
from ray_workflows._engine.state import Body, Phase
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import CancelAttempt, ReleaseValue
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import BODY, SIGNAL, TIMER
from ray_workflows._model.steps import CanceledStep, EndedStep, StepKind, StepRecord
from ray_workflows._model.values import Blob, ErrorInfo, Outcome, Value
from tests.support.states import check_same, check_snapshot
from tests.unit.bodies import BodyDriver, step, task
from tests.unit.driver import BOOM
from tests.unit.plans import plan

#: A workflow that is one body, and one in which the body has an input and a consumer.
ALONE = plan(("body", (), {"kind": BODY}))
BETWEEN = plan(("before", ()), ("body", (0,), {"kind": BODY}), ("after", (1,)))


def names_of(events: list[ev.Event]) -> list[str]:
    return [type(each).__name__ for each in events]


# -- steps ---------------------------------------------------------------------------------


def test_steps_start_and_their_outcomes_are_given_in_the_order_of_the_journal() -> None:
    d = BodyDriver(BETWEEN)
    d.succeed("before")
    events = d.ask_for("one", "two")
    assert names_of(events) == ["StepsAsked"]
    assert d.running == ["body", "one", "two"]
    d.succeed("two", b"2")
    assert d.given == [(0, "two")]
    d.succeed("one", b"1")
    assert d.given == [(1, "one")]
    assert d.taken == ["two", "one"]
    assert d.record.outcomes[0].outcome == Outcome(Value(b"2"))
    # The tasks of steps that have ended take no memory.
    assert sorted(each.task_id for each in d.state.tasks.values()) == ["after", "before", "body"]
    d.succeed("body", b"result")
    assert d.running == ["after"]
    assert not d.state.bodies
    d.succeed("after")
    assert d.state.status == "SUCCESSFUL"


def test_a_step_of_several_tasks_runs_as_a_plan() -> None:
    d = BodyDriver(ALONE)
    chain = plan(("first", ()), ("second", (0,)))
    d.ask((step("chain"), chain), (step("single"), task("single")))
    assert d.running == ["body", "first", "single"]
    d.succeed("first")
    assert d.given == []
    assert d.running == ["body", "second", "single"]
    d.succeed("second", b"end")
    assert d.given == [(0, "chain")]
    assert d.record.outcomes[0].outcome.value == Value(b"end")


def test_task_ids_of_steps_are_unique() -> None:
    d = BodyDriver(ALONE)
    d.ask((step("a"), task("body")), (step("b"), task("body")))
    assert d.running == ["body", "body_1", "body_2"]


def test_local_steps_and_marks_are_recorded() -> None:
    d = BodyDriver(ALONE)
    seed = StepRecord(step("random", kind=StepKind.MARK), mark=Outcome(Value(b"seed")))
    d.tell(marks=(seed,))
    assert d.given == []
    d.end_local("local")
    assert d.given == [(0, "local")]
    d.end_local("failing", 1, Outcome(error=BOOM))
    assert d.given == [(1, "failing")]
    history = d.record.history
    assert history.steps[0] == seed
    assert [each.step.path for each in history.steps] == ["random", "local", "failing"]
    assert history.outcomes[1].outcome == Outcome(error=BOOM)
    assert history.began == 900.0
    assert d.state.status == "RUNNING"


def test_steps_and_local_steps_in_one_message() -> None:
    d = BodyDriver(ALONE)
    ended = EndedStep(step("local", kind=StepKind.LOCAL), Outcome(Value(b"v")), 1.0, 2.0)
    events = d.ask((step("one"), task("one")), ended=(ended,))
    assert names_of(events) == ["StepsAsked", "StepsEnded"]
    assert d.taken == ["local"]
    assert d.running == ["body", "one"]


def test_timers_and_signals_as_steps() -> None:
    d = BodyDriver(ALONE)
    d.ask(
        (step("timer"), task("timer", kind=TIMER, duration=5.0)),
        (step("signal"), task("signal", kind=SIGNAL, signal="go")),
    )
    assert d.running == ["body"]
    d.suspend(0)
    assert d.running == []
    d.send(msg.Signal("go", "id", Value(b"signal")))
    d.send(msg.Wake())
    assert d.taken == ["signal"]
    assert d.running == ["body"]
    d.now += 5.0
    d.send(msg.Wake())
    assert d.taken == ["signal", "timer"]
    d.succeed("body")
    assert d.state.status == "SUCCESSFUL"


def test_a_large_outcome_is_released_after_it_was_given() -> None:
    """Bodies read large values from the storage, each time that they run."""
    d = BodyDriver(ALONE)
    d.ask_for("one")
    value = Value(Blob("key", 1_000_000, "sum:1"))
    d.report(msg.AttemptReturned, "one", value=value)
    assert d.given == [(0, "one")]
    assert ReleaseValue(value) in d.deltas
    assert d.record.outcomes[0].outcome.value == value


def test_results_of_steps_are_stored_also_without_checkpoint() -> None:
    d = BodyDriver(plan(("body", (), {"kind": BODY, "checkpoint": False}), ("end", (0,))))
    chain = plan(("first", (), {"checkpoint": False}), ("second", (0,), {"checkpoint": False}))
    d.ask((step("chain"), chain))
    first, second = (d.state.tasks[d.number(name)] for name in ("first", "second"))
    assert not d.state.checkpoints(first)
    assert d.state.checkpoints(second)
    assert d.state.checkpoints(d.state.tasks[d.number("body")])


def test_a_message_that_comes_again_changes_nothing() -> None:
    """A commit that took effect late is followed by a decision on the same messages."""
    d = BodyDriver(ALONE)
    seed = StepRecord(step("random", kind=StepKind.MARK), mark=Outcome(Value(b"seed")))
    ended = EndedStep(step("local", kind=StepKind.LOCAL), Outcome(Value(b"v")), 1.0, 2.0)

    def progress() -> list[ev.Event]:
        return d.ask((step("one"), task("one")), marks=(seed,), ended=(ended,))

    assert progress()
    assert progress() == []
    assert d.running == ["body", "one"]
    canceled = (CanceledStep("one", 1),)
    assert d.tell(canceled=canceled)
    assert d.tell(canceled=canceled) == []
    # One of several is new.
    events = d.ask((step("one"), task("one")), (step("two", 1), task("two")), marks=(seed,))
    (asked,) = events
    assert isinstance(asked, ev.StepsAsked)
    assert [each.path for each in asked.opened] == ["two"]
    assert asked.marks == ()
    assert d.running == ["body", "two"]


# -- canceled steps ------------------------------------------------------------------------


def test_a_canceled_step_is_stopped() -> None:
    d = BodyDriver(ALONE)
    chain = plan(("first", ()), ("second", (0,)))
    d.ask((step("chain"), chain), (step("other"), task("other")))
    number = d.number("first")
    d.tell(canceled=(CanceledStep("chain", 0),))
    assert CancelAttempt(number) in d.deltas
    assert d.running == ["body", "other"]
    assert d.record.steps["chain"] == StepRecord(step("chain"), canceled=0)
    assert "chain" not in d.record.frames
    d.succeed("other")
    assert d.taken == ["other"]


def test_a_canceled_wait_for_a_signal_leaves_the_signal_to_others() -> None:
    d = BodyDriver(ALONE)
    wait = task("wait", kind=SIGNAL, signal="go")
    d.ask((step("one"), wait), (step("two"), wait))
    d.tell(canceled=(CanceledStep("one", 0),))
    d.send(msg.Signal("go", "id", Value(b"signal")))
    d.send(msg.Wake())
    assert d.taken == ["two"]


def test_a_canceled_timer_does_not_go_off() -> None:
    d = BodyDriver(ALONE)
    timer = task("timer", kind=TIMER, duration=5.0)
    d.ask((step("timer"), timer), (step("one"), task("one")))
    d.tell(canceled=(CanceledStep("timer", 0),))
    assert not d.state.timers
    d.now += 10.0
    assert d.send(msg.Wake()) == []


def test_a_step_that_is_asked_for_and_canceled_at_once_does_not_run() -> None:
    d = BodyDriver(ALONE)
    d.ask(
        (step("one"), task("one")), (step("two"), task("two")), canceled=(CanceledStep("one", 0),)
    )
    assert d.running == ["body", "two"]
    assert list(d.record.steps) == ["one", "two"]


def test_a_step_that_had_ended_when_it_was_canceled_keeps_its_outcome() -> None:
    """The body takes it, and ignores it: it counts as a turn."""
    d = BodyDriver(ALONE)
    d.ask_for("one", "two")
    d.succeed("one")
    d.succeed("two")
    # It had taken the outcome of ``one`` only.
    d.tell(canceled=(CanceledStep("two", 1),))
    assert d.taken == ["one", "two"]
    assert d.record.steps["two"].canceled == 1


def test_cancel_of_an_unknown_step_changes_nothing() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one")
    assert d.tell(canceled=(CanceledStep("never asked", 0),)) == []


# -- attempts that wait --------------------------------------------------------------------


def test_a_body_that_waits_has_no_attempt_until_an_outcome_comes() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one", "two")
    first = d.flying[0].attempt
    d.suspend(0)
    assert d.phase is Phase.AWAITING_STEPS
    assert d.running == ["one", "two"]
    d.succeed("one")
    assert d.given == []
    assert d.running == ["body", "two"]
    assert d.flying[0].attempt == first + 1
    assert d.record.history.outcomes[0].path == "one"
    d.succeed("two")
    assert d.given == [(1, "two")]


def test_an_outcome_that_came_meanwhile_starts_the_next_attempt_at_once() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one", "two")
    d.succeed("one")
    # The attempt had not got it yet.
    d.suspend(0)
    assert d.phase is Phase.ACTIVE
    assert d.running == ["body", "two"]
    d.suspend(1)
    assert d.phase is Phase.AWAITING_STEPS
    assert d.state.tasks[0].attempts == 2
    assert d.state.tasks[0].charged == 0


def test_a_body_that_waits_for_nothing_that_runs_is_started_again() -> None:
    """A host that can't store the outcome of a local step gives the body back."""
    d = BodyDriver(ALONE)
    d.suspend(0)
    assert d.running == ["body"]
    d.end_local("local")
    d.suspend(1)
    assert d.running == ["body"]
    # With a pause: it may be given back again and again.
    assert d.state.tasks[0].until > d.now
    d.ask_for("one", turn=1)
    d.suspend(1)
    assert d.running == ["one"]


def test_messages_of_stale_attempts_change_nothing() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one")
    old = d.flying[0]
    d.suspend(0)

    def told() -> list[ev.Event]:
        whole, sizes = joined([task("stale")])
        return [
            *d.tell(old, opened=(step("stale"),), plan=whole, sizes=sizes),
            *d.tell(old, canceled=(CanceledStep("one", 0),)),
            *d.send(
                msg.AttemptSuspended(
                    old.task, old.epoch, old.attempt, 1.0, ended_at=1.0, taken=0, told=0
                )
            ),
            *d.send(
                msg.AttemptReturned(old.task, old.epoch, old.attempt, 1.0, 1.0, value=Value(b""))
            ),
        ]

    assert told() == []
    d.succeed("one")
    assert told() == []
    d.claim("h2")
    old = d.flying[0]
    d.claim("h3")
    assert told() == []
    d.succeed("body")
    assert told() == []


def test_an_outcome_comes_between_two_attempts() -> None:
    """A delayed attempt gets its history when it starts."""
    d = BodyDriver(plan(("body", (), {"kind": BODY, "max_retries": 3})))
    d.ask_for("one")
    d.crash("body")
    d.succeed("one")
    assert d.taken == ["one"]
    assert d.running == ["body"]


# -- errors of steps -----------------------------------------------------------------------


def test_the_error_of_a_step_goes_to_its_body() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one")
    assert names_of(d.fail("one")) == ["TaskFailed", "ErrorCaught"]
    assert d.given == [(0, "one")]
    # As it is: the body raises it.
    assert d.record.outcomes[0].outcome == Outcome(error=BOOM)
    assert d.state.status == "RUNNING"
    d.succeed("body")
    assert d.state.status == "SUCCESSFUL"


def test_the_crash_of_a_step_goes_to_its_body() -> None:
    d = BodyDriver(ALONE)
    d.ask((step("one"), task("one", max_retries=0)))
    assert names_of(d.crash("one")) == ["TaskFailed", "ErrorCaught"]
    assert d.record.outcomes[0].outcome.error is not None


def test_the_timeout_of_a_signal_goes_to_the_body() -> None:
    d = BodyDriver(ALONE)
    d.ask((step("wait"), task("wait", kind=SIGNAL, signal="go", timeout=5.0)))
    d.suspend(0)
    d.now += 5.0
    assert names_of(d.send(msg.Wake())) == ["TaskFailed", "ErrorCaught"]
    assert d.record.outcomes[0].outcome.error is not None
    assert d.running == ["body"]


def test_an_error_in_a_continuation_of_a_step_goes_to_the_body() -> None:
    d = BodyDriver(ALONE)
    d.ask((step("chain"), plan(("first", ()), ("second", (0,)))), (step("b"), task("beside")))
    d.go_on("first", plan(("inner", ()), ("sibling", ()), ("join", (0, 1))))
    d.go_on("inner", plan(("deep", ())))
    assert names_of(d.fail("deep")) == ["TaskFailed", "ErrorCaught"]
    assert d.taken == ["chain"]
    # Nothing of the step is left.
    assert d.running == ["beside", "body"]
    assert sorted(t.task_id for t in d.state.tasks.values()) == ["beside", "body"]


def test_an_error_in_a_tail_continuation_of_a_step_goes_to_the_body() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one")
    for turn in range(3):
        d.go_on("one" if not turn else f"turn{turn - 1}", plan((f"turn{turn}", ())))
        assert len(d.state.frames) == 2
    d.fail("turn2")
    assert d.taken == ["one"]


def test_tail_continuations_of_a_step_give_it_its_result() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one")
    d.go_on("one", plan(("two", ()), ("three", (0,))))
    assert list(d.record.frames) == ["one"]
    d.succeed("two")
    d.succeed("three", b"end")
    assert d.record.outcomes[0].outcome.value == Value(b"end")
    assert not d.record.frames


@pytest.mark.parametrize("how", ["fail", "crash"])
def test_the_error_of_a_nested_body_goes_to_the_outer_one(how: str) -> None:
    d = BodyDriver(ALONE)
    d.ask((step("inner"), task("inner", kind=BODY, max_retries=0)))
    d.body = "inner"
    d.ask_for("deep", "beside")
    d.fail("deep")
    assert d.state.bodies[d.number("inner")].outcomes[0].outcome.error == BOOM
    getattr(d, how)("inner")
    d.body = "body"
    assert d.taken == ["inner"]
    assert d.running == ["body"]
    assert list(d.state.bodies) == [d.number("body")]


def test_errors_that_tasks_inside_of_a_step_catch_are_results() -> None:
    d = BodyDriver(ALONE)
    d.ask((step("one"), task("one", catch_exceptions=True)))
    d.fail("one")
    assert d.record.outcomes[0].outcome == Outcome(error=BOOM, wrapped=True)
    d.ask((step("two", 1), task("two", catch_exceptions=True)))
    d.go_on("two", plan(("tail", ())))
    d.fail("tail")
    assert d.record.outcomes[1].outcome == Outcome(error=BOOM, wrapped=True)
    d.ask((step("three", 2), task("three", catch_exceptions=True)))
    d.succeed("three", b"v")
    assert d.record.outcomes[2].outcome == Outcome(Value(b"v"), wrapped=True)
    inside = plan(("inside", (), {"catch_exceptions": True}), ("outside", (0,)))
    d.ask((step("four", 3), inside))
    d.fail("inside")
    assert d.running == ["body", "outside"]


def test_the_error_of_a_body_is_caught_as_that_of_any_task() -> None:
    d = BodyDriver(plan(("body", (), {"kind": BODY, "catch_exceptions": True}), ("end", (0,))))
    d.ask_for("one", "two")
    d.fail("one")
    d.raise_error("one")
    assert not d.state.bodies
    assert d.running == ["end"]


def test_a_step_that_fails_in_a_failed_workflow_runs_again_when_it_is_resumed() -> None:
    d = BodyDriver(plan(("other", ()), ("body", (), {"kind": BODY}), ("end", (0, 1))))
    d.ask_for("one", "two")
    d.fail("other")
    assert d.state.status == "FAILED"
    d.succeed("two")
    assert d.taken == ["two"]
    # Its attempt was in flight, and goes on.
    d.fail("one")
    assert d.taken == ["two"]
    d.resume()
    assert d.running == ["body", "one", "other"]


def test_a_body_goes_on_in_a_failed_workflow() -> None:
    """As each attempt in flight. It would wait for the outcome of a local step for ever."""
    d = BodyDriver(plan(("other", ()), ("body", (), {"kind": BODY}), ("end", (0, 1))))
    d.ask_for("one")
    d.fail("other")
    d.end_local("local")
    assert d.given == [(0, "local")]
    d.succeed("one")
    assert d.given == [(1, "one")]
    d.succeed("body")
    d.resume()
    assert d.running == ["other"]


def test_a_body_asks_for_steps_in_a_failed_workflow() -> None:
    """They start when it is resumed."""
    d = BodyDriver(plan(("other", ()), ("body", (), {"kind": BODY}), ("end", (0, 1))))
    d.fail("other")
    d.ask_for("one")
    d.suspend(0)
    assert "one" not in [d.state.tasks[each].task_id for each in d.flying]
    d.resume()
    assert d.running == ["one", "other"]
    d.succeed("one")
    assert d.running == ["body", "other"]


# -- the end of a body ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["returns", "continues", "is caught"])
def test_a_body_that_ends_stops_its_steps(how: str) -> None:
    catches = how == "is caught"
    d = BodyDriver(plan(("body", (), {"kind": BODY, "catch_exceptions": catches}), ("end", (0,))))
    d.ask(
        (step("one"), task("one")),
        (step("timer"), task("timer", kind=TIMER, duration=5.0)),
        (step("signal"), task("signal", kind=SIGNAL, signal="go")),
        (step("inner"), task("inner", kind=BODY)),
    )
    d.body = "inner"
    d.ask_for("deep")
    d.body = "body"
    assert d.running == ["body", "deep", "inner", "one"]
    if how == "returns":
        d.succeed("body")
    elif how == "continues":
        d.go_on("body", plan(("tail", ())))
    else:
        d.raise_error()
    assert d.running == (["tail"] if how == "continues" else ["end"])
    assert not d.state.bodies
    assert not d.state.timers
    assert not d.state.waits
    assert set(d.flying) == {d.number(name) for name in d.running}


def test_a_body_that_returns_a_continuation_to_a_body() -> None:
    d = BodyDriver(ALONE)
    for turn in range(1, 4):
        d.ask_for(f"one{turn}")
        d.succeed(f"one{turn}")
        d.go_on(d.body, plan(("body", (), {"kind": BODY})))
        d.body = f"body_{turn}"
        assert d.running == [d.body]
        assert len(d.state.frames) == 1
        assert not d.state.bodies
    d.succeed(d.body, b"end")
    assert d.state.output.value == Value(b"end")


def test_a_step_that_continues_as_a_body() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one")
    d.go_on("one", plan(("inner", (), {"kind": BODY})))
    d.body = "inner"
    d.ask_for("deep")
    d.succeed("deep")
    assert d.taken == ["deep"]
    d.succeed("inner", b"result")
    d.body = "body"
    assert d.taken == ["one"]


def test_a_workflow_ends_with_its_body_and_keeps_nothing() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one", "two")
    number = d.number("two")
    d.succeed("one")
    d.succeed("body", b"end")
    assert CancelAttempt(number) in d.deltas
    assert d.state.status == "SUCCESSFUL"
    assert not d.state.tasks
    assert not d.state.frames


def test_messages_to_other_workflows_wait_for_delivery_with_bodies() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one", "two")
    sent = OutboxMessage("m", "target", Value(b"message"))
    d.report(msg.AttemptReturned, "one", value=Value(b"1"), messages=(sent,))
    d.succeed("body", b"end")
    assert d.state.ending is not None
    d.send(msg.Delivered("m"))
    assert d.state.status == "SUCCESSFUL"


# -- after an error ------------------------------------------------------------------------

RETRIED = plan(("body", (), {"kind": BODY, "retry_exceptions": True, "max_retries": 2}))


def test_a_retry_asks_again_for_the_step_that_failed() -> None:
    d = BodyDriver(RETRIED)
    d.ask_for("before", "beside", "late")
    d.succeed("before")
    d.ask_for("failing", turn=1)
    d.fail("failing")
    d.succeed("beside")
    events = d.raise_error("failing", retryable=True)
    assert names_of(events) == ["AttemptFailed"]
    assert events[0].step == "failing"
    # What it had asked for before stays, whether it has ended or runs.
    assert d.taken == ["before", "beside"]
    assert d.record.steps["failing"] == StepRecord(step("failing", 1), again=True)
    assert d.running == ["body", "late"]
    d.ask((step("failing", 2), task("again")))
    assert d.record.steps["failing"] == StepRecord(step("failing", 2))
    d.succeed("again", b"now")
    assert d.taken == ["before", "beside", "failing"]
    d.succeed("body")
    assert d.state.status == "SUCCESSFUL"


def test_a_local_step_that_failed_is_run_again() -> None:
    d = BodyDriver(RETRIED)
    d.end_local("local", 0, Outcome(error=BOOM))
    d.raise_error("local", retryable=True)
    assert d.taken == []
    assert d.record.steps["local"].again
    d.end_local("local")
    assert d.taken == ["local"]
    assert d.record.outcomes[0].outcome.value == Value(b"local")


def test_marks_made_after_the_error_are_made_again() -> None:
    d = BodyDriver(RETRIED)
    early = StepRecord(step("early", 0, StepKind.MARK), mark=Outcome(Value(b"0")))
    d.ask((step("failing"), task("failing")), marks=(early,))
    d.fail("failing")
    late = StepRecord(step("late", 1, StepKind.MARK), mark=Outcome(Value(b"1")))
    d.tell(marks=(late,))
    d.raise_error("failing", retryable=True)
    assert list(d.record.steps) == ["early", "failing"]


def test_what_the_body_canceled_because_of_the_error_is_asked_for_again() -> None:
    """As a TaskGroup does with the other tasks."""
    d = BodyDriver(RETRIED)
    d.ask_for("failing", "beside", "unwanted")
    d.tell(canceled=(CanceledStep("unwanted", 0),))
    d.fail("failing")
    d.tell(canceled=(CanceledStep("beside", 1),))
    d.raise_error("failing", retryable=True)
    assert d.record.steps["beside"] == StepRecord(step("beside"), again=True)
    assert d.record.steps["unwanted"] == StepRecord(step("unwanted"), canceled=0)
    assert d.running == ["body"]


def test_what_had_ended_when_the_body_canceled_it_keeps_its_outcome() -> None:
    """The next attempt takes it: it is asked for, and has an outcome."""
    d = BodyDriver(RETRIED)
    d.ask_for("failing", "beside")
    d.fail("failing")
    d.succeed("beside", b"done")
    d.tell(canceled=(CanceledStep("beside", 1),))
    d.raise_error("failing", retryable=True)
    assert d.taken == ["beside"]
    assert d.record.steps["beside"] == StepRecord(step("beside"))
    assert d.record.steps["failing"].again


def test_a_body_that_did_something_because_of_the_error_does_not_go_back() -> None:
    d = BodyDriver(RETRIED)
    d.ask_for("pay", "other")
    d.fail("pay")
    d.ask_for("refund", turn=1)
    d.succeed("refund")
    d.raise_error("pay", retryable=True)
    assert d.taken == ["pay", "refund"]
    assert not d.record.failed
    assert d.running == ["body", "other"]


def test_an_error_of_the_code_keeps_the_history() -> None:
    d = BodyDriver(RETRIED)
    d.ask_for("one", "two")
    d.succeed("one")
    d.raise_error("", retryable=True)
    assert d.taken == ["one"]
    assert d.running == ["body", "two"]


def test_the_budget_of_retries_ends_if_the_same_step_fails_each_time() -> None:
    """An outcome that the body had before is no progress."""
    d = BodyDriver(RETRIED)
    for attempt in range(3):
        d.ask((step("failing"), task(f"failing{attempt}")))
        d.fail(f"failing{attempt}")
        d.raise_error("failing", retryable=True)
    assert d.state.status == "FAILED"


def test_progress_gives_a_new_budget_of_retries() -> None:
    d = BodyDriver(plan(("body", (), {"kind": BODY, "max_retries": 1})))
    for turn in range(5):
        d.ask_for(f"step{turn}", turn=turn)
        d.crash("body")
        assert d.state.tasks[0].charged == 1
        d.succeed(f"step{turn}")
        assert d.state.tasks[0].charged == 0
        assert d.state.tasks[0].setbacks == 0
    d.crash("body")
    d.crash("body")
    assert d.state.status == "FAILED"


def test_a_resumed_body_goes_back_too() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("before", "beside", "slow")
    d.succeed("before")
    d.ask_for("failing", turn=1)
    d.fail("failing")
    events = d.raise_error("failing")
    assert names_of(events) == ["TaskFailed", "WorkflowFailed"]
    # Its steps go on, as other attempts of a failed workflow.
    d.succeed("beside")
    assert d.given == []
    assert d.record.failed == "failing"
    d.resume()
    assert d.taken == ["before", "beside"]
    assert d.record.failed == ""
    assert d.running == ["body", "slow"]
    d.ask((step("failing", 2), task("failing")))
    d.succeed("failing_1")
    assert d.taken == ["before", "beside", "failing"]


def test_a_body_that_crashed_too_often_is_resumed_with_its_whole_history() -> None:
    d = BodyDriver(plan(("body", (), {"kind": BODY, "max_retries": 0})))
    d.ask_for("one")
    d.succeed("one")
    d.crash("body")
    assert d.state.status == "FAILED"
    d.resume()
    assert d.taken == ["one"]
    assert d.running == ["body"]


def test_an_outer_body_that_goes_back_closes_an_inner_one_that_failed() -> None:
    """Both have failed: the outer one first, by an error of its own step."""
    d = BodyDriver(ALONE)
    d.ask((step("failing"), task("failing")), (step("inner"), task("inner", kind=BODY)))
    d.body = "inner"
    d.ask_for("deep")
    d.body = "body"
    d.fail("failing")
    d.tell(canceled=())
    d.raise_error("failing")
    assert d.state.status == "FAILED"
    d.body = "inner"
    d.raise_error("")
    d.body = "body"
    d.resume()
    assert d.running == ["body", "deep", "inner"]


# -- cancel, resume, takeover --------------------------------------------------------------


def test_cancel_and_resume_of_a_running_body() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one", "two")
    d.succeed("one")
    old = d.flying[0]
    d.send(msg.Cancel())
    assert d.state.status == "CANCELED"
    assert not d.flying
    assert d.tell(old, canceled=(CanceledStep("two", 0),)) == []
    d.resume()
    assert d.running == ["body", "two"]
    assert d.taken == ["one"]
    assert d.flying[0].attempt == old.attempt + 1


def test_cancel_and_resume_of_a_waiting_body() -> None:
    d = BodyDriver(ALONE)
    d.ask((step("one"), task("one")), (step("timer"), task("timer", kind=TIMER, duration=5.0)))
    d.suspend(0)
    d.send(msg.Cancel())
    d.now += 10.0
    d.resume()
    assert d.running == ["one"]
    d.send(msg.Wake())
    assert d.taken == ["timer"]
    assert d.running == ["body", "one"]


def test_timeout_of_the_workflow_stops_a_body() -> None:
    d = BodyDriver(ALONE, timeout=5.0)
    d.ask_for("one")
    d.now += 5.0
    d.send(msg.Wake())
    assert d.state.status == "FAILED"
    assert not d.flying
    d.resume()
    assert d.running == ["body", "one"]


def test_another_coordinator_starts_the_body_with_its_history() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one", "two")
    d.succeed("one")
    old = d.flying[0]
    d.claim("h2")
    assert d.running == ["body", "two"]
    assert d.flying[0].epoch == old.epoch + 1
    assert d.tell(old, canceled=(CanceledStep("two", 0),)) == []
    d.succeed("two")
    assert d.given == [(1, "two")]


def test_another_coordinator_leaves_a_waiting_body() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one")
    d.suspend(0)
    d.claim("h2")
    assert d.running == ["one"]
    d.succeed("one")
    assert d.running == ["body"]


def test_a_released_workflow_goes_on_where_it_was() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one")
    d.send(msg.Release(ErrorInfo("StorageCorruptError", "damaged")))
    assert not d.flying
    d.resume("h2")
    assert d.running == ["body", "one"]


# -- lost values ---------------------------------------------------------------------------

UNSTORED = plan(("input", (), {"checkpoint": False}), ("body", (0,), {"kind": BODY}), ("end", (1,)))


def test_a_running_body_whose_input_is_lost_starts_again_with_its_history() -> None:
    d = BodyDriver(UNSTORED)
    d.succeed_unstored("input")
    d.ask_for("one", "two")
    d.succeed("one")
    d.claim("h2", live=False)
    assert d.running == ["input", "two"]
    # Outcomes are recorded meanwhile.
    d.succeed("two")
    assert d.taken == ["one", "two"]
    assert d.running == ["input"]
    d.succeed_unstored("input")
    assert d.running == ["body"]
    d.succeed("body")
    d.succeed("end")
    assert d.state.status == "SUCCESSFUL"


@pytest.mark.parametrize("first", ["input", "step"])
def test_a_waiting_body_whose_input_is_lost(first: str) -> None:
    d = BodyDriver(UNSTORED)
    d.succeed_unstored("input")
    d.ask_for("one")
    d.suspend(0)
    d.claim("h2", live=False)
    assert d.running == ["input", "one"]
    if first == "input":
        d.succeed_unstored("input")
        # It needs no attempt until its step ends, and may have one.
        d.succeed("one")
    else:
        d.succeed("one")
        assert d.running == ["input"]
        d.succeed_unstored("input")
    assert d.running == ["body"]
    assert d.taken == ["one"]


def test_a_failed_body_whose_input_is_lost_waits_for_it_after_resume() -> None:
    d = BodyDriver(UNSTORED)
    d.succeed_unstored("input")
    d.ask_for("one")
    d.fail("one")
    d.raise_error("one")
    d.send(msg.Resume(), "h2", live=False)
    assert d.running == ["input"]
    d.succeed_unstored("input")
    assert d.running == ["body"]
    assert d.taken == []


def test_lost_values_inside_of_a_step_are_computed_again() -> None:
    d = BodyDriver(ALONE)
    chain = plan(("first", (), {"checkpoint": False}), ("second", (0,)))
    d.ask((step("chain"), chain))
    d.succeed_unstored("first")
    d.claim("h2", live=False)
    assert d.running == ["body", "first"]
    d.succeed_unstored("first")
    d.succeed("second")
    assert d.taken == ["chain"]


# -- snapshots -----------------------------------------------------------------------------


def test_states_that_differ_in_a_body_are_not_the_same() -> None:
    d = BodyDriver(ALONE)
    d.ask_for("one", "two")
    d.succeed("one")
    other = check_snapshot(d.state)
    body = other.bodies[0]
    for change in (
        swap,
        lambda body: body.outcomes.clear(),
        lambda body: setattr(body, "failed", "one"),
    ):
        change(body)
        with pytest.raises(AssertionError, match="bodies"):
            check_same(other, d.state)
        other = check_snapshot(d.state)
        body = other.bodies[0]


def swap(body: Body) -> None:
    """The other order of the steps."""
    items = list(body.steps.items())
    body.steps.clear()
    body.steps.update(reversed(items))
