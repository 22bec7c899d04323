"""The Ray tasks of all workloads, the same for every peer on Ray."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import numpy as np
import ray
from workloads import ARRAY_BYTES


@ray.remote
def identity(value: int) -> int:
    return value


@ray.remote
def increment(value: int) -> int:
    return value + 1


@ray.remote
def add(a: int, b: int) -> int:
    return a + b


@ray.remote
def total(*values: int) -> int:
    return sum(values)


@ray.remote
def nap(seconds: float, value: int) -> int:
    time.sleep(seconds)
    return value


@ray.remote
def array(value: int) -> Any:
    return np.full(ARRAY_BYTES // 8, value, dtype=np.int64)


@ray.remote
def large_array(size: int) -> Any:
    """As large as this many of the others."""
    return np.full(size * ARRAY_BYTES // 8, size, dtype=np.int64)


@ray.remote
def read_arrays(refs: list[Any]) -> list[int]:
    """Sum of the last elements, and whether all arrays are views into shared memory."""
    arrays = [ray.get(ref) for ref in refs]
    return [
        sum(int(each[-1]) for each in arrays),
        not any(each.flags.writeable for each in arrays),
    ]


@ray.remote
def now(_: Any) -> float:
    return time.time()


def leave_time(path: str) -> None:
    """The first to come leaves its time there."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, str(time.time()).encode())
        os.close(descriptor)


@ray.remote
def mark(path: str, value: int) -> int:
    leave_time(path)
    return value


@ray.remote
def marked_total(path: str, *values: int) -> int:
    leave_time(path)
    return sum(values)
