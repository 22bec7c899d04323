"""One workflow in a store of objects in memory: what happened to it, what a process does next, and
what must be true whatever became of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.objects.journals import HOUR, segment_key
from ray_workflows.testing.builders import OK, incarnation_of, list_ids, make_append
from ray_workflows.testing.clock import VirtualClock
from tests.support.put_once import Interrupted, MemoryObjectStorage, MemoryOperations

RUNNING, PENDING = WorkflowStatus.RUNNING, WorkflowStatus.PENDING
FAILED, SUCCESSFUL = WorkflowStatus.FAILED, WorkflowStatus.SUCCESSFUL
CANCELED = WorkflowStatus.CANCELED

DAY = 24 * 3600.0


class World:
    """One store, and processes that use it."""

    def __init__(self) -> None:
        self.clock = VirtualClock(1_700_000_000.0)
        self.operations = MemoryOperations(self.clock)
        self.storage = self.process()
        self.storage.open()

    def process(self, at: int = 0, how: str = "before") -> MemoryObjectStorage:
        """A process that meets trouble at its n-th operation."""
        return MemoryObjectStorage(Interrupted(self.operations, at, how), self.clock)

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    def sweep(self) -> None:
        """Let days pass, in which storages are swept."""
        for _ in range(5):
            self.pass_time(DAY)
            process = self.process()
            process.sweep(DAY)
            process.close()
        # Each process that asks for the time writes one, and removes it at its end or a day later.
        clocks = [key for key in self.operations.objects if key.startswith("clocks/")]
        assert all(self.operations.objects[key].modified > self.clock() - 3 * DAY for key in clocks)

    def needed(self) -> set[str]:
        """The keys that the workflows need that there are."""
        storage = self.process()
        keys = {"layout"} | {key for key in self.operations.objects if key.startswith("clocks/")}
        for workflow_id in list_ids(storage):
            chain = storage.journals.home.journals.chain(workflow_id)
            incarnation, end = storage.journals.home.journals.current(chain)
            keys |= {segment_key(incarnation, n) for n in range(1, end.seq + 1)}
            keys |= {key for key, pointer in chain if pointer.incarnation == incarnation}
            keys.add(end.segment.listed_as)
            keys |= {k for k in self.operations.objects if k.startswith(f"blobs/{incarnation}/")}
        return keys


@dataclass(frozen=True)
class Case:
    """Something that one process does, after something that happened before."""

    name: str
    before: Callable[[World], None]
    act: Callable[[Storage], list[CommitOutcome]]
    #: The end of the journal of "w" before and after; 0: there is none.
    ends: tuple[int, int]


def history(*statuses: WorkflowStatus, delete: bool = False, wait: float = 0.0, **fields):
    def make(world: World) -> None:
        for seq, status in enumerate(statuses):
            holder = f"h{seq}" if fields.get("holders") else "h"
            append = make_append("w", seq, status=status, holder=holder)
            assert world.process().commit([append]) == [OK]
            world.process().write_blob(append.incarnation, f"b{seq}", [b"blob"])
        if delete:
            assert world.process().delete("w", incarnation_of("w"), len(statuses)) is OK
        world.pass_time(wait)

    return make


def commits(*appends) -> Callable[[Storage], list[CommitOutcome]]:
    return lambda storage: storage.commit(appends)


def deletes(seq: int) -> Callable[[Storage], list[CommitOutcome]]:
    return lambda storage: [storage.delete("w", incarnation_of("w"), seq)]


def drives(*statuses: WorkflowStatus) -> Callable[[Storage], list[CommitOutcome]]:
    """One process that knows what it wrote, entry by entry."""

    def act(storage: Storage) -> list[CommitOutcome]:
        appends = [make_append("w", seq, status=status) for seq, status in enumerate(statuses)]
        return [storage.commit([append])[0] for append in appends]

    return act


AGAIN = make_append("w", 0, incarnation="i-again")
R, F, S, C, P = RUNNING, FAILED, SUCCESSFUL, CANCELED, PENDING

CASES = [
    Case("create", history(), commits(make_append("w", 0)), (0, 1)),
    Case("create settled", history(), commits(make_append("w", 0, status=F)), (0, 1)),
    Case("append", history(R), commits(make_append("w", 1)), (1, 2)),
    Case("start", history(P), commits(make_append("w", 1, status=R)), (1, 2)),
    Case("claim", history(R), commits(make_append("w", 1, holder="h2")), (1, 2)),
    Case("finish", history(R, R), commits(make_append("w", 2, status=S)), (2, 3)),
    Case("resume", history(R, F), commits(make_append("w", 2, status=R)), (2, 3)),
    Case("cancel a failed one", history(R, F), commits(make_append("w", 2, status=C)), (2, 3)),
    Case("late sibling", history(R, F), commits(make_append("w", 2, status=F)), (2, 3)),
    Case("release", history(R), commits(make_append("w", 1, released=True)), (1, 2)),
    Case("delete settled", history(R, S), deletes(2), (2, 0)),
    Case("delete running", history(R), deletes(1), (1, 0)),
    Case("create again", history(R, S, delete=True), commits(AGAIN), (0, 1)),
    Case("create much later", history(R, delete=True, wait=HOUR * 1.5), commits(AGAIN), (0, 1)),
    Case(
        "create twice over",
        history(),
        commits(make_append("w", 0), make_append("w", 1, status=S)),
        (0, 2),
    ),
    Case("whole life", history(), drives(P, R, R, S), (0, 4)),
    Case("second life", history(R, F), lambda s: drives_on(s, 2, R, R, F), (2, 5)),
]


def drives_on(storage: Storage, seq: int, *statuses: WorkflowStatus) -> list[CommitOutcome]:
    return [
        storage.commit([make_append("w", seq + n, status=status)])[0]
        for n, status in enumerate(statuses)
    ]


def check_consistent(world: World) -> tuple[int, WorkflowStatus | None]:
    """All that can be read of "w" agrees; where it ends, and its status."""
    storage = world.process()
    row = storage.read_catalog("w")
    if row is None:
        assert list_ids(storage) == []
        assert list_ids(world.process(), newest_first=True) == []
        return 0, None
    journal = storage.read_journal(row.incarnation)
    assert [entry.seq for entry in journal] == list(range(1, row.seq + 1))
    for query in (CatalogQuery(), CatalogQuery(newest_first=True)):
        (listed,) = world.process().list_catalog(query).rows
        assert (listed.incarnation, listed.status) == (row.incarnation, row.status)
        assert (listed.holder, listed.released) == (row.holder, row.released)
    for status in WorkflowStatus:
        found = list_ids(world.process(), statuses=(status,))
        assert found == (["w"] if status is row.status else [])
    return row.seq, row.status
