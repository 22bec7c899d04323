"""Files written past the page cache: every size, every cut of the chunks, and disks that refuse."""

from __future__ import annotations

import fcntl
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.files import direct_io as writing
from ray_workflows.storage.files.blobs import BlobFiles
from ray_workflows.storage.files.direct_io import BLOCK_BYTES, BUFFER_BYTES, FileWriter
from ray_workflows.storage.parts import Home
from ray_workflows.storage.validation import slices
from tests.support.disks import small_disk

MIB = 1024 * 1024


class Somewhere(Home):
    """A home that nobody opens."""

    url = "test://somewhere"

    def open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


BORDERS = [0, 1, 511, 512, 4095, 4096, 4097]
SIZES = [
    *BORDERS,
    *(MIB - 1, MIB, MIB + 1),
    *(BUFFER_BYTES * count + rest for count in (1, 2, 3) for rest in (-1, *BORDERS)),
]


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def open_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & writing.DIRECT)


def takes_direct(directory: Path) -> bool:
    """Whether the file system of a directory takes direct writes."""
    descriptor = open_file(directory / "tried")
    try:
        return FileWriter(descriptor, direct=True).switch(True)
    finally:
        os.close(descriptor)


def write_all(writer: FileWriter, data: bytes) -> None:
    for full in writer.filled(slices([data])):
        writer.write(full)


def write(path: Path, data: bytes, *, direct: bool) -> FileWriter:
    descriptor = open_file(path)
    try:
        with FileWriter(descriptor, direct=direct) as writer:
            write_all(writer, data)
    finally:
        os.close(descriptor)
    return writer


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_written(tmp_path: Path, size: int, direct: bool) -> None:
    data = random_bytes(size)
    writer = write(tmp_path / "file", data, direct=direct)
    assert (tmp_path / "file").read_bytes() == data
    assert (writer.size, str(writer.checksum)) == (size, str(Checksum(data)))


def cuts(data: bytes) -> Iterator[list[bytes | memoryview]]:
    """The same bytes in chunks of many kinds."""
    view = memoryview(data)
    numbers = random.Random(1)
    chunks: list[bytes | memoryview] = []
    while view:
        count = min(len(view), int(10 ** numbers.uniform(0, 6.5)))
        chunks.append(view[:count])
        view = view[count:]
    yield chunks
    view = memoryview(data)
    yield [view[start : start + 1000] for start in range(0, len(data), 1000)]
    # Not contiguous: every second byte of twice as many.
    doubled = bytearray(2 * len(data))
    doubled[::2] = data
    yield [memoryview(doubled)[::2]]
    yield [b"", view[:7], b"", view[7:], memoryview(b"")]


def test_chunks_are_cut_anywhere(tmp_path: Path) -> None:
    data = random_bytes(2 * BUFFER_BYTES + 12_345)
    files = BlobFiles(str(tmp_path), Somewhere())
    for number, chunks in enumerate(cuts(data)):
        blob = files.write_blob("i", f"k{number}", chunks)
        assert blob.checksum == str(Checksum(data))
        assert Path(files.path("i", blob.key)).read_bytes() == data


def test_memory_may_be_used_again_for_the_next_chunk(tmp_path: Path) -> None:
    memory = bytearray(3 * MIB)

    def chunks() -> Iterator[memoryview]:
        for number in range(4):
            memory[:] = bytes([number]) * len(memory)
            yield memoryview(memory)

    files = BlobFiles(str(tmp_path), Somewhere())
    files.write_blob("i", "k", chunks())
    found = Path(files.path("i", "k")).read_bytes()
    assert found == b"".join(bytes([number]) * len(memory) for number in range(4))


@pytest.mark.parametrize(
    ("size", "direct"),
    [
        (BUFFER_BYTES - BLOCK_BYTES, False),
        (BUFFER_BYTES, True),
        (BUFFER_BYTES + BLOCK_BYTES, True),
        (2 * BUFFER_BYTES, True),
    ],
)
def test_only_large_files_are_written_directly(tmp_path: Path, size: int, direct: bool) -> None:
    if not takes_direct(tmp_path):
        pytest.skip("the file system refuses direct writes")
    descriptor = open_file(tmp_path / "file")
    with FileWriter(descriptor, direct=True) as writer:
        for data in writer.filled(slices([bytes(size)])):
            writer.write(data)
            assert is_direct(descriptor) == direct
    os.close(descriptor)
    assert (tmp_path / "file").stat().st_size == size


