"""Payload codecs: what they are given, and what is said if one is missing or fails."""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from ray_workflows._codec import envelope
from ray_workflows._codec.envelope import PIECE_BYTES, objects_in, seal, unseal
from ray_workflows._executor.node_storage import (
    NodeBlobs,
    NodeHome,
    NodeJournals,
    NodeLeases,
    NodeStorage,
)
from ray_workflows._model.values import Blob
from ray_workflows.codec import PayloadCodec, check_codecs
from ray_workflows.exceptions import PayloadCodecError, StorageCorruptError
from ray_workflows.storage import MemoryStorage, SqliteStorage, Storage
from ray_workflows.storage.base import BlobStore, Home, JournalStore, LeaseStore
from ray_workflows.storage.combined import MovedBlobs

BLOB = Blob("object-1", 10, "sha256:00")


class Deflate(PayloadCodec):
    name = "deflate"

    def encode(self, data: bytes) -> bytes:
        return zlib.compress(data, 1)

    def decode(self, data: bytes) -> bytes:
        return zlib.decompress(data)


class Salted(PayloadCodec):
    """Other bytes each time, as from encryption; and it knows when it is not the right one."""

    def __init__(self, key: bytes = b"key", name: str = "salted") -> None:
        self.key = key
        self.name = name

    def stream(self, salt: bytes, size: int) -> bytes:
        return hashlib.shake_128(self.key + salt).digest(size)

    def encode(self, data: bytes) -> bytes:
        salt = os.urandom(8)
        data = zlib.crc32(data).to_bytes(4, "big") + data
        return salt + bytes(a ^ b for a, b in zip(data, self.stream(salt, len(data)), strict=True))

    def decode(self, data: bytes) -> bytes:
        salt, data = data[:8], data[8:]
        data = bytes(a ^ b for a, b in zip(data, self.stream(salt, len(data)), strict=True))
        if zlib.crc32(data[4:]).to_bytes(4, "big") != data[:4]:
            raise ValueError("wrong key")
        return data[4:]


def sealed(codec: PayloadCodec | None, pickled: bytes = b"pickle", *buffers: bytes) -> bytes:
    return b"".join(seal(pickled, [memoryview(b) for b in buffers], [BLOB], codec))


# -- envelopes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [Deflate(), Salted()])
@pytest.mark.parametrize("sizes", [(), (0,), (100, 0, 4097), (70_001,)])
def test_what_is_encoded_comes_back(codec: PayloadCodec, sizes: tuple[int, ...]) -> None:
    buffers = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    data = sealed(codec, b"the secret pickle", *buffers)
    assert b"secret" not in data
    assert b"A" * 50 not in data
    opened = unseal(data, where="x", codecs=[Deflate(), Salted()])
    assert bytes(opened.pickle) == b"the secret pickle"
    assert [bytes(buffer) for buffer in opened.buffers] == buffers
    assert all(buffer.readonly for buffer in opened.buffers)
    assert opened.objects == (BLOB,)


