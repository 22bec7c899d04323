"""Files written past the page cache: every size, every cut of the chunks, and disks that refuse."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows.storage import writing
from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.files import BlobFiles
from ray_workflows.storage.records import slices
from ray_workflows.storage.writing import BLOCK_BYTES, BUFFER_BYTES, DIRECT_BYTES, FileWriter
from tests.disks import small_disk

MIB = 1024 * 1024
BORDERS = [0, 1, 511, 512, 4095, 4096, 4097]
SIZES = [
    *BORDERS,
    *(MIB - 1, MIB, MIB + 1),
    *(DIRECT_BYTES + rest for rest in (-1, *BORDERS)),
    *(BUFFER_BYTES * count + rest for count in (1, 2) for rest in (-1, *BORDERS)),
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


def write(path: Path, data: bytes, *, direct: bool) -> FileWriter:
    descriptor = open_file(path)
    try:
        with FileWriter(descriptor, direct=direct) as writer:
            for piece in slices([data]):
                writer.write(piece)
            writer.finish()
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
    files = BlobFiles(str(tmp_path))
    for number, chunks in enumerate(cuts(data)):
        blob = files.write("i", f"k{number}", chunks)
        assert blob.checksum == str(Checksum(data))
        assert Path(files.path("i", blob.key)).read_bytes() == data


def test_memory_may_be_used_again_for_the_next_chunk(tmp_path: Path) -> None:
    memory = bytearray(3 * MIB)

    def chunks() -> Iterator[memoryview]:
        for number in range(4):
            memory[:] = bytes([number]) * len(memory)
            yield memoryview(memory)

    files = BlobFiles(str(tmp_path))
    files.write("i", "k", chunks())
    found = Path(files.path("i", "k")).read_bytes()
    assert found == b"".join(bytes([number]) * len(memory) for number in range(4))


def test_only_large_files_are_written_directly(tmp_path: Path) -> None:
    if not takes_direct(tmp_path):
        pytest.skip("the file system refuses direct writes")
    descriptor = open_file(tmp_path / "small")
    with FileWriter(descriptor, direct=True) as writer:
        writer.write(memoryview(bytes(DIRECT_BYTES - BLOCK_BYTES)))
        writer.finish()
    assert not is_direct(descriptor)
    os.close(descriptor)
    descriptor = open_file(tmp_path / "less than a buffer")
    with FileWriter(descriptor, direct=True) as writer:
        writer.write(memoryview(bytes(DIRECT_BYTES)))
        writer.finish()
    assert is_direct(descriptor)
    os.close(descriptor)
    descriptor = open_file(tmp_path / "large")
    with FileWriter(descriptor, direct=True) as writer:
        writer.write(memoryview(bytes(BUFFER_BYTES)))
        assert is_direct(descriptor)
        writer.write(memoryview(bytes(BLOCK_BYTES)))
        writer.finish()
        assert is_direct(descriptor)
    os.close(descriptor)
    assert (tmp_path / "large").stat().st_size == BUFFER_BYTES + BLOCK_BYTES


@pytest.mark.parametrize("size", [BUFFER_BYTES - 1, BUFFER_BYTES + 1, 2 * BUFFER_BYTES])
def test_a_file_system_that_refuses_direct_writes(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "disk", kind="ramfs") as disk:
        assert not takes_direct(disk.path)
        data = random_bytes(size)
        files = BlobFiles(str(disk.path))
        blob = files.write("i", "k", [data])
        assert blob.checksum == str(Checksum(data))
        assert files.read("i", blob) == data


def test_blocks_larger_than_expected_are_written_all_the_same(tmp_path: Path) -> None:
    """As they are refused: here because what is written begins within one."""
    if not takes_direct(tmp_path):
        pytest.skip("the file system refuses direct writes")
    descriptor = open_file(tmp_path / "file")
    os.write(descriptor, b"abc")
    data = random_bytes(2 * BUFFER_BYTES + 5)
    with FileWriter(descriptor, direct=True) as writer:
        writer.write(memoryview(data))
        writer.finish()
    assert not is_direct(descriptor)
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"abc" + data


def test_disks_of_servers_are_written_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BlobFiles(str(tmp_path)).local
    mounts = f"server:/x {tmp_path} nfs4 rw 0 0\n"
    monkeypatch.setattr("ray_workflows.storage.location.read_mounts", lambda: mounts)
    assert not BlobFiles(str(tmp_path)).local


def test_a_buffer_is_used_again(tmp_path: Path) -> None:
    """Also after a failure; two writers at once have two."""
    with FileWriter(-1, direct=True) as first, FileWriter(-1, direct=True) as second:
        assert first.buffer is not second.buffer
    assert len(writing.spare) == 1
    buffer = writing.spare[0]
    descriptor = os.open(tmp_path, os.O_RDONLY)
    writer = FileWriter(descriptor, direct=False)
    with pytest.raises(OSError, match="Bad file"), writer:
        writer.write(memoryview(bytes(BUFFER_BYTES)))
    os.close(descriptor)
    assert len(writing.spare) == 1
    assert writing.spare[0] is buffer
