"""What is measured, with which sizes and targets, and what has to come out. No dependencies."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS = "ours"
PLAIN, OLD, DBOS, DISK = "plain_ray", "ray_workflow", "dbos_sqlite", "disk"

#: Of one array, in bytes.
ARRAY_BYTES = 25_000_000

#: Tasks of one group of a reduction tree.
LEAVES = 1000


def durations(size: int) -> list[float]:
    """Durations from 1 ms to 1 s, as many short ones as long ones; the same in every round."""
    numbers = random.Random(5)
    return [10 ** numbers.uniform(-3, 0) for _ in range(size)]


@dataclass(frozen=True)
class Speed:
    """A target: how many times the speed of a peer, or of the slowest of several."""

    at_least: float
    peers: tuple[str, ...]


@dataclass(frozen=True)
class Limit:
    """A target: seconds, or a detail of a round in its unit."""

    at_most: float
    detail: str = ""
    unit: str = "s"


@dataclass(frozen=True)
class Workload:
    """``sizes``: of each peer that can do it, because speed is what is compared, and the slow ones
    would take minutes. ``expected`` gives the right result of a size."""

    name: str
    title: str
    sizes: dict[str, int]
    quick: int
    expected: Callable[[int], Any]
    targets: tuple[Speed | Limit, ...] = ()
    #: How long one round may take, and how many are enough of one that takes long.
    seconds: float = 240.0
    rounds: int = 100
    #: Of a series that shows how speed and memory change with size.
    scaling: bool = False
    #: Memory that one of its size takes, in bytes, where that is what may take the time: as much is
    #: touched before each turn, and the round before the first is as large as the others.
    memory: int = 0


def sum_below(size: int) -> int:
    return size * (size - 1) // 2


def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def scale(size: int) -> Workload:
    peers = {OURS: size} if size > 10_000 else {OURS: size, PLAIN: size}
    return Workload(
        f"scale_{size}",
        f"{size:,} no-op tasks through a reduction tree",
        peers,
        size if size <= 1_000 else 1_000,
        sum_below,
        seconds=1200.0,
        rounds=1 if size > 100_000 else 100,
        scaling=True,
    )


WORKLOADS = [
    Workload(
        "fan_out",
        "10,000 no-op tasks into one",
        {OURS: 10_000, PLAIN: 10_000, OLD: 500, DBOS: 500},
        100,
        sum_below,
        (Speed(10, (PLAIN,)), Speed(100, (OLD,))),
    ),
    Workload(
        "naps_10ms",
        "400 tasks of 10 ms",
        {OURS: 400, PLAIN: 400, OLD: 400},
        20,
        sum_below,
        (Speed(1.15, (PLAIN,)),),
    ),
    Workload(
        "naps_100ms",
        "400 tasks of 100 ms",
        {OURS: 400, PLAIN: 400, OLD: 100},
        10,
        sum_below,
        (Speed(0.99, (PLAIN,)),),
    ),
    Workload(
        "chain",
        "chain of 1,000, task by task",
        {OURS: 1000, PLAIN: 1000, OLD: 200, DBOS: 1000},
        20,
        lambda size: size,
        (Speed(1 / 1.5, (PLAIN,)),),
    ),
    Workload(
        "chain_unstored",
        "chain of 1,000 with checkpoint=False but for the last",
        {OURS: 1000, PLAIN: 1000, OLD: 200},
        20,
        lambda size: size,
        (Speed(20, (PLAIN,)),),
    ),
    Workload(
        "local_steps",
        "durable function, 1,000 steps in its process, one after the other",
        {OURS: 1000, DBOS: 1000},
        20,
        lambda size: size,
        (Speed(2.5, (DBOS,)),),
    ),
    Workload(
        "ray_steps",
        "durable function, 1,000 steps that are Ray tasks, one after the other",
        {OURS: 1000, PLAIN: 1000},
        20,
        lambda size: size,
        (Speed(1.0, (PLAIN,)),),
    ),
    Workload(
        "gathered_steps",
        "durable function, 10,000 steps that are Ray tasks, gathered",
        {OURS: 10_000, PLAIN: 10_000},
        100,
        sum_below,
        (Speed(8, (PLAIN,)),),
    ),
    Workload(
        "replay",
        "durable function with 10,000 steps: from a signal to its end",
        {OURS: 10_000},
        100,
        lambda size: size,
        (Limit(0.5),),
    ),
    Workload(
        "one_task",
        "one-task workflow, run to result",
        {OURS: 50, PLAIN: 50, OLD: 20, DBOS: 50},
        5,
        sum_below,
        (Speed(0.4, (PLAIN,)), Speed(1, (DBOS,))),
    ),
    Workload(
        "submit_loop",
        "2,000 one-task workflows by run_async in a loop",
        {OURS: 2000, PLAIN: 2000, OLD: 100, DBOS: 400},
        20,
        sum_below,
        (Speed(0.15, (PLAIN,)), Speed(4, (OLD,))),
    ),
    Workload(
        "submit_many",
        "2,000 one-task workflows by run_async_many",
        {OURS: 2000, PLAIN: 2000},
        20,
        sum_below,
        (Speed(2, (PLAIN,)),),
    ),
    Workload(
        "fib",
        "fib(12) by continuations",
        {OURS: 12, OLD: 12},
        5,
        fibonacci,
        (Speed(10, (OLD,)),),
    ),
    Workload(
        "arrays",
        "8 arrays of 25 MB, read by one task",
        {OURS: 8, PLAIN: 8, OLD: 8, DISK: 8},
        2,
        sum_below,
        (Speed(0.9, (DISK, PLAIN)),),
        memory=ARRAY_BYTES,
    ),
    Workload(
        "large_array",
        "1 array of 2 GB, read by one task",
        {OURS: 80, PLAIN: 80, DISK: 80},
        2,
        lambda size: size,
        (Speed(0.9, (DISK, PLAIN)),),
        rounds=5,
        memory=ARRAY_BYTES,
    ),
    Workload(
        "mixed",
        "80 tasks of 1 ms to 1 s",
        {OURS: 80, PLAIN: 80},
        10,
        sum_below,
        (Speed(0.97, (PLAIN,)),),
    ),
    Workload(
        "resume",
        "resume of 100,000 tasks, 90 % done: to the first new attempt",
        {OURS: 100_000},
        2_000,
        sum_below,
        (Limit(3),),
    ),
    Workload(
        "timer",
        "timer to task start",
        {OURS: 20},
        3,
        lambda size: size,
        (Limit(0.010),),
    ),
    Workload(
        "signal",
        "signal to task start",
        {OURS: 20},
        3,
        lambda size: size,
        (Limit(0.010),),
    ),
    *(scale(size) for size in (100, 1_000, 10_000, 100_000, 1_000_000)),
    Workload(
        "capture",
        "capture of 100,000 nodes",
        {OURS: 100_000},
        1_000,
        lambda size: size + 1,
        (Limit(3),),
    ),
    Workload(
        "engine",
        "engine and journal, of a task",
        {OURS: 2_000},
        2_000,
        lambda size: size,
        (Limit(20, "microseconds", "microseconds"),),
    ),
    # The last: they sleep on.
    Workload(
        "sleeping",
        "100,000 sleeping workflows",
        {OURS: 100_000},
        100,
        lambda size: size,
        (Limit(2_000, "coordinator_mib", "MiB"), Limit(5, "asleep_percent", "% of a core")),
        seconds=1800.0,
        rounds=1,
    ),
]
