"""A coordinator that starts anew with very many open workflows, and very many timers due at once.

    python -m benchmarks.restarts                                  # 100,000 open, 1,000 in flight
    python -m benchmarks.restarts --storage postgresql://... --open 10000

The workflows are written as an earlier life of the coordinator writes them. Then a new life of it
runs, loop, lease and threads, without Ray: how long Ray takes to start its process is not in the
figures, nor how long Ray tasks take to start.
"""

from __future__ import annotations

import argparse
import os
import queue
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from benchmarks.recovery import ARGUMENTS, BATCH, Author, make_plan
from ray_workflows._coordinator.admission import Limits
from ray_workflows._coordinator.clock import SteadyClock
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.liveness import LEASE_SECONDS, this_holder
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.offload import Inbox, ThreadOffloader, work_off
from ray_workflows._elapsed import elapsed
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.plan import TIMER, Function, Plan, TaskOptions, TaskSpec
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.storage import Storage
from ray_workflows.storage.urls import storage_from_url

#: After how many seconds a measurement is given up.
PATIENCE = 300.0

COORDINATOR = "the coordinator"


class Starts:
    """An executor that counts what it is to start, and starts nothing."""

    def __init__(self) -> None:
        self.count = 0

    def start(self, request: Any, followers: Any = ()) -> None:
        self.count += 1

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


class Life:
    """A life of the coordinator."""

    def __init__(self, storage: Storage) -> None:
        self.inbox: Inbox = queue.SimpleQueue()
        self.starts = Starts()
        self.loop = Loop(
            storage,
            self.starts,
            ThreadOffloader(self.inbox.put),
            this_holder(COORDINATOR),
            clock=SteadyClock(),
            elapsed=elapsed,
            new_id=lambda: uuid.uuid4().hex,
            limits=Limits(),
        )
        Lease(self.loop).start()

    def run(self, until: Callable[[], bool]) -> float:
        """Run until something holds; the seconds that took."""
        began = elapsed()
        while not until():
            if elapsed() > began + PATIENCE:
                raise TimeoutError(f"not within {PATIENCE:.0f} s")
            work_off(self.inbox, min(self.loop.step(), 0.01))
        return elapsed() - began


def make_sleep(seconds: float) -> Plan:
    """One timer."""
    function = Function(digest="f" * 64, name="sleep", data=b"")
    spec = TaskSpec(name="sleep", function=0, options=0, arguments=Value(bytes(ARGUMENTS)))
    options = TaskOptions(kind=TIMER, duration=seconds)
    return Plan((function,), (options,), (spec,), digest=f"{seconds}")


def write(storage: Storage, name: str, plans: Iterable[Plan]) -> None:
    """Workflows as an earlier life leaves them, which renewed its lease a moment ago."""
    holder = msgspec.structs.replace(this_holder(COORDINATOR), pid=1)
    waiting = []
    for number, plan in enumerate(plans):
        author = Author(storage, f"{name}{number}", holder.holder_id)
        author.decide(msg.Submit(plan=plan, metadata={}, incarnation=author.state.incarnation))
        waiting += author.waiting
        if len(waiting) >= BATCH:
            storage.commit(waiting)
            waiting = []
    if waiting:
        storage.commit(waiting)
    storage.renew_holder(holder, LEASE_SECONDS)


def measure_restart(storage: Storage, open_count: int, in_flight: int) -> None:
    """How soon it answers, and starts again what was in flight."""
    sleep, task = make_sleep(86400.0), make_plan(1)
    every = open_count // in_flight
    plans = [task if number % every == 0 else sleep for number in range(open_count)]
    write(storage, "open", plans)
    life = Life(storage)
    answers: list[Any] = []
    submit = msg.Submit(task, {}, uuid.uuid4().hex, "new")
    life.loop.ask("new", submit, answers.append)
    answered = life.run(lambda: bool(answers))
    started = answered + life.run(lambda: life.starts.count > in_flight)
    listed = started + life.run(lambda: life.loop.active.listed)
    at_rest = len(life.loop.active.evicted)
    print(
        f"{open_count} open, {at_rest} of them left in storage: a new one acknowledged after "
        f"{answered:.2f} s, {in_flight} in flight started after {started:.2f} s, all listed after "
        f"{listed:.2f} s"
    )


def measure_timers(storage: Storage, count: int) -> None:
    """How late timers are that are due within one second."""
    # All are written, and known, by then.
    first = time.time() + 10.0 + count / 500
    due = [first + number / count for number in range(count)]
    write(storage, "timer", (make_sleep(at - time.time()) for at in due))
    life = Life(storage)
    life.run(lambda: life.loop.active.listed)
    waited = len(life.loop.active.evicted)
    life.run(lambda: not life.loop.active.evicted and not life.loop.active)
    late, last = [], 0.0
    cursor = None
    while True:
        query = CatalogQuery(statuses=(WorkflowStatus.SUCCESSFUL,), cursor=cursor)
        page = storage.list_catalog(query)
        for row in page.rows:
            if row.workflow_id.startswith("timer") and row.ended_at is not None:
                number = int(row.workflow_id.removeprefix("timer"))
                late.append(row.ended_at - due[number])
                last = max(last, row.ended_at)
        cursor = page.cursor
        if cursor is None:
            break
    late.sort()
    print(
        f"{len(late)} timers ({waited} in storage alone): late by {late[len(late) // 2]:.2f} s in "
        f"the middle, by {late[-1]:.2f} s at worst; all fired within "
        f"{last - first:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--storage", help="a URL; by default SQLite in a new directory")
    parser.add_argument("--open", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=1_000)
    parser.add_argument("--timers", type=int, default=10_000)
    arguments = parser.parse_args()
    print("load average: {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
    with tempfile.TemporaryDirectory() as directory:
        storage = storage_from_url(arguments.storage or directory)
        storage.open()
        # Timers first: their life is not to read the others.
        if arguments.timers:
            measure_timers(storage, arguments.timers)
        if arguments.open:
            measure_restart(storage, arguments.open, arguments.in_flight)
        storage.close()


if __name__ == "__main__":
    main()
