"""Events by HTTP, as signals to a workflow: each key names one event.

An event is the only signal of its name, and its id is a digest of its payload. So a repeated event
changes nothing, and one with another payload is refused. It is kept until the listener's result is
durable.
"""

from __future__ import annotations

import hashlib

from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.values import ValueWriter
from ray_workflows._client import old_events
from ray_workflows._client.connection import Connection
from ray_workflows._client.signals import NOTHING, blob_key
from ray_workflows._coordinator.protocol import ENCODER, Sent, SentEvent
from ray_workflows._model.answers import OtherSignal, Received, TooManySignals
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.ids import validate_signal_text
from ray_workflows._model.values import INLINE_LIMIT, Value

#: The answer to an event.
Answer = Received | OtherSignal | TooManySignals


class EventTakenError(Exception):
    """The listener of the event has acknowledged it already."""


def signal_name(key: str) -> str:
    """The name of the signal for a key. Hashed, because names are limited and keys are not."""
    try:
        return validate_signal_text("name", f"http-event:{key}")
    except ValueError:
        return f"http-event-digest:{digest(key.encode(errors='surrogatepass'))}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class HTTPEvents:
    """The events of one incarnation of a workflow.

    All methods block, and raise:
        WorkflowNotFoundError: the workflow was deleted.
        CoordinatorUnavailableError, StorageError: there is no answer now.
    """

    def __init__(self, connection: Connection, row: CatalogRow) -> None:
        self.connection = connection
        self.workflow_id = row.workflow_id
        self.incarnation = row.incarnation

    def send(self, key: str, payload: bytes, *, most: int | None) -> Answer:
        """Send the workflow an event. It is durable when this returns.

        Args:
            key: names the event.
            payload: its contents as canonical bytes.
            most: the most kept signals of the workflow; None: no limit.

        Raises:
            SignalRefusedError: the workflow has ended without the event.
        """
        answer = self.left(key, payload)
        if answer is not None:
            return answer
        name, signal_id = signal_name(key), digest(payload)
        pickled = pickle_value(payload, where="payload of an event")
        if pickled.nbytes > INLINE_LIMIT:
            # Ask first: the blob of a refused event would stay until the workflow is deleted.
            answer = self.put(name, signal_id, NOTHING, most=most, asks=True)
            if answer is not None:
                return answer
        writer = ValueWriter(self.connection.storage, self.incarnation)
        value = writer.write_pickled(pickled, key=blob_key(name, signal_id), where="an event")
        answer = self.put(name, signal_id, value, most=most, asks=False)
        assert answer is not None
        return answer

    def is_taken(self, key: str, payload: bytes) -> bool:
        """Whether a listener has the event in its durable result."""
        answer = self.put(signal_name(key), digest(payload), NOTHING, most=None, asks=True)
        return isinstance(answer, Received) and answer.taken

    def put(
        self, name: str, signal_id: str, value: Value, *, most: int | None, asks: bool
    ) -> Answer | None:
        sent = Sent(self.workflow_id, name, signal_id, value, self.incarnation)
        answer: Answer | None = self.connection.call(
            "send_event", ENCODER.encode(SentEvent(sent, most, asks))
        )
        return answer

    def find(self, key: str) -> bytes | None:
        """The payload of an unacknowledged event, or None.

        Raises:
            EventTakenError: it was acknowledged.
            StorageCorruptError: it is damaged.
        """
        name = signal_name(key)
        found = self.find_signal(name)
        if found is None:
            left = old_events.payload(self.connection.storage, self.incarnation, key)
            if left is None:
                return None
            self.send(key, left, most=None)
            found = self.find_signal(name)
        if found is None or found.value is None:
            raise EventTakenError
        reader = self.connection.values(self.incarnation)
        payload: bytes = reader.read(found.value, where=f"event {key!r}")
        return payload

    def find_signal(self, name: str) -> Received | None:
        found: Received | None = self.connection.call(
            "find_signal", self.workflow_id, name, self.incarnation
        )
        return found

    def acknowledge(self, key: str) -> None:
        """Record that the listener's result with the event is durable."""
        self.connection.call(
            "acknowledge_signals", self.workflow_id, signal_name(key), self.incarnation
        )

    def left(self, key: str, payload: bytes) -> Answer | None:
        """The answer to an event if 0.1.0 has kept an event for its key, and that decides it."""
        storage = self.connection.storage
        left = old_events.payload(storage, self.incarnation, key)
        if left is None:
            return None
        if left != payload:
            return OtherSignal()
        return Received(taken=True) if old_events.is_done(storage, self.incarnation, key) else None
