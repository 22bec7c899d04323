"""Catalog rows as SQL backends store and read them, with a checksum beside each.
No input or output here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import xxhash

from ray_workflows._model.catalog import CatalogRow, Page
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.records import encode_cursor

logger = logging.getLogger(__name__)

ROW_ENCODER = msgspec.msgpack.Encoder()


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