def test_large_values_are_encoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory beside the value is a few pieces, and a codec never gets more than one."""
    seen = []

    class Watching(Deflate):
        def encode(self, data: bytes) -> bytes:
            seen.append(len(data))
            return super().encode(data)

    size = 10 * PIECE_BYTES + 3
    buffer = memoryview(bytes(size))
    tracemalloc.start()
    encoded = [bytes(chunk) for chunk in seal(b"p" * 100, [buffer], (), Watching())]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(seen) == PIECE_BYTES
    assert len(seen) == 11
    assert peak < 4 * PIECE_BYTES
    data = b"".join(encoded)
    assert len(data) < size // 100
    opened = unseal(data, where="x", codecs=[Deflate()])
    assert opened.buffers[0] == buffer


def test_without_a_codec_nothing_is_another_format() -> None:
    """A release before the hook reads what is not encoded."""
    data = sealed(None)
    assert data[2] == envelope.PLAIN == 1
    assert sealed(Deflate())[2] == envelope.ENCODED == 2
    assert bytes(unseal(data, where="x", codecs=[Deflate()]).pickle) == b"pickle"


def test_the_header_stays_readable() -> None:
    """Copying and deleting need no codec."""
    assert objects_in(sealed(Salted()), where="x") == (BLOB,)


@pytest.mark.parametrize(("codecs", "there"), [([], "none"), ([Deflate()], "'deflate'")])
def test_a_missing_codec_is_named(codecs: list[PayloadCodec], there: str) -> None:
    with pytest.raises(PayloadCodecError, match=r"output of 'w'.*'salted'.*init\(codec=") as caught:
        unseal(sealed(Salted()), where="output of 'w'", codecs=codecs)
    assert there in str(caught.value)
    assert "--codec module:object" in str(caught.value)
    assert caught.value.codec == "salted"


def test_a_wrong_key_is_not_taken_for_damage() -> None:
    with pytest.raises(PayloadCodecError, match=r"'salted' failed to decode.*task 'a'.*key"):
        unseal(sealed(Salted(b"mine")), where="task 'a'", codecs=[Salted(b"other")])


def test_a_codec_that_makes_too_much_or_too_little() -> None:
    data = sealed(Deflate(), b"p" * 1000)
    for change in (lambda d: d[:-1], lambda d: d + b"!"):

        class Wrong(Deflate):
            def decode(self, data: bytes) -> bytes:
                return change(super().decode(data))  # noqa: B023

        with pytest.raises(PayloadCodecError, match="header says 1000"):
            unseal(data, where="x", codecs=[Wrong()])


def test_a_newer_format_is_refused() -> None:
    data = bytearray(sealed(Deflate()))
    data[2] = 3
    with pytest.raises(StorageCorruptError, match=r"version 3, newer than the 2.*Upgrade"):
        unseal(bytes(data), where="x", codecs=[Deflate()])


def test_encoding_that_fails_names_the_codec() -> None:
    class Broken(Deflate):
        def encode(self, data: bytes) -> bytes:
            raise OSError("no key server")

    with pytest.raises(PayloadCodecError, match=r"'deflate' failed to encode.*no key server"):
        sealed(Broken())


# -- what users give ---------------------------------------------------------------------------


class Forgetful(Deflate):
    def decode(self, data: bytes) -> bytes:
        return super().decode(data)[:10]


class Nameless(Deflate):
    name = ""


class Blank(Deflate):
    name = "two words"


class Raising(Deflate):
    def encode(self, data: bytes) -> bytes:
        raise KeyError("key")


def test_one_none_and_several() -> None:
    one, other = Deflate(), Salted()
    assert check_codecs(None) == ()
    assert check_codecs(one) == (one,)
    assert check_codecs([other, one]) == (other, one)


@pytest.mark.parametrize(
    ("codec", "error", "message"),
    [
        ("zlib", TypeError, "not str"),
        (zlib, TypeError, "not module"),
        (Deflate, TypeError, r"the class Deflate \(call it: Deflate\(\)\)"),
        ([Deflate(), 1], TypeError, "has int"),
        (Nameless(), ValueError, "has the name ''"),
        (Blank(), ValueError, "'two words'"),
        ([Deflate(), Deflate()], ValueError, "several of one name"),
        (Forgetful(), PayloadCodecError, "did not give back 13 bytes"),
        (Raising(), PayloadCodecError, "KeyError"),
    ],
)
def test_bad_input(codec: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_codecs(codec)


# -- storages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        *((part, Storage) for part in (JournalStore, BlobStore, LeaseStore, Home)),
        (BlobStore, MovedBlobs),
        (JournalStore, NodeJournals),
        (BlobStore, NodeBlobs),
        (LeaseStore, NodeLeases),
        (Home, NodeHome),
    ],
)
def test_wrappers_pass_everything_on(part: type, kind: type) -> None:
    """A method of a part that a wrapper lacks would do what it does for nobody."""
    public = {
        name
        for name, value in vars(part).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }
    assert public <= set(vars(kind))


def test_the_codecs_travel_with_the_storage(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path).with_codecs([Salted(b"k"), Deflate()])
    copy = pickle.loads(pickle.dumps(NodeStorage(storage, "node")))
    assert [codec.name for codec in copy.codecs] == ["salted", "deflate"]
    assert copy.codecs[0].key == b"k"
    # One set of connections: all parts came to the same storage.
    assert {id(part.storage) for part in (copy.journals, copy.blobs, copy.leases)} == {
        id(copy.node.storage)
    }
    assert copy.url == storage.url == SqliteStorage(tmp_path).url
    assert repr(storage).endswith(", salted, deflate)")
    assert MemoryStorage().codecs == ()
