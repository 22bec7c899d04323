"""The floor under `run` and `run_async`: their calls with nothing of ours, beside plain Ray.

A one-task workflow by `run` takes a call of the coordinator, which answers when the worker has
reported, by a call whose answer brings it the next task. By `run_async` the first is answered at
once, and there are two more: an ObjectRef that becomes ready by itself belongs to a call of its
own, of the waiter, which polls the coordinator. Here they are sent, one argument of bytes each, by
actors that keep nothing and store nothing. How many times as fast as plain Ray's tasks they are is
the most that a workflow can be.

    python benchmarks/floor.py [--rounds 8] [--size 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from tests.ray.processes import LOOPBACK  # noqa: E402

# Ray reads it when it is imported.
os.environ.update({"BENCH_CPUS": "2", **LOOPBACK})

import ray  # noqa: E402
from peers.clusters import start_cluster  # noqa: E402

#: The last task of a worker.
LAST = b""

#: Bytes of any other one, and of its result.
WIDTH = 8


@ray.remote(num_cpus=0, max_concurrency=64)
class Coordinator:
    """Takes tasks, gives them to a worker, and tells of their results."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        #: Callers that wait for one result, and do not poll.
        self.callers: dict[bytes, queue.SimpleQueue[bytes]] = {}

    def submit(self, task: bytes) -> bytes:
        self.tasks.put(task)
        return b""

    def run(self, task: bytes) -> bytes:
        result = self.callers[task] = queue.SimpleQueue()
        self.tasks.put(task)
        return result.get()

    def report(self, done: bytes) -> bytes:
        if done:
            self.callers.pop(done, self.done).put(done)
        return self.tasks.get()

    def poll(self) -> bytes:
        found = [self.done.get()]
        while not self.done.empty():
            found.append(self.done.get())
        return b"".join(found)


@ray.remote(num_cpus=0, max_concurrency=100_000)
class Waiter:
    """Has a call for each ObjectRef, and one poll for all of them."""

    def __init__(self, coordinator: Any) -> None:
        self.coordinator = coordinator
        self.results: dict[bytes, asyncio.Future[bytes]] = {}
        self.poller: asyncio.Task[None] | None = None

    def result(self, task: bytes) -> asyncio.Future[bytes]:
        if task not in self.results:
            self.results[task] = asyncio.get_running_loop().create_future()
        return self.results[task]

    async def output(self, task: bytes) -> bytes:
        if self.poller is None:
            self.poller = asyncio.create_task(self.poll())
        value = await self.result(task)
        del self.results[task]
        return value

    async def poll(self) -> None:
        while True:
            done = await self.coordinator.poll.remote()
            for start in range(0, len(done), WIDTH):
                task = done[start : start + WIDTH]
                self.result(task).set_result(task)

    async def echo(self, value: bytes) -> bytes:
        return value


@ray.remote
def identity(value: int) -> int:
    return value


@ray.remote
def work(coordinator: Any) -> None:
    """Runs task after task."""
    done = b""
    # As our workers wait, which keep their slot meanwhile.
    while task := coordinator.report.remote(done).future().result():
        done = task


def encode(number: int) -> bytes:
    return number.to_bytes(WIDTH, "big")


def decode(results: Iterable[bytes]) -> list[int]:
    return [int.from_bytes(result, "big") for result in results]


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

    def tasks_one_by_one(size: int) -> list[int]:
        return [ray.get(identity.remote(i)) for i in range(size)]

    def one_by_one(size: int) -> list[int]:
        return decode(ray.get(coordinator.run.remote(encode(i))) for i in range(size))

    def in_a_loop(size: int) -> list[int]:
        refs = []
        for i in range(size):
            task = encode(i)
            ray.get(coordinator.submit.remote(task))
            refs.append(waiter.output.remote(task))
        return decode(ray.get(refs))

    def refs_alone(size: int) -> list[int]:
        return decode(ray.get([waiter.echo.remote(encode(i)) for i in range(size)]))

    pairs = {
        "the calls of run, one after the other": (one_by_one, tasks_one_by_one),
        "the calls of run_async in a loop": (in_a_loop, tasks),
        "the refs of run_async_many": (refs_alone, tasks),
    }
    ratios: dict[str, list[float]] = {name: [] for name in pairs}
    for number in range(options.rounds + 1):
        for name, (ours, plain) in pairs.items():
            theirs = timed(plain, options.size)
            worker = work.remote(coordinator)
            ratio = theirs / timed(ours, options.size)
            ray.get([coordinator.submit.remote(LAST), worker])
            # The first round is for what starts.
            if number:
                ratios[name].append(ratio)
    for name, found in ratios.items():
        low, high = min(found), max(found)
        print(f"{name}: {statistics.median(found):.2f} ({low:.2f} to {high:.2f}) of plain Ray")


if __name__ == "__main__":
    main()
