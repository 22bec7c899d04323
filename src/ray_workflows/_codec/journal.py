"""Journal entries: events to bytes and back, with a version, a checksum and a link.

An entry is ``MAGIC``, one version byte, the link (8 bytes), the checksum (8 bytes), and the
MessagePack array of its events. The checksum covers the version, the workflow id, the incarnation,
the entry's number, the link and the events, so that an entry in another journal or under another
number is detected. The link is the checksum of the entry before, so that each entry confirms all
before it. Later versions keep this header, so that a release can tell an entry of a later version
from one whose version byte is damaged: only the former has the right checksum. Versions 1 and 2
have in place of link and checksum the CRC-32 of the events (4 bytes, big-endian); `UPCASTERS`
brings them up to date. Checksums detect accidents, not an attacker, who could compute them too.

A change needs a new version if a reader of the version before would misread or not know it, such as
a new kind of event. It needs none if it adds a field at the end of a record, with a default, and
a reader of the version before does the right thing without it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import xxhash

from ray_workflows._model.catalog import JournalEntry
from ray_workflows._model.events import AnyEvent, Event
from ray_workflows._model.plan import Plan
from ray_workflows.exceptions import StorageCorruptError

MAGIC = b"RW"
VERSION = 3
#: Up to this version, entries don't name the journal that they belong to.
LAST_UNLINKED = 2
UNLINKED_HEADER = len(MAGIC) + 1 + 4

LINK_SIZE = 8
HEADER_SIZE = len(MAGIC) + 1 + 2 * LINK_SIZE

#: The link of a first entry, and of an entry whose writer had not read the one before.
NO_LINK = bytes(LINK_SIZE)

#: The events of an entry as MessagePack has them: lists, each with its tag first.
PlainEvents = list[list[Any]]

#: For each older version, from 1 on, the function that turns its events into the next version's.
#: They stay for ever, and don't use today's records, which go on changing.
UPCASTERS: dict[int, Callable[[PlainEvents], PlainEvents]] = {
    # 2: signals, as events and as a kind of task. Events of version 1 mean the same.
    1: lambda events: events,
    # 3: the header, tasks that no node can hold, signals that a listener has had, snapshots, tags,
    # messages to others, and steps of durable functions. Events of version 2 mean the same.
    2: lambda events: events,
}

ENCODER = msgspec.msgpack.Encoder()
DECODER: msgspec.msgpack.Decoder[list[AnyEvent]] = msgspec.msgpack.Decoder(list[AnyEvent])
PLAN_DECODER: msgspec.msgpack.Decoder[Plan] = msgspec.msgpack.Decoder(Plan)


def encode_entry(
    events: Sequence[Event],
    workflow_id: str,
    incarnation: str,
    seq: int,
    link: bytes = NO_LINK,
) -> bytes:
    """The bytes of one journal entry.

    Args:
        events: the contents of the entry.
        workflow_id: the workflow whose journal it belongs to.
        incarnation: the incarnation of that workflow.
        seq: the entry's number in the journal.
        link: the link of the entry before (`link_of`, `Chain.link`).
    """
    payload = ENCODER.encode(events)
    head = PREFIX + link
    return b"".join((head, checksum_of(head, payload, workflow_id, incarnation, seq), payload))


PREFIX = MAGIC + bytes((VERSION,))


def checksum_of(head: bytes, payload: bytes, workflow_id: str, incarnation: str, seq: int) -> bytes:
    """The checksum of an entry; ``head``: the bytes before it, version and link."""
    place = f"{workflow_id}\0{incarnation}\0{seq}\0".encode("utf-8", "surrogatepass")
    digest = xxhash.xxh3_64(head + place)
    digest.update(payload)
    checksum: bytes = digest.digest()
    return checksum


def link_of(entry: bytes) -> bytes:
    """The link for the entry after one that `encode_entry` made."""
    return entry[HEADER_SIZE - LINK_SIZE : HEADER_SIZE]


class Chain:
    """Decodes the entries of one journal in their order, and checks that they belong to it.

    Args:
        workflow_id: the workflow.
        incarnation: its incarnation.
        after: the number of the entry before the first one that is read.
    """

    __slots__ = ("incarnation", "link", "seq", "workflow_id")

    def __init__(self, workflow_id: str, incarnation: str, after: int = 0) -> None:
        self.workflow_id: str = workflow_id
        self.incarnation: str = incarnation
        #: The number of the entry that was read last.
        self.seq: int = after
        #: The link that the next entry must have; None if it is not known.
        self.link: bytes | None = NO_LINK if after <= 0 else None

    def decode(self, entry: JournalEntry) -> list[AnyEvent]:
        """The events of the next entry.

        Raises:
            StorageCorruptError: the bytes are damaged, the entry before is missing or was replaced,
                or a newer release wrote it.
        """
        where = f"{self.seq + 1} of workflow '{self.workflow_id}'"
        if entry.seq != self.seq + 1:
            raise StorageCorruptError(
                f"Journal entry {where} (incarnation {self.incarnation}) is missing: entry "
                f"{entry.seq} stands in its place. Restore it from a backup."
            )
        data = entry.entry
        version = version_of(data, where)
        if version <= LAST_UNLINKED:
            payload = unlinked_payload(data, where)
            # After a start in the middle of the journal, the link before is not known.
            link = None if self.link is None else xxhash.xxh3_64_digest(self.link + data)
        else:
            payload = self.payload(data, where)
            link = link_of(data)
        events = decode_events(payload, version, where)
        self.seq, self.link = entry.seq, link
        return events

    def payload(self, data: bytes, where: str) -> bytes:
        """The events of an entry with today's header, still encoded."""
        head, payload = data[: HEADER_SIZE - LINK_SIZE], data[HEADER_SIZE:]
        version = data[len(MAGIC)]
        expected = checksum_of(head, payload, self.workflow_id, self.incarnation, self.seq + 1)
        if link_of(data) != expected:
            raise StorageCorruptError(
                f"Journal entry {where} (incarnation {self.incarnation}) does not match its "
                f"checksum: its bytes were changed, or belong to another workflow or number. "
                f"Restore it from a backup."
            )
        if version > VERSION:
            raise StorageCorruptError(
                f"Journal entry {where} has format version {version}, newer than the {VERSION} "
                f"that this release reads. Upgrade ray-workflows."
            )
        link = head[len(PREFIX) :]
        if self.link is not None and link not in (NO_LINK, self.link):
            raise StorageCorruptError(
                f"Journal entry {where} (incarnation {self.incarnation}) does not follow the entry "
                f"before it: one of the two, or an earlier one, was replaced. Restore the journal "
                f"from a backup."
            )
        return payload


