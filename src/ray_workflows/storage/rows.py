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

#: So many columns a row had before others could be added.
FIRST_COLUMNS = 12

#: What `encode_row` gives, by name.
STORED = (*COLUMNS, "digest")

#: The first one that a row need not be given.
FIRST_OPTIONAL = COLUMNS.index("started_at")

TIMES = [COLUMNS.index(name) for name in ("submitted_at", "started_at", "ended_at", "due_at")]
RELEASED = COLUMNS.index("released")


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


def encode_row(row: CatalogRow, clean: Callable[[str], str]) -> list[Any]:
    """A row as SQL backends store it: its columns in their order, and last a digest, by which
    `decode_row` can tell damage: the row's ``seq``, a colon, and a checksum.

    ``clean`` makes of a text, such as that of an error, one that the backend can store.
    """
    values = stored_values(row, clean)
    values.append(f"{row.seq}:{checksum_of(values)}")
    return values


def stored_values(row: CatalogRow, clean: Callable[[str], str]) -> list[Any]:
    """What is in the columns of a row, in their order."""
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

    Last ones that have their defaults don't count: rows of before a column was there keep theirs.
    """
    end = len(values)
    while end > FIRST_COLUMNS and values[end - 1] == DEFAULTS[end - 1]:
        end -= 1
    checksum: str = xxhash.xxh3_64_hexdigest(ROW_ENCODER.encode(values[:end]))
    return checksum


def as_written(columns: Sequence[Any]) -> list[Any]:
    """The columns of a row that was read, whatever a damaged one has in them, with the types that
    they were written with."""
    values = list(columns)
    for place in TIMES:
        if values[place] is not None:
            values[place] = float(values[place])
    values[RELEASED] = bool(values[RELEASED])
    return values


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
    *columns, digest, stored_seq = row
    try:
        # A row that a release before 0.2.0 has written since has its new seq, and an old digest.
        known, _, checksum = digest.partition(":")
        if digest and int(known) == stored_seq:
            stored = [*columns[:2], stored_seq, *columns[3:]]
            if checksum_of(as_written(stored)) != checksum:
                raise ValueError("it does not match its checksum")
            return row_of(columns)
        # Nothing vouches for what is in it.
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


#: What a row has in each column if nothing else is given.
DEFAULTS = stored_values(CatalogRow("", "", 0, WorkflowStatus.NONE, "", 0.0), str)
