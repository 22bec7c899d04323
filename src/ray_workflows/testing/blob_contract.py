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

    def test_blob_comes_back(self, blobs: BlobStore) -> None:
        """Described by key, size and checksum; its bytes can't be changed."""
        blob = blobs.write_blob("i", "k", [b"some ", memoryview(b"bytes")])
        assert is_described(blob, "k", b"some bytes")
        view = blobs.read_blob("i", blob)
        assert isinstance(view, memoryview)
        assert bytes(view) == b"some bytes"
        assert view.readonly
        assert blobs.find_blob("i", "k") == blob

    @pytest.mark.parametrize("chunks", [[], [b""], [b"", memoryview(b""), b""]])
    def test_empty_blob(self, blobs: BlobStore, chunks: list[bytes | memoryview]) -> None:
        """No bytes are a value too."""
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
        """From a generator, which is consumed once."""
        blob = blobs.write_blob("i", "k", (b"%d," % i for i in range(20_000)))
        expected = b"".join(b"%d," % i for i in range(20_000))
        assert bytes(blobs.read_blob("i", blob)) == expected

    def test_big_blob(self, blobs: BlobStore) -> None:
        """As one buffer and in large pieces."""
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
        """In pieces, each of which stays what it was."""
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
        """It raises before it ends, so that a copy of it is not stored."""
        wanted = msgspec.structs.replace(blobs.write_blob("i", "k", [b"stuff"]), **change)
        with pytest.raises(StorageCorruptError, match="'i'"):
            blobs.write_blob("i2", "copy", blobs.stream_blob("i", wanted))
        assert blobs.find_blob("i2", "copy") is None

    @pytest.mark.parametrize("kind", sorted(KINDS))
    @pytest.mark.parametrize("size", [0, 5, BIG_BYTES])
    def test_checksums_of_every_kind(self, blobs: BlobStore, kind: str, size: int) -> None:
        """A journal may have been written elsewhere, or by an earlier release, and copied."""
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
        """It can't be checked, and says why."""
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
        """All learn the same, and that is what is stored."""
        contents = [bytes([65 + i]) * (100_000 + i) for i in range(8)]
        for round_number in range(3):
            key = f"k{round_number}"
            made = in_threads([partial(blobs.write_blob, "i", key, [c]) for c in contents])
            assert len(set(made)) == 1
            assert bytes(blobs.read_blob("i", made[0])) in contents

    def test_concurrent_writers_of_different_keys(self, blobs: BlobStore) -> None:
        """Nobody waits for or disturbs anybody."""
        made = in_threads(
            [partial(blobs.write_blob, f"i{n % 2}", f"k{n}", [b"%d" % n]) for n in range(8)]
        )
        for n, blob in enumerate(made):
            assert bytes(blobs.read_blob(f"i{n % 2}", blob)) == b"%d" % n

    def test_failing_chunks_store_nothing(self, blobs: BlobStore) -> None:
        """The error is the caller's own; the key stays free."""

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
        """As a key and as an incarnation."""
        with pytest.raises(ValueError, match="key"):
            blobs.write_blob("i", key, [b"x"])
        with pytest.raises(ValueError, match="incarnation"):
            blobs.write_blob(key, "k", [b"x"])

    @pytest.mark.parametrize("key", ["a", "A-b_c.d", "0", "_", "-", "a..b", "a.", "x" * 200])
    def test_keys(self, blobs: BlobStore, key: str) -> None:
        """All that the rule allows."""
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
        """Wrong size, wrong bytes, missing: the error names the key and the incarnation."""
        blob = blobs.write_blob("inc-1", "key-1", [b"stuff"])
        wanted = msgspec.structs.replace(blob, **change)
        with pytest.raises(StorageCorruptError) as caught:
            blobs.read_blob("inc-1", wanted)
        assert repr(wanted.key) in str(caught.value)
        assert "'inc-1'" in str(caught.value)
        assert bytes(blobs.read_blob("inc-1", blob)) == b"stuff"

    def test_incarnations_are_apart(self, blobs: BlobStore) -> None:
        """The same key in two of them is two blobs."""
        one = blobs.write_blob("i1", "k", [b"one"])
        two = blobs.write_blob("i2", "k", [b"two!"])
        assert bytes(blobs.read_blob("i1", one)) == b"one"
        assert bytes(blobs.read_blob("i2", two)) == b"two!"
        assert blobs.find_blob("i3", "k") is None
        assert blobs.find_blob("i1", "other") is None

    # -- removal ---------------------------------------------------------------------------

    def test_delete_blobs(self, blobs: BlobStore) -> None:
        """Of one incarnation; again does no harm; the keys are free afterwards."""
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
        """A value in use does not change under its user."""
        data = bytes(range(250)) * (size // 250)
        view = blobs.read_blob("i", blobs.write_blob("i", "k", [data]))
        blobs.delete_blobs("i")
        blobs.write_blob("i", "k", [b"other"])
        assert bytes(view) == data
