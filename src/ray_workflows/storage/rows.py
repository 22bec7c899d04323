"""Catalog rows as SQL backends store and read them, with a checksum beside each.
No input or output here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import xxhash

from ray_workflows._model.catalog import CatalogRow, Page
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.validation import encode_cursor

logger = logging.getLogger(__name__)

ROW_ENCODER = msgspec.msgpack.Encoder()

#: The columns of the catalog; SQL has ``digest`` behind them.
COLUMNS = CatalogRow.__struct_fields__

#: The number of columns before the first addition.
FIRST_COLUMNS = 12

#: The names of the values that `encode_row` returns.
STORED = (*COLUMNS, "digest")

#: The first column with a default.
FIRST_OPTIONAL = COLUMNS.index("started_at")

TIMES = [COLUMNS.index(name) for name in ("submitted_at", "started_at", "ended_at", "due_at")]
RELEASED = COLUMNS.index("released")


def make_page(found: Sequence[tuple[Any, ...]], limit: int, where: str) -> Page:
    """The page for the rows of an SQL query with a limit of one row more than ``limit``.

    ``where`` as in `decode_row`.

    Raises:
        StorageCorruptError: no row can be read, nor the position of the next page.
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


def encode_row(row: CatalogRow, clean: Callable[[str], str]) -> list[Any]:
    """A row as SQL backends store it: its columns in their order, and last a digest, by which
    `decode_row` detects damage: the row's ``seq``, a colon, and a checksum.

    ``clean`` turns a text, such as that of an error, into one that the backend can store.
    """
    values = stored_values(row, clean)
    values.append(f"{row.seq}:{checksum_of(values)}")
    return values


def stored_values(row: CatalogRow, clean: Callable[[str], str]) -> list[Any]:
    """The values of the columns of a row, in their order."""
    return [
        row.workflow_id,
        row.incarnation,
        row.seq,
        row.status.value,
        row.holder,
        float(row.submitted_at),
        None if row.started_at is None else float(row.started_at),
        None if row.ended_at is None else float(row.ended_at),
        json.dumps(row.metadata) if row.metadata else "{}",
        row.plan_digest,
        None if row.error is None else clean(row.error),
        row.released,
        row.kind,
        clean(row.name),
        row.queue,
        row.priority,
        row.parent,
        None if row.due_at is None else float(row.due_at),
        json.dumps(row.tags) if row.tags else "{}",
        row.snapshot,
    ]


def checksum_of(values: Sequence[Any]) -> str:
    """The checksum of the columns of a row.

    Trailing columns with default values don't count, so that rows written before a column was added
    keep their checksum.
    """
    end = len(values)
    while end > FIRST_COLUMNS and values[end - 1] == DEFAULTS[end - 1]:
        end -= 1
    checksum: str = xxhash.xxh3_64_hexdigest(ROW_ENCODER.encode(values[:end]))
    return checksum


def as_written(columns: Sequence[Any]) -> list[Any]:
    """The columns of a row that was read, with the types that they were written with. A damaged row
    may have any values in them."""
    values = list(columns)
    for place in TIMES:
        if values[place] is not None:
            values[place] = float(values[place])
    values[RELEASED] = bool(values[RELEASED])
    return values


class DamagedRowError(StorageCorruptError):
    """A catalog row can't be read. Its incarnation and seq may be damaged too.

    Attributes:
        workflow_id: the workflow of the row.
        incarnation: the journal that the row names.
        seq: the end of the journal by the row.
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
            stored with, since which the journal may have grown.
        where: names the storage in errors.

    Raises:
        StorageCorruptError: the row is damaged; names the workflow and ``where``.
    """
    *columns, digest, stored_seq = row
    try:
        # If a release before 0.2.0 has written the row since, its seq is new and its digest old.
        known, _, checksum = digest.partition(":")
        if digest and int(known) == stored_seq:
            stored = [*columns[:2], stored_seq, *columns[3:]]
            if checksum_of(as_written(stored)) != checksum:
                raise ValueError("it does not match its checksum")
            return row_of(columns)
        # There is no valid checksum, so check the types.
        return msgspec.convert(msgspec.structs.asdict(row_of(columns)), CatalogRow)
    except (ValueError, TypeError, AttributeError, RecursionError) as reason:
        raise DamagedRowError(row, where, reason) from reason


def row_of(columns: Sequence[Any]) -> CatalogRow:
    """The catalog row of its columns."""
    fields = dict(zip(COLUMNS, columns, strict=True))
    fields["status"] = WorkflowStatus(fields["status"])
    fields["released"] = bool(fields["released"])
    for name in ("metadata", "tags"):
        fields[name] = {} if fields[name] == "{}" else json.loads(fields[name])
    return CatalogRow(**fields)


#: The default value of each column.
DEFAULTS = stored_values(CatalogRow("", "", 0, WorkflowStatus.NONE, "", 0.0), str)
