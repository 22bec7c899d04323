"""A result of 5 GB from the worker that returns it to a driver: the memory that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.storage_parts import Context, Part, judged, seconds
from tests.ray.processes import DriverProcess, descendants
from tests.ray.test_large_values import CODE, write_and_read
from tests.support.children import child, receive
from tests.support.fast_s3 import fast_s3
from tests.support.memory import watched
from tests.support.moto import storage_url

TARGET_BYTES = 1_000_000_000


def measure(context: Context) -> Iterator[Part]:
    size = int(context.options.gigabytes * 1e9) // 8000 * 8000
    part = Part(
        f"A NumPy array of {size / 1e9:g} GB",
        ["storage", "what", "seconds", "extra memory", "target"],
        before=(
            "Extra is the anonymous memory of the process beyond the array itself (sampled every "
            "10 ms): what is mapped from files can be dropped, what is in Ray's object store is "
            "the live copy that every task's result has."
        ),
    )
    for name, url in (
        ("SQLite and files", f"file://{context.directory}/memory"),
        ("shared directory", f"shared://{context.directory}/shared-memory"),
    ):
        add(part, name, url, size)
    with fast_s3() as endpoint:
        # The server has it all in memory, twice for a moment: no more than 1 GB.
        half = min(size, 1_000_000_000)
        add(part, f"S3, {half / 1e9:g} GB", storage_url(endpoint), half)
    end_to_end(part, context.directory, size)
    yield part


def add(part: Part, name: str, url: str, size: int) -> None:
    """Written and read by one process."""
    with child(write_and_read, url, size) as (process, pipe):
        before = receive(pipe)
        with watched(lambda: {process.pid}) as writing:
            pipe.send("write")
            took = seconds(lambda: pipe.poll(3600))
            assert pipe.recv() == "written"
        row(part, name, "written", took, writing.largest - before)
        pipe.send("forget")
        empty = receive(pipe)
        with watched(lambda: {process.pid}) as reading:
            pipe.send("read")
            took = seconds(lambda: pipe.poll(3600))
            assert pipe.recv() == size / 8000
        mapped = url.startswith("file:")
        extra = reading.largest - empty - (0 if mapped else size)
        row(part, name, "read" + (", mapped" if mapped else ""), took, extra)


def end_to_end(part: Part, directory: Path, size: int) -> None:
    """By a task, its consumer and the driver."""
    place = directory / "end-to-end"
    place.mkdir()
    code = CODE.format(url=str(place / "store"), size=size, store=size * 6 // 5)
    with DriverProcess(place, code) as driver:
        pids = lambda: {driver.process.pid, *descendants(driver.process.pid)}  # noqa: E731
        with watched(pids) as peaks:
            took = seconds(lambda: driver.wait(3600))
    row(part, "SQLite and files", "on Ray: the worker", took, peaks.largest - size)
    second = sorted(peaks.by_pid.values())[-2]
    row(part, "SQLite and files", "on Ray: any other process, all of it", took, second)


def row(part: Part, name: str, what: str, took: float, extra: int) -> None:
    text = judged(extra, extra < TARGET_BYTES, f"{max(extra, 0) / 1e6:,.0f} MB")
    part.rows.append([name, what, f"{took:.1f}", text, "under 1,000 MB"])
    print(*part.rows[-1], flush=True)
