"""Events that were sent to a workflow by key, kept in its storage until a task waits for them.

They are blobs of the workflow, and go when it is deleted. Of everything with one name the first
stays: whoever writes reads back what is there.
"""

from __future__ import annotations

import hashlib

from ray_workflows.storage.base import Storage

#: The parts of an event: what was sent, the task that waits for it, and that it has it.
PAYLOAD, TAKER, DONE = "payload", "taker", "done"


class Mailbox:
    """The events of one workflow."""

    def __init__(self, storage: Storage, incarnation: str) -> None:
        self.storage = storage
        self.incarnation = incarnation

    def name(self, key: str, part: str) -> str:
        """A blob key: event keys are any text."""
        return f"mail-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}-{part}"

    def read(self, key: str, part: str) -> bytes | None:
        """A part of an event, or None."""
        blob = self.storage.find_blob(self.incarnation, self.name(key, part))
        return None if blob is None else bytes(self.storage.read_blob(self.incarnation, blob))

    def write(self, key: str, part: str, content: bytes) -> bytes:
        """Store a part durably unless it is there; what is there."""
        name = self.name(key, part)
        blob = self.storage.find_blob(self.incarnation, name)
        if blob is None:
            blob = self.storage.write_blob(self.incarnation, name, [content])
        return bytes(self.storage.read_blob(self.incarnation, blob))

    def put(self, key: str, payload: bytes) -> bytes:
        """Keep what was sent; the payload that the event has, which is that of the first."""
        return self.write(key, PAYLOAD, payload)

    def payload(self, key: str) -> bytes | None:
        """What was sent, or None."""
        return self.read(key, PAYLOAD)

    def take(self, key: str, task_id: str) -> str:
        """Have an event for a task; the task that has it, which is the first that asked."""
        return self.write(key, TAKER, task_id.encode()).decode()

    def finish(self, key: str) -> None:
        """Note that the event is in the workflow's journal."""
        self.write(key, DONE, b"1")

    def is_done(self, key: str) -> bool:
        """Whether the event is in the workflow's journal."""
        return self.storage.find_blob(self.incarnation, self.name(key, DONE)) is not None