def test_the_next_buffer_is_filled_while_one_is_used(tmp_path: Path) -> None:
    """While one buffer is written, the next one is filled."""
    taken = [threading.Event() for _ in range(4)]

    def pieces() -> Iterator[memoryview]:
        for number, event in enumerate(taken):
            event.set()
            yield memoryview(bytes([number]) * BUFFER_BYTES)

    with FileWriter(-1, direct=False) as writer:
        for number, data in enumerate(writer.filled(pieces())):
            assert number == len(taken) or taken[min(number + 1, 3)].wait(10)
            # And the one that is used is left alone.
            assert bytes(data) == bytes([number]) * len(data)
        assert (number, len(data)) == (4, 0)


def test_no_buffer_is_given_back_while_it_is_filled() -> None:
    """The next writer to take the buffer would find other bytes in it."""
    begun, go_on = threading.Event(), threading.Event()

    def pieces() -> Iterator[memoryview]:
        yield memoryview(bytes(BUFFER_BYTES))
        begun.set()
        go_on.wait(10)
        yield memoryview(b"more")

    later = threading.Timer(0.2, go_on.set)
    with FileWriter(-1, direct=False) as writer:
        next(writer.filled(pieces()))
        assert begun.wait(10)
        later.start()
    assert go_on.is_set()
    later.join()


def test_what_goes_wrong_with_the_bytes_is_raised_as_it_is(tmp_path: Path) -> None:
    """By no other name, although it is met in another thread; nothing is left behind."""

    def chunks(size: int) -> Iterator[bytes]:
        yield bytes(size)
        raise OSError("of the bytes")

    files = BlobFiles(str(tmp_path), Somewhere())
    for size in (1, BUFFER_BYTES, 2 * BUFFER_BYTES + 1, 3 * BUFFER_BYTES):
        with pytest.raises(OSError, match="of the bytes"):
            files.write_blob("i", "k", chunks(size))
        assert not any((tmp_path / "i").iterdir())


@pytest.mark.administrator
@pytest.mark.parametrize("size", [BUFFER_BYTES - 1, BUFFER_BYTES + 1, 2 * BUFFER_BYTES])
def test_a_file_system_that_refuses_direct_writes(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "disk", kind="ramfs") as disk:
        assert not takes_direct(disk.path)
        data = random_bytes(size)
        files = BlobFiles(str(disk.path), Somewhere())
        blob = files.write_blob("i", "k", [data])
        assert blob.checksum == str(Checksum(data))
        assert files.read_blob("i", blob) == data


def test_blocks_larger_than_expected_are_written_all_the_same(tmp_path: Path) -> None:
    """As they are refused: here because what is written begins within one."""
    if not takes_direct(tmp_path):
        pytest.skip("the file system refuses direct writes")
    descriptor = open_file(tmp_path / "file")
    os.write(descriptor, b"abc")
    data = random_bytes(2 * BUFFER_BYTES + 5)
    with FileWriter(descriptor, direct=True) as writer:
        write_all(writer, data)
    assert not is_direct(descriptor)
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"abc" + data


def test_disks_of_servers_are_written_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BlobFiles(str(tmp_path), Somewhere()).local
    mounts = f"server:/x {tmp_path} nfs4 rw 0 0\n"
    monkeypatch.setattr("ray_workflows.storage.files.location.read_mounts", lambda: mounts)
    assert not BlobFiles(str(tmp_path), Somewhere()).local


def test_buffers_are_used_again(tmp_path: Path) -> None:
    """Also after a failure; two writers at once have their own, and no more than two are kept."""
    pieces = [bytes(3 * BUFFER_BYTES)]
    with FileWriter(-1, direct=True) as first, FileWriter(-1, direct=True) as second:
        for _ in zip(first.filled(slices(pieces)), second.filled(slices(pieces)), strict=True):
            pass
        both = [*first.buffers, *second.buffers]
        assert len({id(buffer) for buffer in both}) == 4
    kept = list(writing.spare)
    assert len(kept) == 2
    descriptor = os.open(tmp_path, os.O_RDONLY)
    writer = FileWriter(descriptor, direct=False)
    with pytest.raises(OSError, match="Bad file"), writer:
        write_all(writer, pieces[0])
    os.close(descriptor)
    assert {id(buffer) for buffer in writing.spare} == {id(buffer) for buffer in kept}
