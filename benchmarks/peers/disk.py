"""The disk itself: files written and synced one after the other."""

from __future__ import annotations

import os

from workloads import ARRAY_BYTES

from peers.serving import Round, serve, timed

content = os.urandom(ARRAY_BYTES)


def arrays(size: int) -> Round:
    names = [f"file-{i}" for i in range(size)]
    with timed() as clock:
        for name in names:
            with open(name, "wb", buffering=0) as file:
                file.write(content)
                os.fsync(file.fileno())
    written = sum(os.path.getsize(name) for name in names)
    for name in names:
        os.remove(name)
    assert written == size * ARRAY_BYTES
    return Round(clock.seconds, size * (size - 1) // 2, {"megabytes": written / 1e6})


def large_array(size: int) -> Round:
    """All of it in one file."""
    with timed() as clock, open("file", "wb", buffering=0) as file:
        for _ in range(size):
            file.write(content)
        os.fsync(file.fileno())
    written = os.path.getsize("file")
    os.remove("file")
    assert written == size * ARRAY_BYTES
    return Round(clock.seconds, size, {"megabytes": written / 1e6})


if __name__ == "__main__":
    serve({}, {"arrays": arrays, "large_array": large_array})
