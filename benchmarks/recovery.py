"""What a coordinator reads of long journals: a loop of continuations, and very many tasks.

    python -m benchmarks.recovery                           # both, as large as they can be
    python -m benchmarks.recovery --turns 1000 --tasks 10000

Journals are written as a coordinator writes them, with its rule for snapshots, into SQLite.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from ray_workflows._codec.journal import NO_LINK, encode_entry, link_of
from ray_workflows._coordinator.recovery import read_state, recover
from ray_workflows._coordinator.snapshots import NOTHING, RULE, next_snapshot
from ray_workflows._engine.decide import decide
from ray_workflows._engine.decision import Surroundings
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row, due_at_of
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append
from ray_workflows._model.plan import Function, Plan, TaskOptions, TaskSpec
from ray_workflows._model.values import Value
from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.base import CommitOutcome

#: Bytes of a pickled function and of the arguments of a task, as small ones have.
FUNCTION, ARGUMENTS = 700, 60

#: Reports that become one entry, where there are many.
GROUP = 100

#: Entries in one commit: how the journal came to be is not measured.
BATCH = 500


class Author:
    """Writes a journal as a coordinator does."""

    def __init__(self, storage: Storage, workflow_id: str, holder: str = "writer") -> None:
        self.storage = storage
        self.holder = holder
        self.state = WorkflowState(workflow_id, uuid.uuid4().hex)
        self.seq = 0
        self.link = NO_LINK
        self.unsaved = NOTHING
        self.waiting: list[Append] = []
        self.written = 0

    def decide(self, *inputs: msg.Input) -> None:
        """Append what follows from inputs."""
        events = []
        state, now = self.state, time.time()
        for each in inputs:
            for event in decide(state, each, now, Surroundings(self.holder)).events:
                evolve(state, event)
                events.append(event)
        saved = next_snapshot(RULE, self.unsaved, state, now)
        if saved is not None:
            events.append(saved)
        self.seq += 1
        where = state.workflow_id, state.incarnation
        entry = encode_entry(events, *where, self.seq, self.link)
        self.link = link_of(entry)
        self.unsaved = self.unsaved.after(self.seq, len(entry), saved)
        row = catalog_row(state, self.seq, self.unsaved.snapshot, due_at_of(state))
        self.waiting.append(Append(*where, self.seq - 1, uuid.uuid4().hex, entry, row))
        self.written += len(entry)
        if len(self.waiting) == BATCH:
            self.flush()

    def flush(self) -> None:
        outcomes = self.storage.commit(self.waiting)
        assert outcomes == [CommitOutcome.OK] * len(self.waiting)
        self.waiting = []


def make_plan(size: int) -> Plan:
    """Independent tasks, and one that takes the last one's result."""
    spec: dict[str, Any] = {"function": 0, "options": 0, "arguments": Value(bytes(ARGUMENTS))}
    tasks = [TaskSpec(name="work", **spec) for _ in range(size - 1)]
    upstream = (size - 2,) if size > 1 else ()
    tasks.append(TaskSpec(name="last", upstream=upstream, **spec))
    function = Function(digest="f" * 64, name="work", data=bytes(FUNCTION))
    return Plan((function,), (TaskOptions(),), tuple(tasks), digest="d" * 64)


def write_loop(storage: Storage, turns: int) -> Author:
    """A workflow that continues with itself ``turns`` times."""
    author, plan = Author(storage, "loop"), make_plan(1)
    author.decide(msg.Submit(plan=plan, metadata={}))
    for number in range(turns):
        author.decide(
            msg.AttemptReturnedPlan(
                task=number, epoch=0, attempt=1, started_at=1.0, ended_at=2.0, plan=plan
            )
        )
    author.flush()
    return author


def write_tasks(storage: Storage, size: int) -> Author:
    """A workflow of ``size`` tasks, half of which are done."""
    author = Author(storage, "tasks")
    author.decide(msg.Submit(plan=make_plan(size), metadata={}))
    for first in range(0, size // 2, GROUP):
        author.decide(
            *(
                msg.AttemptReturned(
                    task=number,
                    epoch=0,
                    attempt=1,
                    started_at=1.0,
                    ended_at=2.0,
                    value=Value(bytes(ARGUMENTS)),
                )
                for number in range(first, min(first + GROUP, size // 2))
            )
        )
    author.flush()
    return author


class Counting:
    """Counts the bytes of entries that are read."""

    def __init__(self, storage: Storage) -> None:
        self.size = 0
        read = storage.journals.read_journal

        def read_journal(incarnation: str, after: int = 0) -> Any:
            entries = read(incarnation, after)
            self.size += sum(len(entry.entry) for entry in entries)
            return entries

        storage.journals.read_journal = read_journal  # type: ignore[method-assign]


def measure(what: str, counting: Counting, work: Callable[[], Any]) -> None:
    """Print how long something takes at best of five, how much it reads, and its peak of memory."""
    seconds = []
    for _ in range(5):
        counting.size = 0
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
        if seconds[0] > 1.0:
            break
    size = counting.size
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{what}: {min(seconds):.4f} s, {size / 1e6:.2f} MB read, peak {peak / 1e6:.1f} MB")


def ask(storage: Storage, workflow_id: str, input: msg.Input) -> None:
    """Decide on what is asked about a workflow that another coordinator drives, and commit it."""
    found = recover(storage, workflow_id, whole=False)
    assert found is not None
    state, seq = found.state, found.seq + 1
    around = Surroundings("other", driven_elsewhere=True)
    events = decide(state, input, time.time(), around).events
    for event in events:
        evolve(state, event)
    entry = encode_entry(events, state.workflow_id, state.incarnation, seq, found.link)
    row = catalog_row(state, seq, found.unsaved.snapshot)
    append = Append(state.workflow_id, state.incarnation, seq - 1, uuid.uuid4().hex, entry, row)
    assert storage.commit([append]) == [CommitOutcome.OK]


def main() -> None:
    """Write the journals and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        storage = SqliteStorage(directory)
        storage.open()
        counting = Counting(storage)
        loop = write_loop(storage, options.turns)
        print(f"a loop of {options.turns} continuations: {loop.written / 1e6:.1f} MB")
        measure("recover it", counting, lambda: recover(storage, "loop"))
        row = storage.read_catalog("loop")
        assert row is not None
        first = msgspec.structs.replace(row, snapshot=0)
        measure("the same from its first entry", counting, lambda: read_state(storage, first))
        tasks = write_tasks(storage, options.tasks)
        print(f"{options.tasks} tasks: {tasks.written / 1e6:.1f} MB")
        del tasks
        value = Value(b"value")
        measure(
            "signal",
            counting,
            lambda: ask(storage, "tasks", msg.Signal("s", uuid.uuid4().hex, value)),
        )
        measure("status", counting, lambda: storage.read_catalog("tasks"))
        measure("cancel", counting, lambda: ask(storage, "tasks", msg.Cancel()))
        measure("recover all of it", counting, lambda: recover(storage, "tasks"))
        storage.close()


if __name__ == "__main__":
    main()
