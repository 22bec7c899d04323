"""Blobs in an object store: written once, streamed in parts, checked when read.

A small blob is one object. A large one is uploaded in parts under a name of its own, because
parts can't be uploaded on condition; then a small object, put if absent, says which upload counts.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError
from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.objects.bucket import Bucket
from ray_workflows.storage.objects.bucket_client import LARGE_BYTES, RemoteOperations
from ray_workflows.storage.objects.client import Found
from ray_workflows.storage.parts import BlobStore
from ray_workflows.storage.validation import (
    check,
    check_name,
    checked,
    describe_blob,
    slices,
)

BLOBS = "blobs"
PARTS = "parts"

#: A blob of up to this size is one object, put at once.
WHOLE_BYTES = 8 * 1024 * 1024
#: The size of upload parts in bytes, and how many are sent at once. S3 takes 10,000 parts, 160 GB.
PART_BYTES = 16 * 1024 * 1024
PARTS_AT_ONCE = 4

MAGIC = b"rwb1"


class Head(msgspec.Struct, array_like=True):
    """The header of a blob's object. ``part``: the key of the upload that has the bytes; empty if
    they follow here. ``where``: the object's own key; empty in objects of releases before 0.2.0."""

    nonce: str
    size: int
    checksum: str
    part: str = ""
    where: str = ""


