"""What every backend does alike: check what it is given and what it reads, filter and page rows.
No input or output here; a backend of your own may use it or not.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import xxhash

from ray_workflows._model.catalog import Append, CatalogRow, Holder, Page
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.checksums import Checksum

logger = logging.getLogger(__name__)

ROW_ENCODER = msgspec.msgpack.Encoder()

#: A blob key or incarnation becomes a file or object name, so it has to be harmless as one.
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\Z")

#: File systems stop at 255 bytes; this leaves room for what a backend puts around the name.
MAX_NAME_LENGTH = 200

#: Buffers are hashed and written by slices of this many bytes: a system call takes no more than
#: 2 GB at once, and a slice that was just hashed is still in the processor's cache.
SLICE_BYTES = 4 * 1024 * 1024

#: A place in the listing: submission time and workflow id of the last row that was seen.
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
    """Whether something can be the name of a blob or an incarnation: what others leave in a
    directory mostly can't."""
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
        # Only C-contiguous memory can be written as it lies.
        flat = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        for start in range(0, flat.nbytes, SLICE_BYTES):
            yield flat[start : start + SLICE_BYTES]


def checked(pieces: Iterable[memoryview], blob: Blob, what: str) -> Iterator[memoryview]:
    """The pieces of a blob as they come; raises at the end if they are not what was written.

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
    # Of another size, it needs no look.
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


def make_page(found: Sequence[tuple[Any, ...]], limit: int, where: str) -> Page:
    """The page of what an SQL query found, of which one row more than ``limit`` was asked for.

    ``where`` as in `decode_row`.

    Raises:
        StorageCorruptError: no row can be read, nor where the next page begins.
    """
    rows: list[CatalogRow] = []
    damaged: list[str] = []
    for row in found[:limit]:
        try:
            rows.append(decode_row(row, where=where))
        except StorageCorruptError as error:
            logger.warning("A workflow is left out of a listing: %s", error)
            damaged.append(str(error))
    if len(found) <= limit:
        return Page(tuple(rows), None, tuple(damaged))
    last = found[limit - 1]
    position = (last[5], last[0])
    if not (isinstance(position[0], float) and isinstance(position[1], str)):
        if not rows:
            raise StorageCorruptError(f"{damaged[0]} The listing can't go on behind it.")
        position = (rows[-1].submitted_at, rows[-1].workflow_id)
    return Page(tuple(rows), encode_cursor(position), tuple(damaged))


def encode_metadata(row: CatalogRow) -> str:
    """The metadata of a row as SQL backends store it."""
    return json.dumps(row.metadata) if row.metadata else "{}"


def row_digest(row: CatalogRow, metadata: str, error: str | None) -> str:
    """What an SQL backend stores beside a row, so that `decode_row` can tell damage: the row's
    ``seq``, a colon, and a checksum of the row.

    ``metadata`` and ``error`` are the texts as they are stored.
    """
    checksum = checksum_of_row(
        row.workflow_id,
        row.incarnation,
        row.seq,
        row.status,
        row.holder,
        row.submitted_at,
        row.started_at,
        row.ended_at,
        metadata,
        row.plan_digest,
        error,
        row.released,
    )
    return f"{row.seq}:{checksum}"


def checksum_of_row(
    workflow_id: Any,
    incarnation: Any,
    seq: Any,
    status: Any,
    holder: Any,
    submitted_at: Any,
    started_at: Any,
    ended_at: Any,
    metadata: Any,
    plan_digest: Any,
    error: Any,
    released: Any,
) -> str:
    """The checksum of the columns of a row, in the order of the fields of `CatalogRow`; whatever a
    damaged one has in them."""
    columns = (
        workflow_id,
        incarnation,
        seq,
        status,
        holder,
        float(submitted_at),
        None if started_at is None else float(started_at),
        None if ended_at is None else float(ended_at),
        metadata,
        plan_digest,
        error,
        bool(released),
    )
    checksum: str = xxhash.xxh3_64_hexdigest(ROW_ENCODER.encode(columns))
    return checksum


class DamagedRowError(StorageCorruptError):
    """A catalog row can't be read. What its journal is, the row may say wrongly too.

    Attributes:
        workflow_id: whose row it is.
        incarnation: the journal that it names.
        seq: the number that it has.
    """

    def __init__(self, row: tuple[Any, ...], where: str, reason: Exception) -> None:
        super().__init__(
            f"The catalog row of {row[0]!r} in {where} can't be read: {reason}. Write it anew from "
            f"its journal with `ray-workflows repair`, or restore it from a backup."
        )
        self.workflow_id = row[0]
        self.incarnation = str(row[1])
        self.seq = row[2] if isinstance(row[2], int) else 0


def decode_row(row: tuple[Any, ...], *, where: str) -> CatalogRow:
    """The catalog row that an SQL query found.

    Args:
        row: its columns in the order of the fields, ``digest``, and the ``seq`` that the row was
            stored with, where the journal may have grown since without it.
        where: names the storage in errors.

    Raises:
        StorageCorruptError: it is not what was written; names the workflow and ``where``.
    """
    columns, digest, stored_seq = row[:12], row[12], row[13]
    try:
        # A row that a release before 0.2.0 has written since has its new seq, and an old digest.
        known, _, checksum = digest.partition(":")
        if digest and int(known) == stored_seq:
            stored = [*columns[:2], stored_seq, *columns[3:]]
            if checksum_of_row(*stored) != checksum:
                raise ValueError("it does not match its checksum")
            return row_of(columns)
        # Nothing vouches for what is in it.
        return msgspec.convert(msgspec.structs.asdict(row_of(columns)), CatalogRow)
    except (ValueError, TypeError, AttributeError, RecursionError) as reason:
        raise DamagedRowError(row, where, reason) from reason


def row_of(columns: tuple[Any, ...]) -> CatalogRow:
    """The catalog row of its columns."""
    metadata = columns[8]
    return CatalogRow(
        workflow_id=columns[0],
        incarnation=columns[1],
        seq=columns[2],
        status=WorkflowStatus(columns[3]),
        holder=columns[4],
        submitted_at=columns[5],
        started_at=columns[6],
        ended_at=columns[7],
        metadata={} if metadata == "{}" else json.loads(metadata),
        plan_digest=columns[9],
        error=columns[10],
        released=bool(columns[11]),
    )


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
