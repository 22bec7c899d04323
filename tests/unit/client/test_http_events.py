"""Events by HTTP as signals: sent, found, acknowledged by a coordinator; and those of 0.1.0."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any

import pytest

from ray_workflows._client.connection import Connection
from ray_workflows._client.http_events import EventTakenError, HTTPEvents, signal_name
from ray_workflows._client.signals import blob_key
from ray_workflows._coordinator.actor import CoordinatorService as Host
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import OtherSignal, Received, TooManySignals
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import (
    SignalRefusedError,
    StorageCorruptError,
    WorkflowNotFoundError,
)
from tests.unit.coordinator.test_failover import Coordinator, World


class HostInHere(Host):
    """The methods of the actor, in front of a coordinator in this process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.lock = threading.Lock()

    def request(self, workflow_id: str, input: msg.Asked) -> Any:
        answers: list[Any] = []
        with self.lock:
            self.coordinator.loop.ask(workflow_id, input, answers.append)
            self.coordinator.step()
        (answer,) = answers
        return answer


class ConnectionInHere(Connection):
    """A client of a coordinator in this process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.host = HostInHere(coordinator)
        self.storage = coordinator.world.storage

    def call(self, method: str, *args: Any) -> Any:
        answer = getattr(self.host, method)(*args)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def world() -> World:
    return World()


def events_of(coordinator: Coordinator) -> HTTPEvents:
    """The events of its workflow ``w``."""
    row = coordinator.world.storage.read_catalog("w")
    assert row is not None
    return HTTPEvents(ConnectionInHere(coordinator), row)


@pytest.fixture
def coordinator(world: World) -> Coordinator:
    coordinator = Coordinator(world, "one", auto_resume=False)
    coordinator.submit("w")
    return coordinator


@pytest.fixture
def events(coordinator: Coordinator) -> HTTPEvents:
    return events_of(coordinator)


KEYS = ["key", "\ud800", "a\nb", "x" * 100_000, "\u00e9" * 300]

SMALL, LARGE = b'{"paid": 10}', json.dumps("x" * 200_000).encode()


@pytest.mark.parametrize("key", KEYS, ids=ascii)
@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=len)
def test_an_event_from_its_sender_to_its_listener(
    events: HTTPEvents, key: str, payload: bytes
) -> None:
    assert events.find(key) is None
    for _ in range(2):
        assert events.send(key, payload, most=1) == Received()
        assert events.find(key) == payload
    assert not events.is_taken(key, payload)
    assert events.send(key, payload + b" ", most=None) == OtherSignal()
    for _ in range(2):
        events.acknowledge(key)
        assert events.is_taken(key, payload)
        assert not events.is_taken(key, payload + b" ")
        assert events.send(key, payload, most=1) == Received(taken=True)
        with pytest.raises(EventTakenError):
            events.find(key)


def test_each_key_has_its_own_name() -> None:
    tried = [*KEYS, "KEY", "key ", "x" * 100_001, f"digest:{hashlib.sha256(b'key').hexdigest()}"]
    assert len({signal_name(key) for key in tried}) == len(tried)


def test_another_coordinator_asks_the_same(
    world: World, coordinator: Coordinator, events: HTTPEvents
) -> None:
    """As after a crash: all of it is in the journal."""
    elsewhere = events_of(Coordinator(world, "other", auto_resume=False))
    assert elsewhere.send("key", SMALL, most=None) == Received()
    world.pass_time(2.0)
    assert events.find("key") == elsewhere.find("key") == SMALL
    elsewhere.acknowledge("key")
    world.pass_time(2.0)
    assert events.is_taken("key", SMALL)


def blob_of(world: World, key: str) -> Blob | None:
    """Where the payload `LARGE` of an event is."""
    name = blob_key(signal_name(key), hashlib.sha256(LARGE).hexdigest())
    return world.storage.find_blob("i-w", name)


def test_an_event_that_is_refused_leaves_nothing(world: World, events: HTTPEvents) -> None:
    events.send("kept", SMALL, most=None)
    assert events.send("key", LARGE, most=1) == TooManySignals(1)
    assert events.send("kept", LARGE, most=None) == OtherSignal()
    assert blob_of(world, "key") is None
    assert blob_of(world, "kept") is None
    assert events.send("key", LARGE, most=2) == Received()
    assert blob_of(world, "key") is not None


def test_a_workflow_that_has_ended(coordinator: Coordinator, events: HTTPEvents) -> None:
    events.send("kept", SMALL, most=None)
    HostInHere(coordinator).cancel("w")
    for key, payload in (("kept", SMALL), ("key", SMALL), ("key", LARGE)):
        with pytest.raises(SignalRefusedError):
            events.send(key, payload, most=None)
    events.acknowledge("kept")


def test_a_workflow_that_was_deleted(world: World, events: HTTPEvents) -> None:
    row = world.storage.read_catalog("w")
    assert row is not None
    world.storage.delete(row.workflow_id, row.incarnation, row.seq)
    other = events_of_nobody(world, events)
    for action in (
        lambda: other.send("key", SMALL, most=None),
        lambda: other.find("key"),
        lambda: other.acknowledge("key"),
    ):
        with pytest.raises(WorkflowNotFoundError):
            action()


def events_of_nobody(world: World, events: HTTPEvents) -> HTTPEvents:
    """The events of a workflow, asked of a coordinator that never had it."""
    other = HTTPEvents.__new__(HTTPEvents)
    other.connection = ConnectionInHere(Coordinator(world, "other", auto_resume=False))
    other.workflow_id, other.incarnation = events.workflow_id, events.incarnation
    return other


def test_a_payload_that_is_damaged(world: World, events: HTTPEvents) -> None:
    events.send("key", LARGE, most=None)
    blob = blob_of(world, "key")
    assert blob is not None
    content = bytes(world.storage.read_blob("i-w", blob))
    world.storage.delete_blobs("i-w")
    world.storage.write_blob("i-w", blob.key, [content[:-1] + b"!"])
    with pytest.raises(StorageCorruptError):
        events.find("key")


def keep_as_0_1_0(world: World, key: str, **parts: bytes) -> None:
    """Blobs as release 0.1.0 wrote them for an event."""
    for part, content in parts.items():
        name = f"mail-{hashlib.sha256(key.encode()).hexdigest()}-{part}"
        world.storage.write_blob("i-w", name, [content])


def test_an_event_that_0_1_0_has_kept_reaches_its_listener(
    world: World, events: HTTPEvents
) -> None:
    keep_as_0_1_0(world, "key", payload=SMALL, taker=b"t")
    assert events.send("key", b"1", most=None) == OtherSignal()
    assert events.find("key") == SMALL
    assert events.find("key") == SMALL
    assert events.send("key", b"1", most=None) == OtherSignal()
    assert events.send("key", SMALL, most=None) == Received()
    events.acknowledge("key")
    assert events.send("key", SMALL, most=None) == Received(taken=True)
    with pytest.raises(EventTakenError):
        events.find("key")


def test_an_event_that_a_listener_of_0_1_0_has_had(world: World, events: HTTPEvents) -> None:
    keep_as_0_1_0(world, "key", payload=SMALL, taker=b"t", done=b"1")
    assert events.send("key", SMALL, most=None) == Received(taken=True)
    assert events.send("key", b"1", most=None) == OtherSignal()
