"""Sending a signal: its value is durable before the coordinator hears of it."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.values import ValueWriter
from ray_workflows._client.connection import Connection
from ray_workflows._client.outputs import read_row
from ray_workflows._coordinator.protocol import ENCODER, Sent
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.storage.histories import unless_deleted

#: In place of a value that nobody will look at.
NOTHING = Value(b"")


def send(
    connection: Connection, workflow_id: str, name: str, value: Any, signal_id: str | None
) -> None:
    """Give a workflow a signal; it is kept when this returns.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        SignalRefusedError: it has succeeded, or was canceled.
        SerializationError: the value can't be stored.
    """
    where = f"value of signal '{name}'"
    pickled = pickle_value(value, where=where)
    # Ray repeats a call whose answer was lost, with this same id.
    signal_id = uuid.uuid4().hex if signal_id is None else signal_id
    row = read_row(connection.storage, workflow_id)
    incarnation = row.incarnation
    if row.status is WorkflowStatus.SUCCESSFUL:
        # What is written for it now would stay until it is deleted. It may have come before.
        call(connection, Sent(workflow_id, name, signal_id, NOTHING, incarnation))
        return
    writer = ValueWriter(connection.storage, incarnation)
    with unless_deleted(connection.storage, row):
        stored = writer.write_pickled(pickled, key=blob_key(name, signal_id), where=where)
    call(connection, Sent(workflow_id, name, signal_id, stored, incarnation))


def call(connection: Connection, sent: Sent) -> None:
    connection.call("signal", ENCODER.encode(sent))


def blob_key(name: str, signal_id: str) -> str:
    """The same for a signal that is sent again: its value is stored once."""
    text = f"{len(name)}:{name}{signal_id}"
    return f"signal-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