def decode_entries(
    entries: Iterable[JournalEntry], workflow_id: str, incarnation: str, after: int = 0
) -> list[AnyEvent]:
    """The events of entries that follow each other; arguments and errors as of `Chain`."""
    chain = Chain(workflow_id, incarnation, after)
    return [event for entry in entries for event in chain.decode(entry)]


def version_of(data: bytes, where: str) -> int:
    """The version in the header of an entry, which is not checked yet."""
    if not isinstance(data, bytes) or len(data) < UNLINKED_HEADER or not data.startswith(MAGIC):
        raise StorageCorruptError(f"Journal entry {where} is not a journal entry.")
    version = data[len(MAGIC)]
    if version < 1:
        raise StorageCorruptError(f"Journal entry {where} has no format version ({version}).")
    return version


def unlinked_payload(data: bytes, where: str) -> bytes:
    """The events of an entry of versions 1 and 2, still encoded."""
    payload = data[UNLINKED_HEADER:]
    if zlib.crc32(payload) != int.from_bytes(data[UNLINKED_HEADER - 4 : UNLINKED_HEADER], "big"):
        raise StorageCorruptError(
            f"Journal entry {where} does not match its checksum. Restore it from a backup."
        )
    return payload


def decode_events(payload: bytes, version: int, where: str) -> list[AnyEvent]:
    """The events of a payload whose checksum is right."""
    try:
        return DECODER.decode(payload if version == VERSION else upcast(payload, version))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StorageCorruptError(f"Journal entry {where} can't be decoded: {error}") from error


def upcast(payload: bytes, version: int) -> bytes:
    """The payload of an entry of an older version as this version writes it."""
    events: PlainEvents = msgspec.msgpack.decode(payload)
    for older in range(version, VERSION):
        events = UPCASTERS[older](events)
    return ENCODER.encode(events)


def encode_events(events: Sequence[Event]) -> bytes:
    """Encode events for sending to another process."""
    return ENCODER.encode(events)


def events_from(data: bytes) -> list[AnyEvent]:
    """The events that `encode_events` encoded."""
    return DECODER.decode(data)


def encode_plan(plan: Plan) -> msgspec.Raw:
    """Encode a plan for sending to another process."""
    return msgspec.Raw(ENCODER.encode(plan))


def decode_plan(data: bytes | msgspec.Raw) -> Plan:
    """The plan that `encode_plan` encoded."""
    return PLAN_DECODER.decode(data)
