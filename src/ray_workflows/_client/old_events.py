"""Reads HTTP events that release 0.1.0 kept, as blobs of the workflow. Writes none.

The first event of a key counts. An acknowledged event has a second blob.
"""

from __future__ import annotations

import hashlib

from ray_workflows.storage.parts import BlobStore


def payload(storage: BlobStore, incarnation: str, key: str) -> bytes | None:
    """The payload that was sent under a key, or None."""
    blob = storage.find_blob(incarnation, blob_name(key, "payload"))
    return None if blob is None else bytes(storage.read_blob(incarnation, blob))


def is_done(storage: BlobStore, incarnation: str, key: str) -> bool:
    """Whether a listener has acknowledged the event."""
    return storage.find_blob(incarnation, blob_name(key, "done")) is not None


def blob_name(key: str, part: str) -> str:
    return f"mail-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}-{part}"
