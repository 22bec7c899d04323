"""Sends signals: stores the value before the call to the coordinator."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from ray_workflows._capture.pickling import Pickled, pickle_value
from ray_workflows._capture.values import ValueWriter
from ray_workflows._client.connection import Connection
from ray_workflows._coordinator.protocol import ENCODER, Sent
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.storage.histories import unless_deleted

#: The value of a signal that no task can take any more.
NOTHING = Value(b"")


def pickle_signal(name: str, value: Any) -> Pickled:
    """Pickle the value of a signal, to send it to one workflow or to many.

    Raises:
        SerializationError: it can't be stored.
    """
    return pickle_value(value, where=described(name))


def described(name: str) -> str:
    """The name of a signal's value in errors."""
    return f"value of signal '{name}'"


def send(
    connection: Connection, row: CatalogRow, name: str, pickled: Pickled, signal_id: str | None
) -> None:
    """Send a workflow a signal. When this returns, the signal is durable.

    Raises:
        WorkflowNotFoundError: the workflow was deleted.
        SignalRefusedError: it has succeeded, or was canceled.
    """
    workflow_id, incarnation = row.workflow_id, row.incarnation
    # Ray repeats a call whose answer was lost, with this same id.
    signal_id = uuid.uuid4().hex if signal_id is None else signal_id
    if row.status is WorkflowStatus.SUCCESSFUL:
        # Store no value, which would stay until the workflow is deleted. Call all the same: the
        # signal may be a repetition, which is no error.
        call(connection, Sent(workflow_id, name, signal_id, NOTHING, incarnation))
        return
    writer = ValueWriter(connection.storage, incarnation)
    key = blob_key(name, signal_id)

    def write() -> Value:
        with unless_deleted(connection.storage, row):
            return writer.write_pickled(pickled, key=key, where=described(name))

    stored = connection.patiently(write)
    call(connection, Sent(workflow_id, name, signal_id, stored, incarnation))


def call(connection: Connection, sent: Sent) -> None:
    connection.call("signal", ENCODER.encode(sent))


def blob_key(name: str, signal_id: str) -> str:
    """The key is the same if a signal is sent again, so that its value is stored once."""
    text = f"{len(name)}:{name}{signal_id}"
    return f"signal-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