class ObjectBlobs(BlobStore):
    """Blobs as ``blobs/<incarnation>/<key>``, the uploads of large ones below ``parts/``."""

    home: Bucket

    def __init__(self, home: Bucket, whole_bytes: int = WHOLE_BYTES) -> None:
        self.home = home
        self.operations: RemoteOperations = home.operations
        self.whole_bytes = whole_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.home, self.whole_bytes)

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob durably unless the key exists; return the description of what is stored."""
        where = blob_key(incarnation, key)
        stored = self.head(incarnation, key)
        if stored is not None:
            return described(key, stored)
        checksum = Checksum()
        gathered = bytearray()
        pieces = slices(chunks)
        for piece in pieces:
            checksum.update(piece)
            gathered += piece
            if len(gathered) > self.whole_bytes:
                break
        head = Head(uuid.uuid4().hex, len(gathered), "", where=where)
        if len(gathered) > self.whole_bytes:
            head.part = f"{PARTS}/{incarnation}/{key}.{head.nonce}"
            head.size = self.upload(head.part, gathered, pieces, checksum)
            gathered = bytearray()
        head.checksum = str(checksum)
        if self.operations.put_if_absent(where, with_head(head, gathered)):
            return described(key, head)
        if head.part:
            self.operations.delete([head.part])
        stored = self.head(incarnation, key)
        if stored is None:
            raise StorageUnavailableError(
                f"{where} was deleted while it was written. Write it again if it is still needed."
            )
        return described(key, stored)

    def upload(
        self,
        part: str,
        begun: bytearray,
        pieces: Iterator[memoryview],
        checksum: Checksum,
    ) -> int:
        """Upload ``begun`` and the remaining pieces. Returns the number of bytes."""
        import obstore

        size = 0
        with self.operations.errors(part):
            store = self.operations.store(LARGE_BYTES + 1)
            writer = obstore.open_writer(
                store, part, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )
        try:
            for piece in self.rest(begun, pieces, checksum):
                size += piece.nbytes
                with self.operations.errors(part):
                    # The writer copies: the view's memory may change afterwards.
                    writer.write(piece)
        except BaseException:
            # Only a completed upload can be deleted. An incomplete one stays, invisible and paid
            # for, until a lifecycle rule of the bucket aborts it.
            with contextlib.suppress(Exception):
                writer.close()
            with contextlib.suppress(StorageUnavailableError):
                self.operations.delete([part])
            raise
        with self.operations.errors(part):
            writer.close()
        return size

    def rest(
        self, begun: bytearray, pieces: Iterator[memoryview], checksum: Checksum
    ) -> Iterator[memoryview]:
        """``begun``, then the remaining pieces, which it adds to the checksum."""
        yield memoryview(begun)
        for piece in pieces:
            checksum.update(piece)
            yield piece

    def found(self, incarnation: str, key: str) -> tuple[Head, Found] | None:
        """The head of a blob and its object."""
        where = blob_key(incarnation, key)
        object = self.operations.get(where)
        if object is None:
            return None
        length = int.from_bytes(object.data[4:8], "big")
        try:
            if object.data[:4] != MAGIC:
                raise ValueError("it does not begin as a blob does")
            head = msgspec.msgpack.decode(object.data[8 : 8 + length], type=Head)
            if head.where not in ("", where):
                raise ValueError(f"it has the bytes that were written as {head.where}")
            return head, object
        except (ValueError, msgspec.MsgspecError) as reason:
            raise StorageCorruptError(f"{where} can't be read: {reason}.") from reason

    def head(self, incarnation: str, key: str) -> Head | None:
        """The head of a blob, or None if there is none."""
        found = self.found(incarnation, key)
        return None if found is None else found[0]

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, checked against its size and checksum; read-only."""
        what = f"{describe_blob(incarnation, blob)} ({blob_key(incarnation, blob.key)})"
        head, object = self.expected(incarnation, blob, what)
        if head.part:
            view = self.download(head.part, blob.size, what)
        else:
            start = 8 + int.from_bytes(object.data[4:8], "big")
            view = memoryview(object.data)[start:]
        check(view, blob, what)
        return view

    def expected(self, incarnation: str, blob: Blob, what: str) -> tuple[Head, Found]:
        """The head of a blob and its object; raises if its size is not the expected one."""
        found = self.found(incarnation, blob.key)
        if found is None:
            raise StorageCorruptError(f"The {what} is missing.")
        if found[0].size != blob.size:
            raise StorageCorruptError(
                f"The {what} has {found[0].size} bytes, expected {blob.size}: it was overwritten."
            )
        return found

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, checked at the end."""
        what = f"{describe_blob(incarnation, blob)} ({blob_key(incarnation, blob.key)})"
        return checked(self.pieces(incarnation, blob, what), blob, what)

    def pieces(self, incarnation: str, blob: Blob, what: str) -> Iterator[memoryview]:
        """The bytes of a blob as they are in the store, one range after the other."""
        head, object = self.expected(incarnation, blob, what)
        if not head.part:
            start = 8 + int.from_bytes(object.data[4:8], "big")
            yield memoryview(object.data)[start:]
            return
        for start in range(0, blob.size, PART_BYTES):
            yield memoryview(self.fetch_range(head.part, start, blob.size, what))

    def fetch_range(self, part: str, start: int, size: int, what: str) -> Any:
        """A range of an upload: `PART_BYTES` of it, or what there is until its end."""
        import obstore

        end = min(start + PART_BYTES, size)
        try:
            with self.operations.errors(part):
                store = self.operations.store(LARGE_BYTES + 1)
                data = obstore.get_range(store, part, start=start, end=end)
        except FileNotFoundError:
            raise StorageCorruptError(f"The {what} is missing: there is no {part}.") from None
        if len(data) != end - start:
            raise StorageCorruptError(
                f"The {what} is truncated: {part} ends before byte {end} of {size}."
            )
        return data

    def download(self, part: str, size: int, what: str) -> memoryview:
        """The bytes of an upload, some ranges at once into one buffer."""
        buffer = bytearray(size)

        def fetch(start: int) -> None:
            data = memoryview(self.fetch_range(part, start, size, what))
            buffer[start : start + data.nbytes] = data

        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            for _ in pool.map(fetch, range(0, size, PART_BYTES)):
                pass
        return memoryview(buffer).toreadonly()

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a stored blob, or None. It is not checked: `read_blob` does that."""
        head = self.head(incarnation, key)
        return None if head is None else described(key, head)

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation."""
        for prefix in (BLOBS, PARTS):
            below = f"{prefix}/{check_name('incarnation', incarnation)}"
            names = [listed.name for listed in self.operations.list(below)]
            self.operations.delete([f"{below}/{name}" for name in names])

    def incarnations(self) -> list[str]:
        """All incarnations with blobs or uploads, in order."""
        found = {*self.operations.list_prefixes(BLOBS), *self.operations.list_prefixes(PARTS)}
        return sorted(found)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations whose newest blob is older than the grace period."""
        before = self.home.holders.fresh_now() - grace_seconds
        newest = ((name, self.newest(name)) for name in self.incarnations())
        return [name for name, time in newest if time is not None and time <= before]

    def newest(self, incarnation: str) -> float | None:
        """When the newest blob or upload of an incarnation was written, on the store's clock."""
        times = [
            listed.modified
            for prefix in (BLOBS, PARTS)
            for listed in self.operations.list(f"{prefix}/{incarnation}")
        ]
        return max(times, default=None)

    def remove_temporaries(self, incarnation: str, before: float) -> None:
        """Remove old uploads that no blob refers to."""
        old = [
            listed.name
            for listed in self.operations.list(f"{PARTS}/{incarnation}")
            if listed.modified <= before
        ]
        for name in old:
            key, _, nonce = name.rpartition(".")
            head = self.head(incarnation, key)
            if head is None or head.nonce != nonce:
                self.operations.delete([f"{PARTS}/{incarnation}/{name}"])


def blob_key(incarnation: str, key: str) -> str:
    """Where a blob is."""
    return f"{BLOBS}/{check_name('incarnation', incarnation)}/{check_name('blob key', key)}"


def described(key: str, head: Head) -> Blob:
    """The description by which values refer to a blob."""
    return Blob(key, head.size, head.checksum)


def with_head(head: Head, data: bytes | bytearray) -> bytes:
    """The bytes of a blob's object."""
    packed = msgspec.msgpack.encode(head)
    return b"".join((MAGIC, len(packed).to_bytes(4, "big"), packed, data))
