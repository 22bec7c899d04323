"""What readers see of a workflow that others delete and create anew meanwhile.
Part of `StorageContract`; no backend needs it.
"""

from __future__ import annotations

import threading

from ray_workflows._codec.journal import NO_LINK, encode_entry, link_of
from ray_workflows._model import events as ev
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Value
from ray_workflows.exceptions import WorkflowNotFoundError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.histories import History, unless_deleted
from ray_workflows.testing.builders import OK, in_threads, make_append

#: How often the workflow is created and deleted, and how many entries and bytes it has.
ROUNDS = 8
ENTRIES = 4
BLOB_BYTES = 100_000


class ReaderContract:
    """Readers beside writers."""

    def test_readers_beside_deletions(self, storage: Storage) -> None:
        """A reader sees all of one run of the workflow, or that there is none; never damage."""
        done = threading.Event()
        seen: set[str] = set()

        def churn() -> None:
            try:
                for number in range(ROUNDS):
                    create(storage, number)
                    assert storage.delete("w", incarnation(number), ENTRIES) is OK
            finally:
                done.set()

        def read() -> None:
            while not done.is_set():
                row = storage.read_catalog("w")
                if row is None:
                    continue
                try:
                    events = History(storage, row).events()
                    with unless_deleted(storage, row):
                        blob = blob_of(events)
                        data = None if blob is None else storage.read_blob(row.incarnation, blob)
                except WorkflowNotFoundError:
                    continue
                assert len(events) >= row.seq
                if data is not None:
                    assert bytes(data) == contents(row.incarnation)
                seen.add(row.incarnation)

        in_threads([churn, read, read, read])
        assert seen <= {incarnation(number) for number in range(ROUNDS)}
        assert storage.read_catalog("w") is None


def incarnation(number: int) -> str:
    """The incarnation of a round."""
    return f"i-{number}"


def contents(name: str) -> bytes:
    """The bytes of the blob of an incarnation."""
    return (name.encode() * BLOB_BYTES)[:BLOB_BYTES]


def blob_of(events: list[ev.AnyEvent]) -> Blob | None:
    """The blob of the last event, if that is the result of a task."""
    last = events[-1]
    if isinstance(last, ev.TaskSucceeded) and isinstance(last.value.data, Blob):
        return last.value.data
    return None


def create(storage: Storage, number: int) -> None:
    """Create the workflow of a round with its blob, one entry per commit."""
    name = incarnation(number)
    blob = storage.write_blob(name, "result", [contents(name)])
    link = NO_LINK
    for seq in range(1, ENTRIES + 1):
        last = seq == ENTRIES
        event = ev.TaskSucceeded(1.0, 0, 1, Value(blob)) if last else ev.WorkflowStarted(1.0)
        entry = encode_entry([event], "w", name, seq, link)
        link = link_of(entry)
        status = WorkflowStatus.SUCCESSFUL if last else WorkflowStatus.RUNNING
        append = make_append("w", seq - 1, incarnation=name, entry=entry, status=status)
        assert storage.commit([append]) == [OK]
