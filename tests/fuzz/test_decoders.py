"""Stored bytes that are anything: a decoder says what it read, or that they are damaged."""

from __future__ import annotations

import pickle
import zlib
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ray_workflows._codec.envelope import ENCODED, MAGIC, PREFIX, objects_in, seal, unseal
from ray_workflows._codec.journal import (
    NO_LINK,
    Chain,
    checksum_of,
    encode_entry,
)
from ray_workflows._codec.journal import (
    PREFIX as ENTRY_PREFIX,
)
from ray_workflows._model.catalog import JournalEntry
from ray_workflows.codec import PayloadCodec
from ray_workflows.exceptions import StorageConfigError, StorageCorruptError, StorageError
from ray_workflows.storage.objects.index_keys import OPEN, SETTLED, id_of, parse, time_of
from ray_workflows.storage.objects.records import (
    FORMAT,
    Grave,
    Lease,
    Pointer,
    Row,
    Segment,
    decode,
    unpack_row,
)
from ray_workflows.storage.rows import decode_row
from ray_workflows.storage.validation import decode_cursor
from tests.fuzz import attempt, fuzz
from tests.unit.codec.test_codec import EVENTS

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
#: What MessagePack can hold.
PLAIN = st.recursive(
    SCALARS | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
#: Lists that begin as an event does.
TAGS = st.sampled_from([type(event).__struct_config__.tag for event in EVENTS])
EVENTLIKE = st.lists(
    st.tuples(TAGS, st.lists(PLAIN, max_size=4)).map(lambda e: [e[0], *e[1]]), max_size=3
)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with some of them replaced, cut off or added."""

    def change(where: tuple[int, int, bytes]) -> bytes:
        start, length, new = where
        return data[:start] + new + data[start + length :]

    places = st.integers(0, len(data))
    return st.tuples(places, st.integers(0, 20), st.binary(max_size=20)).map(change)


def read_entry(data: Any) -> None:
    attempt(
        lambda: Chain("w", "i").decode(JournalEntry(1, "c", data)),
        StorageCorruptError,
    )


@fuzz
@given(st.binary(max_size=200) | damaged(encode_entry(EVENTS, "w", "i", 1)))
def test_entries_of_any_bytes(data: bytes) -> None:
    read_entry(data)


@fuzz
@given(PLAIN | EVENTLIKE, st.sampled_from([1, 2, 3]))
def test_entries_of_any_contents(contents: Any, version: int) -> None:
    """Their checksums are right: a release wrote them that this one knows nothing of."""
    payload = msgspec.msgpack.encode(contents)
    if version == 3:
        head = ENTRY_PREFIX + NO_LINK
        read_entry(head + checksum_of(head, payload, "w", "i", 1) + payload)
    else:
        read_entry(b"RW" + bytes((version,)) + zlib.crc32(payload).to_bytes(4, "big") + payload)


class Doubling(PayloadCodec):
    """A codec whose output is no shorter than its input."""

    name = "doubling"

    def encode(self, data: bytes | memoryview) -> bytes:
        return bytes(data) * 2

    def decode(self, data: bytes | memoryview) -> bytes:
        return bytes(data)[: len(data) // 2]


PLAIN_ENVELOPE = b"".join(seal(pickle.dumps([1, 2]), [memoryview(b"buffer" * 100)], ()))
CODED_ENVELOPE = b"".join(
    seal(pickle.dumps([1, 2]), [memoryview(b"buffer" * 100)], (), codec=Doubling())
)


def open_envelope(data: bytes) -> None:
    for call in (
        lambda: unseal(data, where="x", codecs=(Doubling(),)),
        lambda: objects_in(data, where="x"),
        lambda: objects_in(data, where="x", partial=True),
    ):
        attempt(call, StorageError)


@fuzz
@given(st.binary(max_size=200) | damaged(PLAIN_ENVELOPE) | damaged(CODED_ENVELOPE))
def test_envelopes_of_any_bytes(data: bytes) -> None:
    open_envelope(data)


@fuzz
@given(
    st.integers(0, ENCODED + 1),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 100), max_size=4),
    st.integers(-(2**63), 2**63 - 1) | st.integers(0, 100),
    st.sampled_from(["", "doubling", "unknown"]),
    st.binary(max_size=100),
)
def test_envelopes_whose_headers_lie(
    version: int, sizes: list[int], pickle_size: int, codec: str, rest: bytes
) -> None:
    header = msgspec.msgpack.encode([pickle_size, sizes, [], codec])
    open_envelope(PREFIX.pack(MAGIC, version, len(header)) + header + rest)


@fuzz
@given(PLAIN, st.sampled_from([Segment, Pointer, Row, Grave, Lease]))
def test_objects_of_any_contents(contents: Any, kind: Any) -> None:
    body = msgspec.msgpack.encode(contents)
    data = FORMAT + zlib.crc32(body).to_bytes(4, "big") + body

    def read() -> None:
        record = decode(kind, data, "key")
        if isinstance(record, Row):
            unpack_row(record)

    attempt(read, StorageCorruptError)


@fuzz
@given(st.binary(max_size=100))
def test_objects_of_any_bytes(data: bytes) -> None:
    attempt(lambda: decode(Segment, data, "key"), StorageCorruptError, StorageConfigError)


@fuzz
@given(st.lists(SCALARS | st.binary(max_size=40), min_size=21, max_size=21))
def test_rows_of_any_columns(columns: list[Any]) -> None:
    attempt(lambda: decode_row(tuple(columns), where="here"), StorageCorruptError)


@fuzz
@given(st.text() | PLAIN.map(repr))
def test_cursors_of_any_text(cursor: str) -> None:
    attempt(lambda: decode_cursor(cursor), ValueError)


HEX = st.text("0123456789abcdef", min_size=20, max_size=20)
NAMES = st.builds(
    "{0}.{1}.{2}.{3}.{4:010d}.{5}{2}.{3}.{6}".format,
    HEX.map(lambda text: text[:16]),
    st.text("0123456789abcdefghijklmnopqrstuv", max_size=20),
    st.integers(0, 1),
    HEX,
    st.integers(0, 10**11),
    st.integers(0, 9),
    HEX.map(lambda text: text[:12]),
)


@fuzz
@given(st.text() | NAMES, st.sampled_from([OPEN, f"{SETTLED}/FAILED/1000000"]))
def test_names_of_any_text(name: str, prefix: str) -> None:
    """A name that is taken for one of ours can be sorted by its time and shown by its id."""
    entry = parse(prefix, name)
    if entry is not None:
        assert isinstance(time_of(entry.place), float)
        id_of(entry)
