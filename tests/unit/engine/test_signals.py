"""Signals in the engine: kept until they are taken, taken once, first come, first served."""

from __future__ import annotations

import random
import sys

import pytest

from ray_workflows._engine.commands import commands
from ray_workflows._engine.fork import fork_history
from ray_workflows._engine.signals import REMEMBERED
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import WakeAt
from ray_workflows._model.plan import SIGNAL, Plan
from ray_workflows._model.values import Blob, Value
from ray_workflows.exceptions import SignalTimeoutError
from tests.unit.driver import Driver
from tests.unit.plans import plan

Task = tuple[str, tuple[int, ...], dict[str, object]]


def wait(task: str, name: str = "s", **options: object) -> Task:
    return task, (), {"kind": SIGNAL, "signal": name, **options}


#: Two that wait for one name, and who takes both.
TWO = plan(wait("w0"), wait("w1"), ("end", (0, 1)))


def signal(name: str = "s", signal_id: str = "1", data: bytes = b"v") -> msg.Signal:
    return msg.Signal(name=name, signal_id=signal_id, value=Value(data))


def give(driver: Driver, *args: str, data: bytes = b"v", **fields: str) -> list[ev.Event]:
    """A signal as the holder takes it: in one step, and so in one entry."""
    events = driver.send(signal(*args, data=data, **fields))
    if any(isinstance(c, WakeAt) and c.at <= driver.now for c in commands(driver.state)):
        events += driver.send(msg.Wake())
    return events


def inputs_of(driver: Driver, task_id: str) -> list[bytes]:
    task = driver.state.tasks[driver.number(task_id)]
    outcomes = [driver.state.tasks[number].outcome for number in task.upstream]
    return [outcome.value.data for outcome in outcomes]


