"""Signals that are the only ones of their name, and that listeners have: rules of the engine."""

from __future__ import annotations

import pytest

from ray_workflows._engine.signals import REMEMBERED
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import OtherSignal, Received, TooManySignals
from ray_workflows._model.values import Value
from ray_workflows.exceptions import SignalRefusedError, WorkflowNotFoundError
from tests.unit.driver import Driver
from tests.unit.plans import plan


@pytest.fixture
def d() -> Driver:
    return Driver(plan(("f", ())))


def event(signal_id: str = "1", name: str = "e", **fields: object) -> msg.Signal:
    value = Value(signal_id.encode())
    return msg.Signal(name, signal_id, value, sole=True, **fields)  # type: ignore[arg-type]


def test_a_name_has_one_until_it_is_acknowledged_and_after(d: Driver) -> None:
    assert [type(e) for e in d.send(event())] == [ev.SignalReceived]
    assert d.answer == Received()
    assert d.send(event()) == []
    assert d.answer == Received()
    assert d.send(event("2")) == []
    assert d.answer == OtherSignal()
    assert [type(e) for e in d.send(msg.AcknowledgeSignals("e"))] == [ev.SignalAcknowledged]
    assert not d.state.signals
    assert d.send(event()) == []
    assert d.answer == Received(taken=True)
    assert d.send(event("2")) == []
    assert d.answer == OtherSignal()
    # Those of other names, and signals that share a name, are as before.
    assert d.send(event("2", "another"))
    assert d.send(msg.Signal("e", "3", Value(b"")))


def test_what_is_known_is_known_when_the_workflow_has_ended(d: Driver) -> None:
    d.send(event())
    d.send(msg.AcknowledgeSignals("e"))
    d.send(event("kept", "kept"))
    d.succeed("f")
    for again, answer in (
        (event(), Received(taken=True)),
        (event("2"), OtherSignal()),
        (event("2", "kept"), OtherSignal()),
    ):
        assert d.send(again) == []
        assert d.answer == answer
    # Nobody takes what is kept any more, nor what is new.
    for refused in (event("kept", "kept"), event("2", "another")):
        assert d.send(refused) == []
        assert isinstance(d.answer, SignalRefusedError)
    assert d.send(msg.AcknowledgeSignals("kept")) == []


def test_so_many_are_kept(d: Driver) -> None:
    for number in range(3):
        assert d.send(event(name=f"e{number}", most=3))
    assert d.send(event(name="e3", most=3)) == []
    assert d.answer == TooManySignals(3)
    # The same again, and one that somebody waits for.
    assert d.send(event(name="e0", most=3)) == []
    assert d.answer == Received()
    assert d.send(event(name="e3"))
    d.send(msg.AcknowledgeSignals("e0"))
    d.send(msg.AcknowledgeSignals("e1"))
    assert d.send(event(name="e4", most=3))


def test_who_asks_changes_nothing_and_hears_the_same(d: Driver) -> None:
    assert d.send(event(asks=True)) == []
    assert d.answer is None
    d.send(event())
    for asked in (event(), event("2"), event(name="another", most=1)):
        assert d.send(msg.Signal(*astuple(asked)[:-1], True)) == []
        answer = d.answer
        d.send(asked)
        assert d.answer == answer
        assert answer is not None


def astuple(asked: msg.Signal) -> tuple[object, ...]:
    return tuple(getattr(asked, name) for name in asked.__struct_fields__)


def test_it_is_found_until_it_is_acknowledged(d: Driver) -> None:
    find = msg.FindSignal("e")
    assert d.send(find) == []
    assert d.answer is None
    d.send(event())
    assert d.send(find) == []
    assert d.answer == Received(value=Value(b"1"))
    d.send(msg.AcknowledgeSignals("e"))
    assert d.send(find) == []
    assert d.answer == Received(taken=True)


def test_acknowledging_twice_is_acknowledging_once(d: Driver) -> None:
    assert d.send(msg.AcknowledgeSignals("e")) == []
    d.send(event())
    assert d.send(msg.AcknowledgeSignals("e"))
    assert d.send(msg.AcknowledgeSignals("e")) == []
    assert d.answer is None


def test_memory_has_an_end(d: Driver) -> None:
    for number in range(REMEMBERED + 10):
        d.send(event(name=f"e{number}"))
        d.send(msg.AcknowledgeSignals(f"e{number}"))
    assert len(d.state.taken) == REMEMBERED
    assert not d.state.signals


def test_what_it_is_not_meant_for(d: Driver) -> None:
    for asked in (
        event(incarnation="another"),
        msg.FindSignal("e", "another"),
        msg.AcknowledgeSignals("e", "another"),
    ):
        assert d.send(asked) == []
        assert isinstance(d.answer, WorkflowNotFoundError)
    d.send(event())
    d.send(msg.Cancel())
    assert d.send(msg.AcknowledgeSignals("e")) == []
    for refused in (event(), event(name="another")):
        assert d.send(refused) == []
        assert isinstance(d.answer, SignalRefusedError)
