"""Blobs as rows of PostgreSQL: chunked, written whole or not at all, verified when read.
Knows nothing of journals and catalog: callers decide what may be deleted.
"""

from __future__ import annotations

import itertools
import secrets
import time
import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from psycopg import Rollback

from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError
from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.parts import BlobStore
from ray_workflows.storage.postgres.home import PostgresHome
from ray_workflows.storage.postgres.pool import Connection, Patience
from ray_workflows.storage.validation import (
    check_name,
    check_read,
    checked,
    describe_blob,
    slices,
)

#: The bytes of each chunk but the last. Large enough that a row's overhead does not matter, small
#: enough that client and server can hold a few at a time.
CHUNK_BYTES = 1024 * 1024

#: How many chunks `stream_blob` reads at once.
CHUNKS_AT_ONCE = 8

COLUMN_TYPES = ("uuid", "int4", "bytea")


class BlobRows(BlobStore):
    """The blobs of one schema."""

    home: PostgresHome

    def __init__(self, home: PostgresHome) -> None:
        self.home = home
        self.pool = home.pool
        self.target = home.target
        self.queries = home.queries
        self.patience = Patience()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.home,)

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob durably unless the key exists; return the description of what is stored."""
        check_name("incarnation", incarnation)
        check_name("blob key", key)
        rows = packed(chunks)
        first = next(rows, b"")
        # Read two chunks before talking to the server: a failing producer then costs no request.
        second = next(rows, None)
        if second is None:
            blob = self.write_small(incarnation, key, first)
        else:
            blob = self.find_blob(incarnation, key)
            if blob is None:
                blob = self.write_large(incarnation, key, itertools.chain((first, second), rows))
        blob = blob or self.find_blob(incarnation, key)
        if blob is None:
            raise StorageUnavailableError(
                f"Blob {key!r} of {incarnation!r} in {self.target.url} was deleted while it was "
                f"written. Write it again if it is still needed."
            )
        return blob

    def write_small(self, incarnation: str, key: str, data: bytes | memoryview) -> Blob | None:
        """Write a blob of one chunk, or return None if there is one of this key."""
        size = len(data)
        blob = Blob(key, size, str(Checksum(data)))
        values = {
            "id": new_blob_id(),
            "incarnation": incarnation,
            "key": key,
            "size": size,
            "checksum": blob.checksum,
            "data": data,
        }
        with self.pool.use() as connection, self.patience.over(connection):
            found = connection.first(self.queries["write_blob"], values)
        return blob if found[0] else None

    def write_large(
        self, incarnation: str, key: str, rows: Iterable[bytes | memoryview]
    ) -> Blob | None:
        """Write a blob, or return None if another writer was faster."""
        checksum = Checksum()
        size = 0
        blob_id = new_blob_id()
        with (
            self.pool.use() as connection,
            self.patience.over(connection),
            connection.transaction() as transaction,
        ):
            connection.execute(self.queries["configure_transaction"])
            with connection.cursor().copy(self.queries["copy_chunks"]) as copy:
                copy.set_types(COLUMN_TYPES)
                for number, data in enumerate(rows):
                    checksum.update(data)
                    size += len(data)
                    copy.write_row((blob_id, number, data))
            blob = Blob(key, size, str(checksum))
            values = {
                "id": blob_id,
                "incarnation": incarnation,
                "key": key,
                "size": size,
                "checksum": blob.checksum,
            }
            if connection.first(self.queries["write_blob_header"], values) is None:
                # The rollback removes the chunks.
                raise Rollback(transaction)
            return blob
        return None

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a stored blob as its writer gave it, or None."""
        found = self.pool.read(lambda connection: self.look_up(connection, incarnation, key))
        return None if found is None else Blob(*found[:3])

    def look_up(self, connection: Connection, incarnation: str, key: str) -> Any:
        """The row of a blob."""
        values = {
            "incarnation": check_name("incarnation", incarnation),
            "key": check_name("blob key", key),
        }
        return connection.first(self.queries["find_blob"], values)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, checked against its size and checksum; read-only."""
        what = f"{describe_blob(incarnation, blob)} in {self.target.url}"

        def work(connection: Connection) -> memoryview:
            found = self.look_up(connection, incarnation, blob.key)
            if found is None:
                raise StorageCorruptError(f"The {what} is missing.")
            if found[1] != blob.size:
                raise StorageCorruptError(
                    f"The {what} was written with {found[1]} bytes, expected {blob.size}."
                )
            # Filled in place: memory holds the value once, and a chunk or two.
            data = bytearray(blob.size)
            end = 0
            checksum = Checksum(like=blob.checksum)
            with connection.cursor(binary=True) as cursor:
                for (chunk,) in cursor.stream(self.queries["read_chunks"], {"id": found[3]}):
                    checksum.update(chunk)
                    # Cut: assigning a longer slice would grow the buffer.
                    data[end : end + len(chunk)] = chunk[: blob.size - end]
                    end += len(chunk)
            check_read(end, checksum, blob, what)
            return memoryview(data).toreadonly()

        return self.pool.read(work)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, checked at the end."""
        what = f"{describe_blob(incarnation, blob)} in {self.target.url}"
        return checked(self.pieces(incarnation, blob, what), blob, what)

    def pieces(self, incarnation: str, blob: Blob, what: str) -> Iterator[memoryview]:
        """The chunks of a blob, unchecked; each query reads `CHUNKS_AT_ONCE`."""
        found = self.pool.read(lambda connection: self.look_up(connection, incarnation, blob.key))
        if found is None:
            raise StorageCorruptError(f"The {what} is missing.")
        chunks = -(-blob.size // CHUNK_BYTES)
        for first in range(0, chunks, CHUNKS_AT_ONCE):
            values = {"id": found[3], "first": first, "end": first + CHUNKS_AT_ONCE}
            yield from self.pool.read(partial(self.read_chunks, values))

    def read_chunks(self, values: dict[str, Any], connection: Connection) -> list[memoryview]:
        """Some chunks, in order."""
        with connection.cursor(binary=True) as cursor:
            rows = cursor.execute(self.queries["read_some_chunks"], values).fetchall()
        return [memoryview(data) for (data,) in rows]

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation."""
        values = {"incarnation": check_name("incarnation", incarnation)}
        with self.pool.use() as connection, connection.patient():
            connection.execute(self.queries["delete_blobs"], values)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations whose newest blob is older than the grace period."""
        grace = {"grace_seconds": float(grace_seconds)}
        rows = self.pool.read(
            lambda connection: connection.execute(self.queries["old_blobs"], grace).fetchall()
        )
        return [incarnation for (incarnation,) in rows]


def new_blob_id() -> uuid.UUID:
    """A unique id. Later ids are larger, so that the index grows at its end."""
    milliseconds = time.time_ns() // 1_000_000
    return uuid.UUID(int=(milliseconds << 80) | secrets.randbits(80))


def packed(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes in chunks of `CHUNK_BYTES`. Large pieces are not copied."""
    pending = bytearray()
    for piece in slices(chunks):
        start = 0
        if pending:
            start = min(CHUNK_BYTES - len(pending), len(piece))
            pending += piece[:start]
            if len(pending) == CHUNK_BYTES:
                yield bytes(pending)
                pending.clear()
        while len(piece) - start >= CHUNK_BYTES:
            yield piece[start : start + CHUNK_BYTES]
            start += CHUNK_BYTES
        pending += piece[start:]
    if pending:
        yield bytes(pending)
