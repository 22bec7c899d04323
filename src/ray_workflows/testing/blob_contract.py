"""The tests of `BlobStoreContract`.
Uses the public methods of a blob store only.
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
from ray_workflows.storage.checksums import KINDS, Checksum
from ray_workflows.storage.parts import BlobStore
from ray_workflows.testing.builders import in_threads

#: Size of the big blob: larger than any buffer between writer and reader.
BIG_BYTES = 24 * 1024 * 1024 + 17


def checksum(data: bytes, kind: str = "") -> str:
    """The checksum of these bytes, of a kind."""
    return str(Checksum(data, like=kind and f"{kind}:"))


def is_described(blob: Blob, key: str, data: bytes) -> bool:
    """Whether key, size and checksum of a blob fit these bytes. Any kind of checksum will do."""
    return blob == Blob(key, len(data), checksum(data, blob.checksum.partition(":")[0]))


class BlobContract:
    """Blobs and their removal."""

    def test_blob_comes_back(self, blobs: BlobStore) -> None:
        """A write returns key, size and checksum; a read returns bytes that can't be changed."""
        blob = blobs.write_blob("i", "k", [b"some ", memoryview(b"bytes")])
        assert is_described(blob, "k", b"some bytes")
        view = blobs.read_blob("i", blob)
        assert isinstance(view, memoryview)
        assert bytes(view) == b"some bytes"
        assert view.readonly
        assert blobs.find_blob("i", "k") == blob

    @pytest.mark.parametrize("chunks", [[], [b""], [b"", memoryview(b""), b""]])
    def test_empty_blob(self, blobs: BlobStore, chunks: list[bytes | memoryview]) -> None:
        """A blob may be empty."""
        blob = blobs.write_blob("i", "k", chunks)
        assert is_described(blob, "k", b"")
        assert bytes(blobs.read_blob("i", blob)) == b""
        assert blobs.find_blob("i", "k") == blob

    def test_chunks_of_all_kinds(self, blobs: BlobStore) -> None:
        """Memory of any item type and layout is written as its bytes; chunks may be empty."""
        numbers = memoryview(array.array("d", [1.5, 2.5, 3.5]))
        grid = memoryview(bytes(range(6))).cast("B", (2, 3))
        gaps = memoryview(b"a-b-c-")[::2]
        writable = memoryview(bytearray(b"w"))
        chunks: list[Any] = [b"head", numbers, b"", grid, gaps, memoryview(b""), writable]
        expected = b"head" + numbers.tobytes() + grid.tobytes() + b"abc" + b"w"
        blob = blobs.write_blob("i", "k", chunks)
        assert is_described(blob, "k", expected)
        assert bytes(blobs.read_blob("i", blob)) == expected

    def test_many_small_chunks(self, blobs: BlobStore) -> None:
        """A generator of chunks is consumed once."""
        blob = blobs.write_blob("i", "k", (b"%d," % i for i in range(20_000)))
        expected = b"".join(b"%d," % i for i in range(20_000))
        assert bytes(blobs.read_blob("i", blob)) == expected

    def test_big_blob(self, blobs: BlobStore) -> None:
        """A big blob can be written as one buffer and in large chunks."""
        data = bytes(range(251)) * (BIG_BYTES // 251 + 1)
        view = memoryview(data)[:BIG_BYTES]
        whole = blobs.write_blob("i", "whole", [view])
        pieces = blobs.write_blob("i", "pieces", [view[: BIG_BYTES // 2], view[BIG_BYTES // 2 :]])
        assert whole.size == pieces.size == BIG_BYTES
        assert whole.checksum == pieces.checksum
        assert bytes(blobs.read_blob("i", pieces)) == view
        assert blobs.find_blob("i", "whole") == whole

    @pytest.mark.parametrize("size", [0, 5, BIG_BYTES])
    def test_a_blob_is_streamed(self, blobs: BlobStore, size: int) -> None:
        """A stream yields pieces, and no piece changes afterwards."""
        data = (bytes(range(251)) * (size // 251 + 1))[:size]
        blob = blobs.write_blob("i", "k", [data])
        pieces = list(blobs.stream_blob("i", blob))
        assert b"".join(pieces) == data
        again = blobs.write_blob("i2", "k", blobs.stream_blob("i", blob))
        assert again == blob

    @pytest.mark.parametrize(
        "change", [{"size": 4}, {"checksum": checksum(b"fluff")}, {"key": "absent"}]
    )
    def test_a_stream_that_differs_from_its_description(
        self, blobs: BlobStore, change: dict[str, str | int]
    ) -> None:
        """The stream raises before it ends, so that a copy of it is not stored."""
        wanted = msgspec.structs.replace(blobs.write_blob("i", "k", [b"stuff"]), **change)
        with pytest.raises(StorageCorruptError, match="'i'"):
            blobs.write_blob("i2", "copy", blobs.stream_blob("i", wanted))
        assert blobs.find_blob("i2", "copy") is None

    @pytest.mark.parametrize("kind", sorted(KINDS))
    @pytest.mark.parametrize("size", [0, 5, BIG_BYTES])
    def test_checksums_of_every_kind(self, blobs: BlobStore, kind: str, size: int) -> None:
        """Every kind can be checked: a copied journal may come from another storage or release."""
        data = (bytes(range(251)) * (size // 251 + 1))[:size]
        blob = Blob("k", size, checksum(data, kind))
        blobs.write_blob("i", "k", [data])
        assert blobs.read_blob("i", blob) == data
        assert b"".join(blobs.stream_blob("i", blob)) == data
        damaged = msgspec.structs.replace(blob, checksum=checksum(data + b"x", kind))
        with pytest.raises(StorageCorruptError, match="'i'"):
            blobs.read_blob("i", damaged)
        with pytest.raises(StorageCorruptError, match="'i'"):
            list(blobs.stream_blob("i", damaged))

    def test_a_checksum_of_a_later_release(self, blobs: BlobStore) -> None:
        """A checksum of an unknown kind can't be checked; the error says why."""
        blob = blobs.write_blob("i", "k", [b"stuff"])
        later = msgspec.structs.replace(blob, checksum="crc-1024:00")
        with pytest.raises(StorageCorruptError, match=r"crc-1024.*Upgrade"):
            blobs.read_blob("i", later)
        with pytest.raises(StorageCorruptError, match=r"crc-1024.*Upgrade"):
            list(blobs.stream_blob("i", later))

    def test_first_write_wins(self, blobs: BlobStore) -> None:
        """A key is never written twice; the second writer learns what is there."""
        first = blobs.write_blob("i", "k", [b"first"])
        assert blobs.write_blob("i", "k", [b"second, longer"]) == first
        assert blobs.write_blob("i", "k", [b"first"]) == first
        assert bytes(blobs.read_blob("i", first)) == b"first"

    def test_concurrent_writers_of_one_key(self, blobs: BlobStore) -> None:
        """All writers get the same description, and it fits what is stored."""
        contents = [bytes([65 + i]) * (100_000 + i) for i in range(8)]
        for round_number in range(3):
            key = f"k{round_number}"
            made = in_threads([partial(blobs.write_blob, "i", key, [c]) for c in contents])
            assert len(set(made)) == 1
            assert bytes(blobs.read_blob("i", made[0])) in contents

    def test_concurrent_writers_of_different_keys(self, blobs: BlobStore) -> None:
        """No writer waits for another one, or changes its result."""
        made = in_threads(
            [partial(blobs.write_blob, f"i{n % 2}", f"k{n}", [b"%d" % n]) for n in range(8)]
        )
        for n, blob in enumerate(made):
            assert bytes(blobs.read_blob(f"i{n % 2}", blob)) == b"%d" % n

    def test_failing_chunks_store_nothing(self, blobs: BlobStore) -> None:
        """The caller's own error is raised; the key stays free."""

        def chunks() -> Iterator[bytes]:
            yield b"x" * 100_000
            raise OSError("the producer failed")

        with pytest.raises(OSError, match="the producer failed"):
            blobs.write_blob("i", "k", chunks())
        assert blobs.find_blob("i", "k") is None
        blob = blobs.write_blob("i", "k", [b"whole"])
        assert bytes(blobs.read_blob("i", blob)) == b"whole"

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
    def test_key_that_is_no_name_is_refused(self, blobs: BlobStore, key: str) -> None:
        """Keys and incarnations have to be names."""
        with pytest.raises(ValueError, match="key"):
            blobs.write_blob("i", key, [b"x"])
        with pytest.raises(ValueError, match="incarnation"):
            blobs.write_blob(key, "k", [b"x"])

    @pytest.mark.parametrize("key", ["a", "A-b_c.d", "0", "_", "-", "a..b", "a.", "x" * 200])
    def test_keys(self, blobs: BlobStore, key: str) -> None:
        """Every key that the rule for names allows can be used."""
        blob = blobs.write_blob("i", key, [b"x"])
        assert blob.key == key
        assert bytes(blobs.read_blob("i", blob)) == b"x"

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
        self, blobs: BlobStore, change: dict[str, str | int]
    ) -> None:
        """If the size or the bytes are wrong or the blob is missing, the error names the key and
        the incarnation."""
        blob = blobs.write_blob("inc-1", "key-1", [b"stuff"])
        wanted = msgspec.structs.replace(blob, **change)
        with pytest.raises(StorageCorruptError) as caught:
            blobs.read_blob("inc-1", wanted)
        assert repr(wanted.key) in str(caught.value)
        assert "'inc-1'" in str(caught.value)
        assert bytes(blobs.read_blob("inc-1", blob)) == b"stuff"

    def test_incarnations_are_apart(self, blobs: BlobStore) -> None:
        """The same key in two incarnations means two blobs."""
        one = blobs.write_blob("i1", "k", [b"one"])
        two = blobs.write_blob("i2", "k", [b"two!"])
        assert bytes(blobs.read_blob("i1", one)) == b"one"
        assert bytes(blobs.read_blob("i2", two)) == b"two!"
        assert blobs.find_blob("i3", "k") is None
        assert blobs.find_blob("i1", "other") is None

    # -- removal ---------------------------------------------------------------------------

    def test_delete_blobs(self, blobs: BlobStore) -> None:
        """A deletion removes the blobs of one incarnation and frees their keys; a second one does
        nothing."""
        for incarnation in ("i1", "i2"):
            for key in ("a", "b"):
                blobs.write_blob(incarnation, key, [b"old"])
        blobs.delete_blobs("i1")
        blobs.delete_blobs("i1")
        blobs.delete_blobs("i-unknown")
        assert blobs.find_blob("i1", "a") is None
        assert blobs.find_blob("i1", "b") is None
        assert blobs.find_blob("i2", "b") is not None
        blob = blobs.write_blob("i1", "a", [b"new"])
        assert bytes(blobs.read_blob("i1", blob)) == b"new"

    @pytest.mark.parametrize("size", [10, 5_000_000])
    def test_what_was_read_outlives_the_deletion(self, blobs: BlobStore, size: int) -> None:
        """Bytes that were read stay as they are when the blob is deleted."""
        data = bytes(range(250)) * (size // 250)
        view = blobs.read_blob("i", blobs.write_blob("i", "k", [data]))
        blobs.delete_blobs("i")
        blobs.write_blob("i", "k", [b"other"])
        assert bytes(view) == data
