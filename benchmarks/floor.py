"""The floor under `run_async`: its calls with nothing of ours in them, beside plain Ray's tasks.

An ObjectRef that becomes ready by itself belongs to a call of its own, and what is acknowledged was
answered. So a workflow by `run_async` takes these messages of Ray, whatever is done between them:
an acknowledged call of the coordinator, a call of the waiter, which the ref belongs to; a report of
the worker, whose answer brings it the next task; and a poll of the waiter. Here they are sent by
actors that keep nothing and store nothing. How many times as fast as plain Ray's tasks they are is
the most that a workflow can be.

    python benchmarks/floor.py [--rounds 8] [--size 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from tests.ray.processes import LOOPBACK  # noqa: E402

# Ray reads it when it is imported.
os.environ.update({"BENCH_CPUS": "2", **LOOPBACK})

import ray  # noqa: E402
from peers.clusters import start_cluster  # noqa: E402


@ray.remote(num_cpus=0, max_concurrency=10_000)
class Coordinator:
    """Takes tasks, gives them to a worker, and tells a waiter of their results."""

    def __init__(self) -> None:
        self.tasks: deque[int] = deque()
        self.done: list[tuple[int, int]] = []
        self.idle: asyncio.Future[int] | None = None
        self.news: asyncio.Future[None] | None = None

    async def submit(self, task: int) -> None:
        if self.idle is not None:
            idle, self.idle = self.idle, None
            idle.set_result(task)
        else:
            self.tasks.append(task)

    async def report(self, done: tuple[int, int] | None) -> int:
        if done is not None:
            self.done.append(done)
            if self.news is not None:
                news, self.news = self.news, None
                news.set_result(None)
        if self.tasks:
            return self.tasks.popleft()
        self.idle = asyncio.get_running_loop().create_future()
        return await self.idle

    async def poll(self) -> list[tuple[int, int]]:
        if not self.done:
            self.news = asyncio.get_running_loop().create_future()
            await self.news
        done, self.done = self.done, []
        return done


@ray.remote(num_cpus=0, max_concurrency=100_000)
class Waiter:
    """Has a call for each ObjectRef, and one poll for all of them."""

    def __init__(self, coordinator: Any) -> None:
        self.coordinator = coordinator
        self.results: dict[int, asyncio.Future[int]] = {}
        self.poller: asyncio.Task[None] | None = None

    def result(self, task: int) -> asyncio.Future[int]:
        if task not in self.results:
            self.results[task] = asyncio.get_running_loop().create_future()
        return self.results[task]

    async def output(self, task: int) -> int:
        if self.poller is None:
            self.poller = asyncio.create_task(self.poll())
        value = await self.result(task)
        del self.results[task]
        return value

    async def poll(self) -> None:
        while True:
            for task, value in await self.coordinator.poll.remote():
                self.result(task).set_result(value)

    async def echo(self, value: int) -> int:
        return value


@ray.remote
def identity(value: int) -> int:
    return value


@ray.remote
def work(coordinator: Any) -> None:
    """Runs task after task; -1 is the last one."""
    done = None
    while True:
        # As our workers wait, which keep their slot meanwhile.
        task = coordinator.report.remote(done).future().result()
        if task < 0:
            return
        done = task, task


def timed(run: Callable[[int], list[int]], size: int) -> float:
    started_at = time.perf_counter()
    assert run(size) == list(range(size))
    return time.perf_counter() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--size", type=int, default=2_000)
    options = parser.parse_args()
    start_cluster()
    coordinator = Coordinator.remote()
    waiter = Waiter.remote(coordinator)

    def tasks(size: int) -> list[int]:
        return ray.get([identity.remote(i) for i in range(size)])

    def in_a_loop(size: int) -> list[int]:
        refs = []
        for i in range(size):
            ray.get(coordinator.submit.remote(i))
            refs.append(waiter.output.remote(i))
        return ray.get(refs)

    def refs_alone(size: int) -> list[int]:
        return ray.get([waiter.echo.remote(i) for i in range(size)])

    names: dict[str, Callable[[int], list[int]]] = {
        "the calls of run_async in a loop": in_a_loop,
        "the refs of run_async_many": refs_alone,
    }
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds + 1):
        plain = timed(tasks, options.size)
        worker = work.remote(coordinator)
        for name, run in names.items():
            ratio = plain / timed(run, options.size)
            # The first round is for what starts.
            if number:
                ratios[name].append(ratio)
        ray.get([coordinator.submit.remote(-1), worker])
    for name, found in ratios.items():
        low, high = min(found), max(found)
        print(f"{name}: {statistics.median(found):.2f} ({low:.2f} to {high:.2f}) of plain Ray")


if __name__ == "__main__":
    main()
