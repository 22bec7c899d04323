"""The part of `StorageContract` about blobs and their removal.
Uses the public methods of a storage only.
"""

from __future__ import annotations

import array
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.checksums import KINDS, Checksum
from ray_workflows.testing.builders import OK, fill, in_threads

#: One blob of this many bytes is written: larger than any buffer on the way.
BIG_BYTES = 24 * 1024 * 1024 + 17


def checksum(data: bytes, kind: str = "") -> str:
    """The checksum of these bytes, of a kind."""
    return str(Checksum(data, like=kind and f"{kind}:"))


def is_described(blob: Blob, key: str, data: bytes) -> bool:
    """Whether a blob is described as it must be that has these bytes, by any kind of checksum."""
    return blob == Blob(key, len(data), checksum(data, blob.checksum.partition(":")[0]))


class BlobContract:
    """Blobs and their removal."""

    def test_blob_comes_back(self, storage: Storage) -> None:
        """Described by key, size and checksum; its bytes can't be changed."""
        blob = storage.write_blob("i", "k", [b"some ", memoryview(b"bytes")])
        assert is_described(blob, "k", b"some bytes")
        view = storage.read_blob("i", blob)
        assert isinstance(view, memoryview)
        assert bytes(view) == b"some bytes"
        assert view.readonly
        assert storage.find_blob("i", "k") == blob

    @pytest.mark.parametrize("chunks", [[], [b""], [b"", memoryview(b""), b""]])
    def test_empty_blob(self, storage: Storage, chunks: list[bytes | memoryview]) -> None:
        """No bytes are a value too."""
        blob = storage.write_blob("i", "k", chunks)
        assert is_described(blob, "k", b"")
        assert bytes(storage.read_blob("i", blob)) == b""
        assert storage.find_blob("i", "k") == blob

    def test_chunks_of_all_kinds(self, storage: Storage) -> None:
        """Memory of any item type and layout is written as its bytes; chunks may be empty."""
        numbers = memoryview(array.array("d", [1.5, 2.5, 3.5]))
        grid = memoryview(bytes(range(6))).cast("B", (2, 3))
        gaps = memoryview(b"a-b-c-")[::2]
        writable = memoryview(bytearray(b"w"))
        chunks: list[Any] = [b"head", numbers, b"", grid, gaps, memoryview(b""), writable]
        expected = b"head" + numbers.tobytes() + grid.tobytes() + b"abc" + b"w"
        blob = storage.write_blob("i", "k", chunks)
        assert is_described(blob, "k", expected)
        assert bytes(storage.read_blob("i", blob)) == expected

    def test_many_small_chunks(self, storage: Storage) -> None:
        """From a generator, which is consumed once."""
        blob = storage.write_blob("i", "k", (b"%d," % i for i in range(20_000)))
        expected = b"".join(b"%d," % i for i in range(20_000))
        assert bytes(storage.read_blob("i", blob)) == expected

    def test_big_blob(self, storage: Storage) -> None:
        """As one buffer and in large pieces."""
        data = bytes(range(251)) * (BIG_BYTES // 251 + 1)
        view = memoryview(data)[:BIG_BYTES]
        whole = storage.write_blob("i", "whole", [view])
        pieces = storage.write_blob("i", "pieces", [view[: BIG_BYTES // 2], view[BIG_BYTES // 2 :]])
        assert whole.size == pieces.size == BIG_BYTES
        assert whole.checksum == pieces.checksum
        assert bytes(storage.read_blob("i", pieces)) == view
        assert storage.find_blob("i", "whole") == whole

    @pytest.mark.parametrize("size", [0, 5, BIG_BYTES])
    def test_a_blob_is_streamed(self, storage: Storage, size: int) -> None:
        """In pieces, each of which stays what it was."""
        data = (bytes(range(251)) * (size // 251 + 1))[:size]
        blob = storage.write_blob("i", "k", [data])
        pieces = list(storage.stream_blob("i", blob))
        assert b"".join(pieces) == data
        again = storage.write_blob("i2", "k", storage.stream_blob("i", blob))
        assert again == blob

    @pytest.mark.parametrize(
        "change", [{"size": 4}, {"checksum": checksum(b"fluff")}, {"key": "absent"}]
    )
    def test_a_stream_that_differs_from_its_description(
        self, storage: Storage, change: dict[str, str | int]
    ) -> None:
        """It raises before it ends, so that a copy of it is not stored."""
        wanted = msgspec.structs.replace(storage.write_blob("i", "k", [b"stuff"]), **change)
        with pytest.raises(StorageCorruptError, match="'i'"):
            storage.write_blob("i2", "copy", storage.stream_blob("i", wanted))
        assert storage.find_blob("i2", "copy") is None

    @pytest.mark.parametrize("kind", sorted(KINDS))
    @pytest.mark.parametrize("size", [0, 5, BIG_BYTES])
    def test_checksums_of_every_kind(self, storage: Storage, kind: str, size: int) -> None:
        """A journal may have been written elsewhere, or by an earlier release, and copied."""
        data = (bytes(range(251)) * (size // 251 + 1))[:size]
        blob = Blob("k", size, checksum(data, kind))
        storage.write_blob("i", "k", [data])
        assert storage.read_blob("i", blob) == data
        assert b"".join(storage.stream_blob("i", blob)) == data
        damaged = msgspec.structs.replace(blob, checksum=checksum(data + b"x", kind))
        with pytest.raises(StorageCorruptError, match="'i'"):
            storage.read_blob("i", damaged)
        with pytest.raises(StorageCorruptError, match="'i'"):
            list(storage.stream_blob("i", damaged))

    def test_a_checksum_of_a_later_release(self, storage: Storage) -> None:
        """It can't be checked, and says why."""
        blob = storage.write_blob("i", "k", [b"stuff"])
        later = msgspec.structs.replace(blob, checksum="crc-1024:00")
        with pytest.raises(StorageCorruptError, match=r"crc-1024.*Upgrade"):
            storage.read_blob("i", later)
        with pytest.raises(StorageCorruptError, match=r"crc-1024.*Upgrade"):
            list(storage.stream_blob("i", later))

    def test_first_write_wins(self, storage: Storage) -> None:
        """A key is never written twice; the second writer learns what is there."""
        first = storage.write_blob("i", "k", [b"first"])
        assert storage.write_blob("i", "k", [b"second, longer"]) == first
        assert storage.write_blob("i", "k", [b"first"]) == first
        assert bytes(storage.read_blob("i", first)) == b"first"

    def test_concurrent_writers_of_one_key(self, storage: Storage) -> None:
        """All learn the same, and that is what is stored."""
        contents = [bytes([65 + i]) * (100_000 + i) for i in range(8)]
        for round_number in range(3):
            key = f"k{round_number}"
            blobs = in_threads([partial(storage.write_blob, "i", key, [c]) for c in contents])
            assert len(set(blobs)) == 1
            assert bytes(storage.read_blob("i", blobs[0])) in contents

    def test_concurrent_writers_of_different_keys(self, storage: Storage) -> None:
        """Nobody waits for or disturbs anybody."""
        blobs = in_threads(
            [partial(storage.write_blob, f"i{n % 2}", f"k{n}", [b"%d" % n]) for n in range(8)]
        )
        for n, blob in enumerate(blobs):
            assert bytes(storage.read_blob(f"i{n % 2}", blob)) == b"%d" % n

    def test_failing_chunks_store_nothing(self, storage: Storage) -> None:
        """The error is the caller's own; the key stays free."""

        def chunks() -> Iterator[bytes]:
            yield b"x" * 100_000
            raise OSError("the producer failed")

        with pytest.raises(OSError, match="the producer failed"):
            storage.write_blob("i", "k", chunks())
        assert storage.find_blob("i", "k") is None
        blob = storage.write_blob("i", "k", [b"whole"])
        assert bytes(storage.read_blob("i", blob)) == b"whole"

    @pytest.mark.parametrize(
        "key",
        [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "../k",
            "/k",
            "a\\b",
            "a b",
            "é",
            "a\n",
            "a\x00",
            "x" * 201,
        ],
    )
    def test_key_that_is_no_name_is_refused(self, storage: Storage, key: str) -> None:
        """As a key and as an incarnation."""
        with pytest.raises(ValueError, match="key"):
            storage.write_blob("i", key, [b"x"])
        with pytest.raises(ValueError, match="incarnation"):
            storage.write_blob(key, "k", [b"x"])

    @pytest.mark.parametrize("key", ["a", "A-b_c.d", "0", "_", "-", "a..b", "a.", "x" * 200])
    def test_keys(self, storage: Storage, key: str) -> None:
        """All that the rule allows."""
        blob = storage.write_blob("i", key, [b"x"])
        assert blob.key == key
        assert bytes(storage.read_blob("i", blob)) == b"x"

    @pytest.mark.parametrize(
        "change",
        [
            {"size": 4},
            {"size": 6},
            {"size": 0},
            {"checksum": checksum(b"fluff")},
            {"key": "absent"},
        ],
    )
    def test_blob_that_differs_from_its_description(
        self, storage: Storage, change: dict[str, str | int]
    ) -> None:
        """Wrong size, wrong bytes, missing: the error names the key and the incarnation."""
        blob = storage.write_blob("inc-1", "key-1", [b"stuff"])
        wanted = msgspec.structs.replace(blob, **change)
        with pytest.raises(StorageCorruptError) as caught:
            storage.read_blob("inc-1", wanted)
        assert repr(wanted.key) in str(caught.value)
        assert "'inc-1'" in str(caught.value)
        assert bytes(storage.read_blob("inc-1", blob)) == b"stuff"

    def test_incarnations_are_apart(self, storage: Storage) -> None:
        """The same key in two of them is two blobs."""
        one = storage.write_blob("i1", "k", [b"one"])
        two = storage.write_blob("i2", "k", [b"two!"])
        assert bytes(storage.read_blob("i1", one)) == b"one"
        assert bytes(storage.read_blob("i2", two)) == b"two!"
        assert storage.find_blob("i3", "k") is None
        assert storage.find_blob("i1", "other") is None

    # -- removal ---------------------------------------------------------------------------

    def test_delete_blobs(self, storage: Storage) -> None:
        """Of one incarnation; again does no harm; the keys are free afterwards."""
        for incarnation in ("i1", "i2"):
            for key in ("a", "b"):
                storage.write_blob(incarnation, key, [b"old"])
        storage.delete_blobs("i1")
        storage.delete_blobs("i1")
        storage.delete_blobs("i-unknown")
        assert storage.find_blob("i1", "a") is None
        assert storage.find_blob("i1", "b") is None
        assert storage.find_blob("i2", "b") is not None
        blob = storage.write_blob("i1", "a", [b"new"])
        assert bytes(storage.read_blob("i1", blob)) == b"new"

    @pytest.mark.parametrize("size", [10, 5_000_000])
    def test_what_was_read_outlives_the_deletion(self, storage: Storage, size: int) -> None:
        """A value in use does not change under its user."""
        data = bytes(range(250)) * (size // 250)
        view = storage.read_blob("i", storage.write_blob("i", "k", [data]))
        storage.delete_blobs("i")
        storage.write_blob("i", "k", [b"other"])
        assert bytes(view) == data

    def test_deleting_a_workflow_deletes_its_blobs(self, storage: Storage) -> None:
        """And nobody else's."""
        row = fill(storage, "w", 2)
        other = fill(storage, "other", 1)
        for incarnation in (row.incarnation, other.incarnation):
            storage.write_blob(incarnation, "k", [b"x"])
        assert storage.delete("w", row.incarnation, 2) is OK
        assert storage.find_blob(row.incarnation, "k") is None
        assert storage.find_blob(other.incarnation, "k") is not None
        assert storage.sweep(0.0) == 0

    def test_sweep_keeps_what_is_in_use_or_young(self, storage: Storage) -> None:
        """Blobs of a live workflow stay at any age; others until the grace period is over."""
        row = fill(storage, "w")
        live = storage.write_blob(row.incarnation, "k", [b"live"])
        orphan = storage.write_blob("i-orphan", "k", [b"orphan"])
        assert storage.sweep(3600.0) == 0
        assert bytes(storage.read_blob("i-orphan", orphan)) == b"orphan"
        assert storage.sweep(0.0) == 1
        assert storage.find_blob("i-orphan", "k") is None
        assert bytes(storage.read_blob(row.incarnation, live)) == b"live"
        assert storage.sweep(0.0) == 0

    def test_sweep_counts_incarnations(self, storage: Storage) -> None:
        """Not blobs."""
        for incarnation in ("i1", "i2", "i3"):
            for key in ("a", "b"):
                storage.write_blob(incarnation, key, [b"x"])
        assert storage.sweep(0.0) == 3

    def test_sweep_of_nothing(self, storage: Storage) -> None:
        """An empty storage has nothing to remove."""
        assert storage.sweep(0.0) == 0
