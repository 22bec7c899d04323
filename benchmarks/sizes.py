"""The sizes it must take: a deep chain, a diamond ladder, a wide fan-out, a long loop.

Prints what each took, and the memory of the coordinator before and after. Not a timed test: it
fails only if a result is wrong.

    python benchmarks/sizes.py [--scale 0.1]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

import ray_workflows as workflow
from ray_workflows._client.connection import connect


@ray.remote
def first() -> int:
    return 0


@ray.remote
def increment(value: int) -> int:
    return value + 1


@ray.remote
def add(a: int, b: int) -> int:
    return a + b


@ray.remote
def count(values: list[ray.ObjectRef]) -> int:
    return len(values)


@ray.remote
def total(*values: int) -> int:
    return sum(values)


@ray.remote
def loop(turns: int) -> Any:
    if turns == 0:
        return "done"
    return workflow.continuation(loop.bind(turns - 1))


def chain(length: int) -> tuple[Any, Any]:
    node = first.bind()
    for _ in range(length):
        node = increment.bind(node)
    return node, length


def ladder(rungs: int) -> tuple[Any, Any]:
    left, right = first.bind(), increment.bind(0)
    for _ in range(rungs):
        left, right = add.bind(left, right), add.bind(right, left)
    a, b = 0, 1
    for _ in range(rungs):
        a, b = a + b, b + a
    return add.bind(left, right), a + b


def fan_in(width: int) -> tuple[Any, Any]:
    return total.bind(*(increment.bind(i) for i in range(width))), width * (width + 1) // 2


def fan_in_refs(width: int) -> tuple[Any, Any]:
    return count.bind([increment.bind(i) for i in range(width)]), width


def turns(number: int) -> tuple[Any, Any]:
    return loop.bind(number), "done"


SIZES: list[tuple[str, Callable[[int], tuple[Any, Any]], int]] = [
    ("chain, tasks deep", chain, 10_000),
    ("diamond ladder, rungs", ladder, 60),
    ("fan-out into one, tasks", fan_in, 10_000),
    ("fan-out into one as refs, tasks", fan_in_refs, 10_000),
    ("loop of continuations, turns", turns, 5_000),
]


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the full sizes")
    scale = parser.parse_args().scale
    console = Console()
    table = Table(
        "workload", "size", "bind s", "run s", "tasks/s", "coordinator MiB before", "after"
    )
    with tempfile.TemporaryDirectory() as directory:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        workflow.init(directory)
        workflow.run(first.bind())
        pid = ray.get(connect().coordinator.describe.remote())["holder"].pid
        for name, make, full_size in SIZES:
            size = max(1, int(full_size * scale))
            before = resident_mib(pid)
            started = time.perf_counter()
            dag, expected = make(size)
            bound = time.perf_counter()
            result = workflow.run(dag, workflow_id=name)
            ended = time.perf_counter()
            assert result == expected, (name, result, expected)
            table.add_row(
                name,
                f"{size:,}",
                f"{bound - started:.2f}",
                f"{ended - bound:.2f}",
                f"{size / (ended - bound):,.0f}",
                f"{before:.0f}",
                f"{resident_mib(pid):.0f}",
            )
            console.print(f"{name}: {ended - bound:.1f} s")
        ray.shutdown()
    console.print(table)


if __name__ == "__main__":
    main()
