"""Large values written, against the same bytes written to the same disk and synced."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.storage_parts import Context, Part, Turns, percent, seconds
from ray_workflows.storage.base import Storage
from ray_workflows.storage.objects import SharedStorage
from ray_workflows.storage.sqlite import SqliteStorage

TARGET = 0.9

#: Bytes, and how often.
SIZES = ((1_000_000, 3), (25_000_000, 1), (256_000_000, 0.25))


def write_file(path: Path, data: bytes) -> None:
    """What the disk takes: one file, written and synced."""
    with path.open("wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def measure(context: Context) -> Iterator[Part]:
    part = Part(
        "Large values",
        ["storage", "size", "written MB/s", "disk MB/s", "of the disk", "read MB/s"],
        before=(
            "*Disk* is one file written and synced in the same round. Every value is hashed "
            "(XXH3) when it is written and when it is read. Target for files: 90 % of the "
            "disk. PostgreSQL and S3 write more than once, to server and log, and have no target."
        ),
    )
    numbers = itertools.count()
    with context.storages() as found:
        for size, share in SIZES:
            data = os.urandom(size)
            for name, storage in found.items():
                rounds = max(4, int(context.options.rounds * share / 2))
                add_row(part, context, name, storage, data, rounds, numbers)
    yield part


def add_row(
    part: Part,
    context: Context,
    name: str,
    storage: Storage,
    data: bytes,
    rounds: int,
    numbers: Iterator[int],
) -> None:
    turns = Turns()
    reads = []
    for _ in range(rounds + 1):
        number = next(numbers)
        incarnation, key, file = f"i{number}", f"k{number}", context.directory / f"file-{number}"
        # As the disk's file, it comes into a directory that is there.
        storage.write_blob(incarnation, "first", [b"first"])
        turns.add(
            partial(storage.write_blob, incarnation, key, [data]), partial(write_file, file, data)
        )
        blob = storage.find_blob(incarnation, key)
        assert blob is not None
        reads.append(seconds(partial(storage.read_blob, incarnation, blob)))
        storage.delete_blobs(incarnation)
        file.unlink()
    mine, disk, ratio = turns.medians(1)
    files = isinstance(storage, SqliteStorage | SharedStorage)
    megabytes = len(data) / 1e6
    part.rows.append(
        [
            *(name, f"{megabytes:.0f} MB", f"{megabytes / mine:,.0f}", f"{megabytes / disk:,.0f}"),
            percent(ratio, TARGET if files else 0.0),
            f"{megabytes / sorted(reads)[len(reads) // 2]:,.0f}",
        ]
    )
    print(*part.rows[-1], flush=True)
