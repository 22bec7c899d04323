"""Journal entries: events to bytes and back, with a version and a checksum.

An entry is ``MAGIC``, one version byte, the CRC-32 of the rest (4 bytes, big-endian), and the
MessagePack array of its events. Old versions are brought up to date by `UPCASTERS`.

What needs a new version: everything that a reader of the version before would misread or not know,
such as a new kind of event. What does not: a field at the end of a record, with a default, without
which a reader of the version before does the right thing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ray_workflows._model.catalog import JournalEntry
from ray_workflows._model.events import AnyEvent, Event
from ray_workflows._model.plan import Plan
from ray_workflows.exceptions import StorageCorruptError

MAGIC = b"RW"
VERSION = 2
HEADER_SIZE = len(MAGIC) + 1 + 4

#: The events of an entry as MessagePack has them: lists, each with its tag first.
PlainEvents = list[list[Any]]

#: For each older version, from 1 on, the function that makes the next version's events of its own.
#: They stay for ever, and know nothing of today's records, which go on changing.
UPCASTERS: dict[int, Callable[[PlainEvents], PlainEvents]] = {
    # 2: signals, as events and as a kind of task. What version 1 knows means the same.
    1: lambda events: events,
}

ENCODER = msgspec.msgpack.Encoder()
DECODER: msgspec.msgpack.Decoder[list[AnyEvent]] = msgspec.msgpack.Decoder(list[AnyEvent])
PLAN_DECODER: msgspec.msgpack.Decoder[Plan] = msgspec.msgpack.Decoder(Plan)


def encode_entry(events: Sequence[Event]) -> bytes:
    """The bytes of one journal entry."""
    payload = ENCODER.encode(events)
    return b"".join((MAGIC, bytes((VERSION,)), zlib.crc32(payload).to_bytes(4, "big"), payload))


def decode_entry(entry: bytes, *, where: str) -> list[AnyEvent]:
    """The events of an entry.

    Args:
        entry: the stored bytes.
        where: names the entry in errors (workflow and number).

    Raises:
        StorageCorruptError: the bytes are not what was written, or a newer release wrote them.
    """
    if len(entry) < HEADER_SIZE or not entry.startswith(MAGIC):
        raise StorageCorruptError(f"Journal entry {where} is not a journal entry.")
    version = entry[len(MAGIC)]
    payload = entry[HEADER_SIZE:]
    if zlib.crc32(payload) != int.from_bytes(entry[HEADER_SIZE - 4 : HEADER_SIZE], "big"):
        raise StorageCorruptError(
            f"Journal entry {where} does not match its checksum. Restore it from a backup."
        )
    if version > VERSION:
        raise StorageCorruptError(
            f"Journal entry {where} has format version {version}, newer than the {VERSION} "
            f"that this release reads. Upgrade ray-workflows."
        )
    if version < 1:
        raise StorageCorruptError(f"Journal entry {where} has no format version ({version}).")
    try:
        return DECODER.decode(payload if version == VERSION else upcast(payload, version))
    except msgspec.MsgspecError as error:
        raise StorageCorruptError(f"Journal entry {where} can't be decoded: {error}") from error


def upcast(payload: bytes, version: int) -> bytes:
    """The payload of an entry of an older version as this version writes it."""
    events: PlainEvents = msgspec.msgpack.decode(payload)
    for older in range(version, VERSION):
        events = UPCASTERS[older](events)
    return ENCODER.encode(events)


def events_of(entry: JournalEntry, workflow_id: str) -> list[AnyEvent]:
    """The events of a stored entry of a workflow's journal; errors as in `decode_entry`."""
    return decode_entry(entry.entry, where=f"{entry.seq} of workflow '{workflow_id}'")


def encode_plan(plan: Plan) -> msgspec.Raw:
    """A plan on its way between processes."""
    return msgspec.Raw(ENCODER.encode(plan))


def decode_plan(data: bytes | msgspec.Raw) -> Plan:
    """The plan that `encode_plan` encoded."""
    return PLAN_DECODER.decode(data)
