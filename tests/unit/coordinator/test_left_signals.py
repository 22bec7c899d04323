"""Signals that are left for another coordinator: what they cost, and that they keep nobody waiting.

Coordinators of `test_orphans`, on one storage.
"""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._codec.journal import Chain
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Received
from ray_workflows._model.values import Value
from ray_workflows.exceptions import SignalRefusedError, WorkflowNotFoundError
from tests.unit.coordinator.test_failover import Coordinator, World


@pytest.fixture
def world() -> World:
    return World()


def send(
    coordinator: Coordinator, signal_id: str, to: str = "w", incarnation: str = ""
) -> list[Any]:
    answers: list[Any] = []
    value = Value(signal_id.encode())
    coordinator.loop.ask(to, msg.Signal("s", signal_id, value, incarnation), answers.append)
    return answers


def received(world: World) -> list[list[str]]:
    """Ids of signals, by the entry that they are in."""
    entries = world.storage.read_journal("i-w")
    chain = Chain("w", "i-w")
    found = [
        [e.signal_id for e in chain.decode(entry) if isinstance(e, ev.SignalReceived)]
        for entry in entries
    ]
    return [ids for ids in found if ids]


def test_many_signals_read_the_journal_once(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    other = Coordinator(world, "other", auto_resume=False)
    owner.submit("w")
    world.storage.calls.clear()
    answers = [send(other, str(number)) for number in range(200)]
    other.step()
    assert world.storage.calls["read_journal"] == 1
    assert all(answer == [Received()] for answer in answers)
    ids = [signal_id for entry in received(world) for signal_id in entry]
    assert sorted(ids, key=int) == [str(number) for number in range(200)]
    assert len(received(world)) <= 3
    world.pass_time(2.0)
    assert len(owner.loop.active["w"].state.signals["s"]) == 200


def test_a_stream_of_signals_lets_others_have_their_turn(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    other = Coordinator(world, "other", auto_resume=False)
    owner.submit("w")
    sent: list[list[Any]] = [send(other, "first")]
    canceled: list[Any] = []
    steps = 0
    while not canceled:
        steps += 1
        assert steps < 100, "the request to cancel is never answered"
        if steps == 5:
            other.loop.ask("w", msg.Cancel(), canceled.append)
        # The next one is there before the last one is done with.
        sent.append(send(other, str(steps)))
        other.loop.step()
        if other.answers:
            other.answers.pop(0)()
    assert canceled == [None]
    other.step()
    world.pass_time(1.0)
    assert all(len(answers) == 1 for answers in sent)


def test_what_it_is_not_meant_for(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    other = Coordinator(world, "other", auto_resume=False)
    owner.submit("w")
    for coordinator in (owner, other):
        # Its value is in blobs of a workflow that had the id before.
        answers = send(coordinator, "1", incarnation="i-before")
        nobody = send(coordinator, "1", to="nobody")
        coordinator.step()
        (error,) = answers
        assert isinstance(error, WorkflowNotFoundError)
        assert isinstance(nobody[0], WorkflowNotFoundError)
    assert received(world) == []
    # In the same step, each in its turn.
    early = send(owner, "2", incarnation="i-w")
    owner.loop.ask("w", msg.Cancel(), lambda answer: None)
    late, later = send(owner, "3", incarnation="i-w"), send(other, "4", incarnation="i-w")
    owner.step()
    other.step()
    assert early == [Received()]
    assert isinstance(late[0], SignalRefusedError)
    assert isinstance(later[0], SignalRefusedError)
    assert received(world) == [["2"]]


def test_one_that_ended_the_workflow_may_be_sent_again(world: World) -> None:
    """As Ray does when the coordinator dies before it has answered."""
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    assert not send(owner, "1")
    owner.loop.ask("w", msg.Cancel(), lambda answer: None)
    owner.step()
    again, another = send(owner, "1"), send(owner, "2")
    owner.step()
    assert again == [Received()]
    assert isinstance(another[0], SignalRefusedError)
    assert received(world) == [["1"]]
