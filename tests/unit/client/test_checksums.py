"""Checksums of blobs: their kinds, and that each finds damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_workflows._client.blob_copies import copy_blobs
from ray_workflows._codec.envelope import PREFIX_SIZE, seal
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage import Checksum, MemoryStorage, SqliteStorage
from ray_workflows.storage.checksums import KINDS, NEW

#: What was stored under these names stays what they mean, for ever.
KNOWN = {
    "sha256": "0d22cdcc10e6d049dbe1af5123d50873fdfc1a4f58306e58cb6241be9472014d",
    "xxh3-128": "99736577b441a1bbd3ec197fe371e984",
}


def test_the_kinds_stay_what_they_are() -> None:
    assert set(KINDS) == set(KNOWN)
    for kind, digest in KNOWN.items():
        assert str(Checksum(b"some bytes", like=f"{kind}:")) == f"{kind}:{digest}"
    assert str(Checksum(b"some bytes")) == f"{NEW}:{KNOWN[NEW]}"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_bit_and_the_order_count(kind: str) -> None:
    data = bytearray(range(250)) * 5
    found = {str(Checksum(data, like=f"{kind}:"))}
    for position in range(len(data)):
        data[position] ^= 1
        found.add(str(Checksum(data, like=f"{kind}:")))
        data[position] ^= 1
    assert len(found) == len(data) + 1
    pieces = Checksum(like=f"{kind}:")
    for start in range(0, len(data), 7):
        pieces.update(memoryview(data)[start : start + 7])
    assert str(pieces) == str(Checksum(data, like=f"{kind}:"))


@pytest.mark.parametrize("checksum", ["md5:00", "SHA256:00", "no colon", ":00", "xxh3-128"])
def test_an_unknown_kind_is_refused(checksum: str) -> None:
    if checksum.partition(":")[0] in KINDS:
        assert str(Checksum(like=checksum)) != checksum
        return
    with pytest.raises(StorageCorruptError, match="Upgrade"):
        Checksum(like=checksum)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_blobs_described_by_any_kind_are_copied(kind: str) -> None:
    """The journal that is copied with them goes on describing them so."""
    source, target = MemoryStorage(), MemoryStorage()
    data = b"".join(seal(b"bytes", []))
    blob = Blob("k", len(data), str(Checksum(data, like=f"{kind}:")))
    source.write_blob("i", "k", [data])
    copy_blobs(source, "i", target, "i", [blob])
    copy_blobs(source, "i", target, "i", [blob])
    assert target.read_blob("i", blob) == data
    target.write_blob("taken", "k", [data[:-1] + b"x"])
    with pytest.raises(StorageCorruptError, match="another blob 'k'"):
        copy_blobs(source, "i", target, "taken", [blob])


def test_a_damaged_head_of_a_blob_is_not_taken_for_a_newer_release(tmp_path: Path) -> None:
    """A copy reads the head of a blob before the checksum of the whole is known."""
    source, target = SqliteStorage(tmp_path), MemoryStorage()
    source.open()
    data = b"".join(seal(b"bytes", []))
    blob = Blob("k", len(data), str(Checksum(data)))
    for place in range(PREFIX_SIZE):
        damaged = bytearray(data)
        damaged[place] ^= 4
        source.write_blob(f"i{place}", "k", [bytes(damaged)])
        wrong = f"blob 'k' of .* 'i{place}' .* has the checksum"
        with pytest.raises(StorageCorruptError, match=wrong):
            copy_blobs(source, f"i{place}", target, f"i{place}", [blob])
        assert target.find_blob(f"i{place}", "k") is None
    source.close()
