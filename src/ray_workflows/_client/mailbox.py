"""Events that were sent to a workflow by key, kept in its storage until a task waits for them.

They are blobs of the workflow, and go when it is deleted. Of everything with one name the first
stays: whoever writes reads back what is there. No journal knows their checksums, so each has its
own in front.
"""

from __future__ import annotations

import hashlib

import xxhash

from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.base import Storage

#: The parts of an event: what was sent, the task that waits for it, and that it has it.
PAYLOAD, TAKER, DONE = "payload", "taker", "done"

#: What a part with a checksum begins with. Those of 0.1.0 have none, and begin with other bytes.
SEAL = b"\0"
DIGEST_SIZE = 8


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
        name = self.name(key, part)
        blob = self.storage.find_blob(self.incarnation, name)
        if blob is None:
            return None
        return self.opened(name, bytes(self.storage.read_blob(self.incarnation, blob)))

    def write(self, key: str, part: str, content: bytes) -> bytes:
        """Store a part durably unless it is there; what is there."""
        name = self.name(key, part)
        blob = self.storage.find_blob(self.incarnation, name)
        if blob is None:
            blob = self.storage.write_blob(self.incarnation, name, [self.sealed(name, content)])
        return self.opened(name, bytes(self.storage.read_blob(self.incarnation, blob)))

    def sealed(self, name: str, content: bytes) -> bytes:
        """A part as it is stored: behind a checksum of what it is and where it belongs."""
        place = f"{self.incarnation}/{name}/".encode()
        return SEAL + xxhash.xxh3_64_digest(place + content) + content

    def opened(self, name: str, data: bytes) -> bytes:
        """The content of a part.

        Raises:
            StorageCorruptError: it is not what was written there.
        """
        if not data.startswith(SEAL):
            return data
        content = data[len(SEAL) + DIGEST_SIZE :]
        if data != self.sealed(name, content):
            raise StorageCorruptError(
                f"The blob {name!r} of workflow incarnation {self.incarnation!r}, an event that "
                f"was sent to the workflow, is not what was written. Restore it from a backup, or "
                f"delete it and send the event again."
            )
        return content

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
