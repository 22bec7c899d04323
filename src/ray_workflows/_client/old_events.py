"""Events by HTTP as release 0.1.0 kept them: blobs of the workflow. They are read, and never
written.

The first event of a key stays. An event that its listener has acknowledged has a second blob.
"""

from __future__ import annotations

import hashlib

from ray_workflows.storage.parts import BlobStore


def payload(storage: BlobStore, incarnation: str, key: str) -> bytes | None:
    """What was sent under a key, or None."""
    blob = storage.find_blob(incarnation, blob_name(key, "payload"))
    return None if blob is None else bytes(storage.read_blob(incarnation, blob))


def is_done(storage: BlobStore, incarnation: str, key: str) -> bool:
    """Whether the event is the durable result of a listener."""
    return storage.find_blob(incarnation, blob_name(key, "done")) is not None


def blob_name(key: str, part: str) -> str:
    return f"mail-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}-{part}"
