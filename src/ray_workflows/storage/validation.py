"""Helpers that all backends share: check arguments and read bytes, and page rows.
No input or output here; a backend of your own may use it or not.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ray_workflows._model.catalog import Append, Holder
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.checksums import Checksum

logger = logging.getLogger(__name__)

#: A blob key or incarnation becomes a file or object name, so it has to be harmless as one.
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\Z")

#: File systems stop at 255 bytes; this leaves room for what a backend puts around the name.
MAX_NAME_LENGTH = 200

#: Buffers are hashed and written by slices of this many bytes: a system call takes no more than
#: 2 GB at once, and a slice that was just hashed is still in the processor's cache.
SLICE_BYTES = 4 * 1024 * 1024

#: A place in the listing: submission time and workflow id of a row.
Position = tuple[float, str]

#: Before every row, in the order from the oldest.
START: Position = (float("-inf"), "")

#: The same in the order from the newest: no id is after it.
END: Position = (float("inf"), "\U0010ffff")


def check_appends(appends: Sequence[Append]) -> None:
    """Raise ValueError for an append that `Storage.commit` has to refuse."""
    for append in appends:
        row = append.catalog
        if append.expected_seq < 0:
            raise ValueError(f"expected_seq of {append.workflow_id!r} is negative.")
        if append.expected_seq == 0:
            check_name("incarnation", append.incarnation)
        if (
            row.workflow_id != append.workflow_id
            or row.incarnation != append.incarnation
            or row.seq != append.expected_seq + 1
        ):
            raise ValueError(
                f"The append to {append.workflow_id!r} (incarnation {append.incarnation!r}, "
                f"entry {append.expected_seq + 1}) carries the catalog row of "
                f"{row.workflow_id!r} (incarnation {row.incarnation!r}, entry {row.seq}). "
                f"Describe the workflow as it is after the append."
            )


def check_name(kind: str, name: str) -> str:
    """Return a blob key or incarnation, or raise ValueError if it can't name a file."""
    if not is_name(name):
        raise ValueError(
            f"{kind} {name!r} can't be a name in the storage. Use up to {MAX_NAME_LENGTH} ASCII "
            f"letters, digits, '-', '_' and '.', and no '.' at the start."
        )
    return name


def is_name(name: str) -> bool:
    """Whether a text can be the name of a blob or an incarnation. Most foreign files in a directory
    have other names."""
    return len(name) <= MAX_NAME_LENGTH and SAFE_NAME.match(name) is not None


def check_limit(limit: int) -> int:
    """Return the page size, or raise ValueError if no page has it."""
    if limit < 1:
        raise ValueError(f"limit is {limit}: a page has at least one row.")
    return min(limit, 1_000_000_000)


def encode_cursor(position: Position) -> str:
    """The cursor that continues a listing after ``position``."""
    return json.dumps(position)


def decode_cursor(cursor: str | None, *, newest_first: bool = False) -> Position:
    """The position of a cursor; raises ValueError if it is none of ours."""
    if cursor is None:
        return END if newest_first else START
    try:
        submitted_at, workflow_id = json.loads(cursor)
        return float(submitted_at), str(workflow_id)
    except (TypeError, ValueError):
        raise ValueError(
            f"{cursor!r} is not a cursor of this listing. Pass Page.cursor as it came."
        ) from None


def slices(chunks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The bytes of the chunks in pieces of limited size, without copying them."""
    for chunk in chunks:
        view = memoryview(chunk)
        if view.nbytes == 0:
            continue
        # Only C-contiguous memory can be written without a copy.
        flat = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        for start in range(0, flat.nbytes, SLICE_BYTES):
            yield flat[start : start + SLICE_BYTES]


def checked(pieces: Iterable[memoryview], blob: Blob, what: str) -> Iterator[memoryview]:
    """Pass the pieces of a blob on; raises at the end if their checksum or size is wrong.

    ``what`` names the blob in errors.
    """
    checksum = Checksum(like=blob.checksum)
    size = 0
    for piece in pieces:
        checksum.update(piece)
        size += piece.nbytes
        yield piece
    check_read(size, checksum, blob, what)


def check(data: bytes | memoryview, blob: Blob, what: str) -> None:
    """Raise if these bytes are not those of a blob, which ``what`` names in errors."""
    checksum = Checksum(like=blob.checksum)
    # A wrong size is an error without hashing.
    if len(data) == blob.size:
        checksum.update(data)
    check_read(len(data), checksum, blob, what)


def check_read(size: int, checksum: Checksum, blob: Blob, what: str) -> None:
    """Raise if the bytes that were read of a blob, of that size and checksum, are not its own."""
    if size != blob.size:
        raise StorageCorruptError(
            f"The {what} has {size} bytes, expected {blob.size}: it was truncated or overwritten."
        )
    if str(checksum) != blob.checksum:
        raise StorageCorruptError(
            f"The {what} has the checksum {checksum}, expected {blob.checksum}: its bytes are not "
            f"what was written."
        )


def describe_blob(incarnation: str, blob: Blob) -> str:
    """How messages name a blob."""
    return f"blob {blob.key!r} of workflow incarnation {incarnation!r}"


def decode_holders(rows: Iterable[Sequence[Any]], *, where: str) -> list[Holder]:
    """The holders that an SQL query found, without those that can't be read.

    Args:
        rows: their columns in the order of the fields.
        where: names the storage in the log.
    """
    holders: list[Holder] = []
    for row in rows:
        try:
            fields = dict(zip(Holder.__struct_fields__, row, strict=True))
            holders.append(msgspec.convert(fields, Holder))
        except msgspec.ValidationError as error:
            logger.warning("A holder in %s is passed over: %s", where, error)
    return holders