def names(events: list[ev.Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_a_signal_goes_to_who_waits_for_it() -> None:
    d = Driver(plan(wait("w"), ("end", (0,))))
    assert d.running == []
    assert names(give(d, data=b"hello")) == ["SignalReceived", "SignalTaken"]
    assert d.running == ["end"]
    assert inputs_of(d, "end") == [b"hello"]
    assert not d.state.signals
    assert not d.state.waits


def test_a_signal_that_comes_first_is_kept() -> None:
    d = Driver(plan(("first", ()), ("end", (0,))))
    assert names(give(d, data=b"early")) == ["SignalReceived"]
    d.go_on("first", plan(wait("w")))
    # It can be taken at once: that is among the commands.
    assert commands(d.state) == [WakeAt(0.0)]
    assert names(d.send(msg.Wake())) == ["SignalTaken"]
    assert inputs_of(d, "end") == [b"early"]


def test_that_a_signal_can_be_taken_is_said_when_it_becomes_so() -> None:
    d = Driver(plan(wait("w"), ("a", ()), ("end", (0, 1))))
    d.send(signal(signal_id="1"))
    assert d.deltas == [WakeAt(d.now)]
    d.send(msg.Wake())
    d.send(signal(signal_id="2"))
    assert d.deltas == []
    d.go_on("a", plan(wait("x"), wait("y", timeout=5.0)))
    assert d.deltas == [WakeAt(d.now), WakeAt(d.now + 5.0), WakeAt(d.now)]
    d.claim("h2")
    assert d.deltas == [WakeAt(0.0), WakeAt(d.now + 5.0)]


def test_first_come_first_served() -> None:
    d = Driver(TWO)
    for number in range(3):
        give(d, signal_id=str(number), data=b"%d" % number)
    assert inputs_of(d, "end") == [b"0", b"1"]
    assert list(d.state.signals["s"]) == ["2"]


def test_who_became_ready_first_is_served_first() -> None:
    d = Driver(plan(("a", ()), ("b", ()), ("end", (0, 1))))
    d.now += 1
    d.go_on("b", plan(wait("late")))
    d.now += 1
    d.go_on("a", plan(wait("later")))
    give(d, signal_id="1", data=b"1")
    give(d, signal_id="2", data=b"2")
    assert inputs_of(d, "end") == [b"2", b"1"]


def test_names_do_not_mix() -> None:
    d = Driver(plan(wait("x", "x"), wait("y", "y"), ("end", (0, 1))))
    assert names(give(d, "z")) == ["SignalReceived"]
    # One id may be used for several names.
    give(d, "y", data=b"y")
    give(d, "x", data=b"x")
    assert inputs_of(d, "end") == [b"x", b"y"]


def test_a_repeated_signal_is_one_signal() -> None:
    d = Driver(TWO)
    give(d, signal_id="1")
    assert give(d, signal_id="1") == []
    give(d, signal_id="2")
    early = Driver(plan(("a", ()), ("end", (0,))))
    early.send(signal(signal_id="1", data=b"first"))
    assert early.send(signal(signal_id="1", data=b"second")) == []
    assert early.state.signals["s"]["1"] == Value(b"first")


@pytest.mark.parametrize("status", ["SUCCESSFUL", "CANCELED"])
def test_what_has_ended_takes_none(status: str) -> None:
    d = Driver(plan(("a", ())))
    if status == "CANCELED":
        d.send(msg.Cancel())
    else:
        d.succeed("a")
    assert d.state.status == status
    assert give(d) == []


def test_pending_keeps_it_until_it_is_started() -> None:
    d = Driver(plan(wait("w"), ("end", (0,))), start=False)
    assert names(give(d)) == ["SignalReceived"]
    assert commands(d.state) == []
    d.send(msg.Start())
    assert commands(d.state) == [WakeAt(0.0)]
    assert names(d.send(msg.Wake())) == ["SignalTaken"]


def test_failed_keeps_it_until_it_is_resumed() -> None:
    d = Driver(plan(wait("w"), ("a", ()), ("end", (0, 1))))
    d.fail("a")
    assert names(give(d)) == ["SignalReceived"]
    assert d.send(msg.Wake()) == []
    d.resume()
    assert names(d.send(msg.Wake())) == ["SignalTaken"]
    d.succeed("a")
    assert d.running == ["end"]


def test_canceled_keeps_what_came_before() -> None:
    d = Driver(plan(("a", ()), ("end", (0,))))
    give(d)
    d.send(msg.Cancel())
    d.resume()
    d.go_on("a", plan(wait("w")))
    assert names(d.send(msg.Wake())) == ["SignalTaken"]


def test_signals_that_come_together_are_all_kept_before_one_is_taken() -> None:
    """Also if the first one ends the workflow: who sent the others was told that they are kept."""
    d = Driver(plan(wait("w")))
    for number in range(3):
        assert names(d.send(signal(signal_id=str(number)))) == ["SignalReceived"]
    assert commands(d.state) == [WakeAt(0.0)]
    assert names(d.send(msg.Wake())) == ["SignalTaken", "WorkflowSucceeded"]
    assert list(d.state.signals["s"]) == ["1", "2"]


def test_it_outlives_the_holder() -> None:
    d = Driver(plan(wait("w"), ("end", (0,))))
    d.claim("h2")
    d.send(signal())
    d.claim("h3")
    assert commands(d.state) == [WakeAt(0.0)]
    d.send(msg.Wake())
    assert d.running == ["end"]


def test_the_end_of_a_workflow_can_be_a_signal() -> None:
    d = Driver(plan(wait("w")))
    assert names(give(d, data=b"end")) == [
        "SignalReceived",
        "SignalTaken",
        "WorkflowSucceeded",
    ]
    assert d.state.output.value == Value(b"end")


def test_a_large_signal_is_released_after_its_last_consumer() -> None:
    d = Driver(plan(wait("w"), ("a", (0,)), ("end", (1,))))
    blob = Value(Blob("signal-x", 100_000, "sha256:x"))
    d.send(msg.Signal(name="s", signal_id="1", value=blob))
    d.send(msg.Wake())
    d.succeed("a")
    assert d.state.tasks[0].outcome is None
    assert d.state.tasks[0].released


def test_what_took_a_signal_is_stored_because_it_can_not_be_made_again() -> None:
    """Of nested continuations, each result up to the workflow's; of others, none is."""
    unstored = {"checkpoint": False}
    d = Driver(plan(("a", (), unstored), ("b", (), unstored), ("end", (0, 1), unstored)))
    d.go_on("a", plan(("inner", (), unstored), ("out", (0,), unstored)))
    d.go_on("b", plan(("plain", (), unstored), ("plain out", (0,), unstored)))
    d.go_on("inner", plan(wait("w"), ("last", (0,), unstored)))
    give(d)
    stored = {t.task_id for t in d.state.tasks.values() if d.state.checkpoints(t)}
    assert stored == {"last", "out", "end"}
    # In tail position too.
    d.go_on("last", plan(("tail", (), unstored)))
    assert d.state.checkpoints(d.state.tasks[d.number("tail")])


# -- timeouts ------------------------------------------------------------------------------


def test_nobody_waits_longer_than_the_timeout() -> None:
    d = Driver(plan(wait("w", timeout=5.0), ("end", (0,))))
    assert commands(d.state) == [WakeAt(1005.0)]
    d.now = 1004.9
    assert d.send(msg.Wake()) == []
    d.now = 1005.0
    events = d.send(msg.Wake())
    assert names(events) == ["TaskFailed", "WorkflowFailed"]
    assert events[0].error.type_name == SignalTimeoutError.__name__
    assert "'w'" in events[0].error.message
    assert "'s'" in events[0].error.message
    assert (events[0].started_at, events[0].ended_at) == (1000.0, 1005.0)
    # A signal that comes too late waits for who waits next.
    give(d)
    d.now = 2000.0
    d.resume()
    assert commands(d.state) == [WakeAt(0.0), WakeAt(2005.0)]
    assert names(d.send(msg.Wake())) == ["SignalTaken"]


def test_a_signal_that_came_in_time_is_taken_however_late_it_is_seen() -> None:
    d = Driver(plan(wait("w", timeout=5.0), ("end", (0,))))
    d.now = 1004.0
    d.send(signal())
    d.now = 9999.0
    assert names(d.send(msg.Wake())) == ["SignalTaken"]


def test_the_timeout_outlives_a_crash_and_begins_anew_with_a_resume() -> None:
    d = Driver(plan(wait("w", timeout=5.0), ("a", ()), ("end", (0, 1))))
    d.now = 1003.0
    d.claim("h2")
    assert WakeAt(1005.0) in commands(d.state)
    d.fail("a")
    d.now = 3000.0
    d.resume()
    assert d.send(msg.Wake()) == []
    assert WakeAt(3005.0) in commands(d.state)


def test_a_timeout_is_caught_by_the_wait_itself() -> None:
    d = Driver(plan(wait("w", timeout=5.0, catch_exceptions=True), ("end", (0,))))
    d.now = 1005.0
    assert names(d.send(msg.Wake())) == ["TaskFailed", "ErrorCaught"]
    assert d.state.tasks[0].outcome.error.type_name == "SignalTimeoutError"
    assert d.running == ["end"]


def test_a_wait_that_catches_wraps_the_value() -> None:
    d = Driver(plan(wait("w", catch_exceptions=True), ("end", (0,))))
    give(d)
    assert d.state.tasks[0].outcome.wrapped


def test_timeouts_at_once_in_a_continuation_that_is_caught() -> None:
    """The first one ends the continuation, and with it all that waits in it; others go on."""
    dag = plan(("a", (), {"catch_exceptions": True}), wait("x", timeout=50.0), ("end", (0, 1)))
    d = Driver(dag)
    d.now = 1001.0
    inside = plan(wait("w0", timeout=5.0), wait("w1", timeout=5.0), ("c", (0, 1)))
    d.go_on("a", inside)
    d.now = 1006.0
    assert names(d.send(msg.Wake())) == ["TaskFailed", "ErrorCaught"]
    assert d.state.waits.keys() == {"s"}
    d.now = 1049.0
    give(d)
    assert d.running == ["end"]


def test_timeouts_at_once_fail_the_workflow_once() -> None:
    d = Driver(plan(wait("w0", timeout=5.0), wait("w1", "t", timeout=5.0), ("end", (0, 1))))
    d.now = 1005.0
    assert names(d.send(msg.Wake())) == ["TaskFailed", "WorkflowFailed"]
    d.now = 2000.0
    d.resume()
    # Both have their whole time again.
    assert d.send(msg.Wake()) == []
    give(d, "s")
    give(d, "t")
    assert d.running == ["end"]


def test_the_timeout_of_the_workflow_comes_first() -> None:
    d = Driver(plan(wait("w", timeout=5.0), ("end", (0,))), timeout=5.0)
    d.now = 1005.0
    d.send(signal())
    assert names(d.send(msg.Wake())) == ["WorkflowTimedOut"]
    d.resume()
    assert names(d.send(msg.Wake())) == ["SignalTaken"]


# -- memory --------------------------------------------------------------------------------


def test_a_loop_of_signals_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 3 * REMEMBERED
    d = quick(monkeypatch, plan(("turn", ())))
    sizes = []
    for turn in range(turns):
        give(d, signal_id=str(turn))
        d.go_on(only_running(d), plan(wait("w"), ("turn", (0,))))
        assert names(d.send(msg.Wake())) == ["SignalTaken"]
        d.journal.clear()
        sizes.append(size(d))
    assert not d.state.signals
    assert len(d.state.taken) == REMEMBERED
    assert sizes[-1] == sizes[2 * REMEMBERED]
    # What is remembered is not taken again; what is forgotten is.
    assert give(d, signal_id=str(turns - 1)) == []
    assert names(give(d, signal_id="0")) == ["SignalReceived"]


def test_a_hundred_thousand_signals_are_kept_and_taken_in_linear_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted, not timed: no turn looks at more than it takes."""
    count = 100_000
    d = quick(monkeypatch, plan(("turn", ())), checked=False)
    for number in range(count):
        give(d, signal_id=str(number), data=b"")
    steps = 0

    def trace(frame: object, event: str, arg: object) -> object:
        nonlocal steps
        steps += 1
        return trace

    counted = []
    for _ in range(3):
        sys.settrace(trace)
        d.go_on(only_running(d), plan(wait("w"), ("turn", (0,))))
        d.send(msg.Wake())
        sys.settrace(None)
        counted.append(steps)
        steps = 0
    assert max(counted) < 5_000


def quick(monkeypatch: pytest.MonkeyPatch, dag: Plan, checked: bool = True) -> Driver:
    """A driver that does not replay its journal at each step."""
    module = "tests.unit.driver"
    monkeypatch.setattr(f"{module}.replay", lambda *args: d.state)
    if not checked:
        monkeypatch.setattr(f"{module}.check", lambda state: None)
    d = Driver.__new__(Driver)
    d.__init__(dag)  # type: ignore[misc]
    return d


def only_running(d: Driver) -> str:
    (task_id,) = d.running
    return task_id


def size(d: Driver) -> int:
    state = d.state
    parts = (state.tasks, state.frames, state.signals, state.waits, state.timers, state.names)
    return sum(len(part) for part in parts) + len(state.taken)


# -- forks ---------------------------------------------------------------------------------


def test_a_fork_has_the_signals_that_kept_tasks_took_and_no_others() -> None:
    d = Driver(plan(wait("w0"), ("a", (0,)), wait("w1", "t"), ("end", (1, 2))))
    give(d, "s", data=b"taken")
    d.succeed("a")
    give(d, "t", data=b"to be sent again")
    give(d, "u", data=b"not taken")
    history = fork_history(d.journal, "w1")
    assert history is not None
    assert names(history) == ["TaskSucceeded", "TaskSucceeded"]
    fork = Driver(plan(wait("w0"), ("a", (0,)), wait("w1", "t"), ("end", (1, 2))), history=history)
    assert not fork.state.signals
    assert fork.send(msg.Wake()) == []
    give(fork, "t", data=b"new")
    assert inputs_of(fork, "end") == [b"v", b"new"]


def test_a_fork_keeps_a_timeout_that_was_caught() -> None:
    dag = plan(wait("w", timeout=5.0, catch_exceptions=True), ("a", (0,)), ("end", (1,)))
    d = Driver(dag)
    d.now = 1005.0
    d.send(msg.Wake())
    history = fork_history(d.journal, "a")
    assert names(history) == ["TaskFailed", "ErrorCaught"]
    assert Driver(dag, history=tuple(history)).running == ["a"]


# -- any order -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_any_order_gives_each_signal_to_one_task(seed: int) -> None:
    rng = random.Random(seed)
    tasks = [wait(f"w{n}", rng.choice("xy"), timeout=rng.choice([None, 5.0])) for n in range(6)]
    d = Driver(plan(*tasks, ("end", tuple(range(6)))), start=rng.random() < 0.7)
    sent = 0
    for _ in range(2000):
        if d.state.status == "SUCCESSFUL":
            break
        what = rng.randrange(7)
        d.now += rng.random()
        if what < 2:
            sent += 1
            d.send(numbered(rng.choice("xy"), sent))
        elif what == 2 and sent:
            d.send(numbered(rng.choice("xy"), rng.randint(1, sent)))
        elif what == 3:
            d.claim(rng.choice(["h1", "h2"]))
        elif what == 4:
            d.send(msg.Wake())
        elif d.state.status in ("FAILED", "CANCELED"):
            d.resume()
        elif d.state.status == "PENDING":
            d.send(msg.Start())
        elif rng.random() < 0.05:
            d.send(msg.Cancel())
        elif d.running:
            assert len(set(inputs_of(d, "end"))) == 6
            d.succeed("end")
    assert d.state.status == "SUCCESSFUL"
    taken = [(e.name, e.signal_id) for e in d.journal if isinstance(e, ev.SignalTaken)]
    assert len(taken) == len(set(taken)) == 6
    for name in "xy":
        received = [
            e.signal_id for e in d.journal if isinstance(e, ev.SignalReceived) and e.name == name
        ]
        of_name = [signal_id for kind, signal_id in taken if kind == name]
        assert of_name == received[: len(of_name)]


def numbered(name: str, number: int) -> msg.Signal:
    return signal(name, str(number), f"{name}{number}".encode())
