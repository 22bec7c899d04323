"""Names of index entries. A list of names is enough to filter and sort workflows.

A workflow has an entry below ``index/open`` unless its journal ends in the settled state that its
entry below ``index/settled/<status>/<day>`` says. No input or output here.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from typing import NamedTuple

from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus

OPEN = "index/open"
SETTLED = "index/settled"

ACTIVE = WorkflowStatus.non_terminating_status()

#: A file's name has 255 bytes at most: of a longer id only this many are in the name.
ID_BYTES = 64

DAY_SECONDS = 86400.0
#: Days are counted from here, so that their names sort like them.
FIRST_DAY = -1_000_000
LAST_DAY = 8_999_999

STATUSES = tuple(WorkflowStatus)

#: A name of ours. Other names (of editors, file managers, file systems) are skipped.
NAME = re.compile(
    r"[0-9a-f]{16}\.[0-9a-v]*\.[01]\.[0-9a-f]{20}\.[0-9]{10,}\.[0-9][01]\.[0-9a-f]{20}\."
    r"[0-9a-f]{12}"
)


class Entry(NamedTuple):
    """A parsed name of an index entry.

    ``place`` sorts like submission time and id (or its first bytes: then ``truncated``).
    ``tentative``: it was put before its journal segment, which may never have been created.
    """

    key: str
    place: str
    truncated: bool
    incarnation_hash: str
    seq: int
    status: WorkflowStatus
    tentative: bool
    holder_hash: str

    @property
    def is_open(self) -> bool:
        """Whether it is below ``index/open``."""
        return self.key.startswith(OPEN)


def short_hash(text: str) -> str:
    """The hash that stands for a text in a name, where it is compared but not read."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def place(submitted_at: float, workflow_id: str) -> str:
    """A string that sorts like submission time and id. Long ids are truncated."""
    return f"{sortable(submitted_at)}.{sortable_id(workflow_id)}"


def sortable(number: float) -> str:
    """Hex digits that sort like the number."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", number + 0.0))
    return f"{bits ^ (2**64 - 1 if bits >> 63 else 2**63):016x}"


def sortable_id(workflow_id: str) -> str:
    """Letters and digits that sort like the bytes of the id."""
    head = workflow_id.encode("utf-8", "surrogatepass")[:ID_BYTES]
    return base64.b32hexencode(head).decode().rstrip("=").lower()


def time_of(found: str) -> float:
    """The submission time that a place begins with."""
    bits = int(found[:16], 16)
    bits ^= 2**63 if bits >> 63 else 2**64 - 1
    number: float = struct.unpack(">d", struct.pack(">Q", bits))[0]
    return number


def id_of(entry: Entry) -> str | None:
    """The workflow id, if the name has all of it and is valid."""
    if entry.truncated:
        return None
    text = entry.place[17:].upper()
    try:
        head = base64.b32hexdecode(text + "=" * (-len(text) % 8))
        return head.decode("utf-8", "surrogatepass")
    except ValueError:
        return None


def day(submitted_at: float) -> str:
    """The name of the day of a submission; sorts like the days."""
    number = submitted_at / DAY_SECONDS
    whole = math.floor(max(FIRST_DAY, min(number, LAST_DAY)))
    return f"{whole - FIRST_DAY:07d}"


def entry_key(row: CatalogRow, nonce: str, *, tentative: bool = False) -> str:
    """The key of the index entry for a row. A tentative one is always open."""
    name = ".".join(
        (
            place(row.submitted_at, row.workflow_id),
            "1" if len(row.workflow_id.encode("utf-8", "surrogatepass")) > ID_BYTES else "0",
            short_hash(row.incarnation),
            f"{row.seq:010d}",
            f"{STATUSES.index(row.status)}{int(tentative)}",
            short_hash(row.holder),
            nonce[:12],
        )
    )
    if tentative or row.status in ACTIVE:
        return f"{OPEN}/{name}"
    return f"{SETTLED}/{row.status.value}/{day(row.submitted_at)}/{name}"


def parse(prefix: str, name: str) -> Entry | None:
    """Parse a name; None if it is none of ours."""
    if NAME.fullmatch(name) is None:
        return None
    time, head, truncated, incarnation, seq, flags, holder, _ = name.split(".")
    if int(flags[0]) >= len(STATUSES):
        return None
    return Entry(
        key=f"{prefix}/{name}",
        place=f"{time}.{head}",
        truncated=truncated == "1",
        incarnation_hash=incarnation,
        seq=int(seq),
        status=STATUSES[int(flags[0])],
        tentative=flags[1] == "1",
        holder_hash=holder,
    )
