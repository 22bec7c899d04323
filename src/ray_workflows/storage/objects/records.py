"""Encodes the objects of `PutOnceStorage`: journal segments, rows, holders.
Each has its format, a checksum and its own key, so that decoding detects damage and exchanged
objects. No input or output here.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any, TypeVar

import msgspec

from ray_workflows._model.catalog import CatalogRow, Holder
from ray_workflows.exceptions import StorageCorruptError

#: The first byte of every object. A later format has another one.
FORMAT = b"\x01"


class Row(msgspec.Struct, array_like=True, omit_defaults=True):
    """A catalog row; the metadata as JSON, which keeps integers of any size.

    ``key``, in all records, is the key that the object was written under. It is empty in objects of
    releases before 0.2.0 and in records that are part of another object.
    """

    row: CatalogRow
    metadata: str
    key: str = ""


class Segment(msgspec.Struct, array_like=True, omit_defaults=True):
    """One journal entry with the catalog row after it: both are written by one put.

    ``listed_as`` is the key of this row's index entry, ``replaced`` are the keys of earlier entries
    that may still exist. ``nonce`` makes the bytes unique to the attempt to write them. A segment
    without a row is a tombstone: the workflow is deleted.
    """

    nonce: str
    workflow_id: str
    commit_id: str = ""
    listed_as: str = ""
    replaced: tuple[str, ...] = ()
    row: Row | None = None
    entry: bytes = b""
    key: str = ""

    @property
    def entries(self) -> tuple[str, ...]:
        """The keys of all index entries that it names, the current one last."""
        return (*self.replaced, self.listed_as) if self.listed_as else self.replaced

    @property
    def tombstone(self) -> bool:
        """Whether it stands for a deleted journal."""
        return self.row is None


class Pointer(msgspec.Struct, array_like=True):
    """Which incarnation a workflow id means."""

    nonce: str
    workflow_id: str
    incarnation: str
    key: str = ""


class Grave(msgspec.Struct, array_like=True):
    """The tombstone of a deleted incarnation, with its index entries.

    ``done``: all is removed but the empty objects of its numbers.
    """

    incarnation: str
    workflow_id: str
    entries: tuple[str, ...] = ()
    done: bool = False
    key: str = ""


class Lease(msgspec.Struct, array_like=True):
    """A holder and how long its lease is, in seconds from when the object was written."""

    holder: Holder
    seconds: float
    key: str = ""


class Layout(msgspec.Struct):
    """The object that marks a storage as one of ours. Later releases increase the number."""

    nonce: str
    layout: int = 1
    key: str = ""


Record = TypeVar("Record", Row, Segment, Pointer, Grave, Lease, Layout)


def new_nonce() -> str:
    """A random text for one attempt to write an object."""
    return os.urandom(16).hex()


def tombstone(last: Segment) -> Segment:
    """The segment that deletes a journal, after its last one; it keeps the keys of its entries."""
    return Segment(new_nonce(), last.workflow_id, replaced=last.entries)


def encode(record: Row | Segment | Pointer | Grave | Lease | Layout, key: str) -> bytes:
    """The bytes of a record that is written under a key."""
    record.key = key
    body = msgspec.msgpack.encode(record)
    return FORMAT + checksum_of(FORMAT, body) + body


def checksum_of(format: bytes, body: bytes | memoryview) -> bytes:
    """The checksum behind the format byte of an object.

    That of each later format covers the format byte too. Otherwise a flipped bit in this byte could
    not be told from an object of a later release. That of format 1 covers only the body, as in
    release 0.1.0.
    """
    start = 0 if format == FORMAT else zlib.crc32(format)
    return zlib.crc32(body, start).to_bytes(4, "big")


def decode(kind: type[Record], data: bytes, key: str) -> Record:
    """The record that was encoded.

    Raises:
        StorageCorruptError: the bytes are not what was written under the key, or a later release
            wrote them; names the key. It is no `StorageConfigError`, because all other objects can
            be read.
    """
    record = unpack(kind, data, key)
    if record.key not in ("", key):
        raise StorageCorruptError(
            f"{key} is damaged: it has the bytes that were written as {record.key}. Restore both "
            f"from a backup or earlier versions of the objects."
        )
    return record


def unpack(kind: type[Record], data: bytes, key: str) -> Record:
    """The record of these bytes, without a check of its key; errors as in `decode`."""
    format, checksum, body = data[:1], data[1:5], memoryview(data)[5:]
    if not body or checksum != checksum_of(format, body):
        raise StorageCorruptError(
            f"{key} is damaged: its {len(data)} bytes have another checksum than what was written. "
            f"Restore it from a backup or an earlier version of the object."
        )
    if format != FORMAT:
        raise StorageCorruptError(
            f"{key} was written by a newer release of ray-workflows. Upgrade ray-workflows here."
        )
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as reason:
        raise StorageCorruptError(f"{key} can't be read: {reason}.") from reason


def pack_row(row: CatalogRow) -> Row:
    """A row as it is stored."""
    metadata = json.dumps(row.metadata) if row.metadata else "{}"
    stored = msgspec.structs.replace(
        row,
        metadata={},
        error=None if row.error is None else clean(row.error),
        name=clean(row.name),
        tags=dict(row.tags),
    )
    return Row(stored, metadata)


def unpack_row(stored: Row) -> CatalogRow:
    """The row that was stored, with dicts of its own."""
    try:
        metadata: dict[str, Any] = json.loads(stored.metadata)
    except (ValueError, RecursionError) as reason:
        raise StorageCorruptError(
            f"The metadata of {stored.row.workflow_id!r} can't be read: {reason}."
        ) from reason
    return msgspec.structs.replace(stored.row, metadata=metadata, tags=dict(stored.row.tags))


def clean(text: str) -> str:
    """A text without surrogates, which UTF-8 can't encode; file names in messages may have them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
