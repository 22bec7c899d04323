"""`PutOnceStorage` keeps the contract and its own promises: a crash between any two operations,
answers that get lost, writers that slept for hours, and nothing left over for ever."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.objects.client import Crew
from ray_workflows.storage.objects.index_keys import (
    Entry,
    day,
    entry_key,
    id_of,
    parse,
    place,
    time_of,
)
from ray_workflows.storage.objects.journals import GRAVE_SECONDS, HOUR, READING_SECONDS, segment_key
from ray_workflows.storage.objects.records import Layout, encode
from ray_workflows.storage.objects.storage import LAYOUT_KEY, LAYOUT_VERSION
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    incarnation_of,
    list_ids,
    make_append,
    make_holder,
    make_row,
    state,
)
from ray_workflows.testing.clock import VirtualClock
from tests.put_once import Crash, Interrupted, MemoryObjectStorage, MemoryOperations

RUNNING, PENDING = WorkflowStatus.RUNNING, WorkflowStatus.PENDING
FAILED, SUCCESSFUL = WorkflowStatus.FAILED, WorkflowStatus.SUCCESSFUL
CANCELED = WorkflowStatus.CANCELED

DAY = 24 * 3600.0


class TestPutOnceStorage(StorageContract):
    shared = False

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        storage = MemoryObjectStorage(MemoryOperations(time.time), time.time, Crew(8))
        storage.open()
        yield storage
        storage.close()


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
            chain = storage.journals.chain(workflow_id)
            incarnation, end = storage.journals.current(chain)
            keys |= {segment_key(incarnation, n) for n in range(1, end.seq + 1)}
            keys |= {key for key, pointer in chain if pointer.incarnation == incarnation}
            keys.add(end.segment.listed_as)
            keys |= {k for k in self.operations.objects if k.startswith(f"blobs/{incarnation}/")}
        return keys


@pytest.fixture
def world() -> World:
    return World()


# -- a crash between any two operations -------------------------------------------------------


def append(*arguments, **fields):
    return make_append(*arguments, **fields)


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


@pytest.mark.parametrize("sweep_at_once", [False, True])
@pytest.mark.parametrize("how", ["before", "after", "lost", "failed", "retried"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_interrupted_anywhere(case: Case, how: str, sweep_at_once: bool) -> None:
    before, after = case.ends
    for at in itertools.count(1):
        world = World()
        case.before(world)
        process = world.process(at, how)
        said: list[CommitOutcome] = []
        with contextlib.suppress(Crash, StorageUnavailableError):
            said = case.act(process)
        reached = process.operations.count >= at
        if sweep_at_once:
            world.process().sweep(DAY)
        if how == "retried" or (how == "lost" and process.operations.met == "create"):
            # It is known as our own.
            assert set(said) == {OK}
        if how in ("lost", "failed"):
            # It lives on, and mends what it owes.
            process.operations.at = 0
            process.renew_holder(make_holder("other"), 15.0)
            process.remove_holder("other")
        end, _ = check_consistent(world)
        low, high = sorted((before, after)) if before else (0, after)
        assert low <= end <= high
        if said and all(outcome is OK for outcome in said):
            assert end == after
        if STALE in said:
            # Without a rival, only what follows an unknown outcome can be stale.
            assert said[0] is not STALE
        if said == [CommitOutcome.AMBIGUOUS]:
            assert how in ("lost", "failed")
        # Somebody else can go on.
        other = world.process()
        if end:
            incarnation = other.read_catalog("w").incarnation
            assert other.commit(
                [make_append("w", end, incarnation=incarnation, holder="next", status=R)]
            ) == [OK]
            assert check_consistent(world) == (end + 1, R)
            assert other.delete("w", incarnation, end + 1) is OK
        assert other.commit([make_append("w", 0, incarnation="i-next")]) == [OK]
        assert check_consistent(world)[0] == 1
        world.sweep()
        assert set(world.operations.objects) == world.needed()
        if not reached:
            assert at > 1
            break


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_left_is_swept(case: Case, how: str) -> None:
    """Also where nobody touches the workflow again; and sweeping changes nothing that is read."""
    for at in itertools.count(1):
        world = World()
        case.before(world)
        process = world.process(at, how)
        try:
            case.act(process)
        except Crash:
            reached = True
        else:
            reached = False
        found = check_consistent(world)
        world.sweep()
        assert check_consistent(world) == found
        assert set(world.operations.objects) == world.needed()
        if not reached:
            break


@pytest.mark.parametrize("how", ["before", "after"])
def test_interrupted_sweep(how: str) -> None:
    def prepare() -> World:
        world = World()
        history(R, S, delete=True)(world)
        world.storage.write_blob("i-orphan", "k", [b"x"])
        world.process().commit([make_append("kept", 0)])
        for at in (3, 5, 7):
            lost = world.process(at, "before")
            with contextlib.suppress(Crash):
                lost.commit([make_append(f"lost-{at}", 0)])
        return world

    for at in itertools.count(1):
        world = prepare()
        kept = set(list_ids(world.process()))
        world.pass_time(2 * DAY)
        process = world.process(at, how)
        try:
            process.sweep(DAY)
        except Crash:
            reached = True
        else:
            reached = False
        assert "kept" in kept
        assert set(list_ids(world.process())) == kept
        world.sweep()
        assert set(list_ids(world.process())) == kept
        assert set(world.operations.objects) == world.needed()
        if not reached:
            assert at > 20
            break


@pytest.mark.parametrize("status", [RUNNING, FAILED])
@pytest.mark.parametrize("how", ["lost", "failed"])
def test_a_creation_whose_outcome_was_unknown_is_repeated(how: str, status: WorkflowStatus) -> None:
    """As the coordinator does: it looks for its commit id, and commits the same once more."""
    append = make_append("w", 0, commit_id="mine", status=status)
    for at in itertools.count(1):
        world = World()
        process = world.process(at, how)
        with contextlib.suppress(StorageUnavailableError):
            if process.commit([append]) == [OK]:
                assert process.read_catalog("w") == append.catalog
        if process.operations.count < at:
            break
        process.operations.at = 0
        if not process.read_journal(append.incarnation):
            assert process.commit([append]) == [OK]
        assert check_consistent(world) == (1, status)
        assert process.commit([append]) == [STALE]
        assert check_consistent(world) == (1, status)
        world.sweep()
        assert set(world.operations.objects) == world.needed()
    assert at > 5


def test_journals_without_an_entry_are_found() -> None:
    """The parts of a creation are put at once: its entry may be the one that is missing. And an
    entry may be lost."""
    world = World()
    fill(world.storage, "kept", 2)
    with contextlib.suppress(Crash):
        world.process(4, "before").commit([make_append("broken off", 0)])
    for key in [key for key in world.operations.objects if key.startswith("index/")]:
        world.operations.delete([key])
    assert list_ids(world.process()) == []
    assert world.process().read_catalog("kept") is not None
    world.sweep()
    assert list_ids(world.process()) == ["kept"]
    assert set(world.operations.objects) == world.needed()


# -- rivals at every moment -------------------------------------------------------------------


def rival(world: World, act: Callable[[MemoryObjectStorage], object]) -> Callable[[], None]:
    return lambda: (act(world.process()), None)[1]


@pytest.mark.parametrize(
    ("case", "others"),
    [
        ("create", lambda s: s.commit([make_append("w", 0, incarnation="i-rival")])),
        ("create again", lambda s: s.commit([make_append("w", 0, incarnation="i-rival")])),
        ("create much later", lambda s: s.commit([make_append("w", 0, incarnation="i-rival")])),
        ("append", lambda s: s.commit([make_append("w", 1, holder="rival")])),
        ("claim", lambda s: s.commit([make_append("w", 1, holder="rival")])),
        ("finish", lambda s: s.commit([make_append("w", 2, holder="rival")])),
        ("resume", lambda s: s.commit([make_append("w", 2, holder="rival", status=R)])),
        ("resume", lambda s: [s.delete("w", incarnation_of("w"), 2)]),
        ("finish", lambda s: [s.delete("w", incarnation_of("w"), 2)]),
        ("delete settled", lambda s: s.commit([make_append("w", 2, holder="rival")])),
        ("delete running", lambda s: [s.delete("w", incarnation_of("w"), 1)]),
    ],
)
def test_a_rival_between_any_two_operations(case: str, others) -> None:
    """Exactly one of them succeeds, wherever the other comes in between."""
    (found,) = (c for c in CASES if c.name == case)
    for at in itertools.count(1):
        world = World()
        found.before(world)
        process = world.process(at, "none")
        theirs: list[CommitOutcome] = []
        process.operations.meanwhile = lambda: theirs.extend(others(world.process()))
        ours = found.act(process)
        if process.operations.count < at:
            break
        assert sorted([*ours, *theirs]) == [OK, STALE], (at, ours, theirs)
        check_consistent(world)
        world.sweep()
        check_consistent(world)
        assert set(world.operations.objects) == world.needed()
    assert at > 2


@pytest.mark.parametrize(("was", "becomes"), [(R, R), (R, S), (F, R), (F, S)])
def test_a_live_writer_that_was_overtaken_lists_nothing_untrue(
    was: WorkflowStatus, becomes: WorkflowStatus
) -> None:
    """Its append is in the journal, but before it was listed another went on from there: its
    entry, which its own lease makes believable, must not stay."""
    for at in itertools.count(1):
        world = World()
        history(R, was)(world)
        process = world.process(at, "none")
        for holder_id in ("slow", "other"):
            process.renew_holder(make_holder(holder_id), 1e6)
        process.operations.count = 0

        def meanwhile() -> None:
            other = world.process()
            seq = other.read_catalog("w").seq
            for status in (R, C):
                append = make_append("w", seq, status=status, holder="other")
                assert other.commit([append]) == [OK]
                seq += 1

        process.operations.meanwhile = meanwhile
        process.commit([make_append("w", 2, status=becomes, holder="slow")])
        if process.operations.count < at:
            break
        assert check_consistent(world)[1] is C
    assert at > 4


def test_creations_in_different_hours_are_rivals_too() -> None:
    """They put different pointers: no more than one is told that it succeeded."""
    for at in itertools.count(1):
        world = World()
        process = world.process(at, "none")
        theirs: list[CommitOutcome] = []

        def meanwhile() -> None:
            other = world.process()
            other.journals.clock = lambda: world.clock() + HOUR
            theirs.extend(other.commit([make_append("w", 0, incarnation="i-rival")]))

        process.operations.meanwhile = meanwhile
        ours = process.commit([make_append("w", 0)])
        if process.operations.count < at:
            break
        assert [*ours, *theirs].count(OK) <= 1
        check_consistent(world)
        world.sweep()
        check_consistent(world)
        assert set(world.operations.objects) == world.needed()


# -- writers that slept -----------------------------------------------------------------------


@pytest.mark.parametrize("hours", [0.0, 0.5, 3.0, 60.0])
@pytest.mark.parametrize("again", [False, True])
def test_a_stale_writer_after_a_deletion(world: World, hours: float, again: bool) -> None:
    """However long it slept: also when nothing reminds of the workflow any more."""
    sleeper = world.process()
    assert sleeper.commit([make_append("w", 0)]) == [OK]
    assert sleeper.commit([make_append("w", 1)]) == [OK]
    other = world.process()
    for seq in (2, 3):
        assert other.commit([make_append("w", seq, holder="other", status=S)]) == [OK]
    assert other.delete("w", incarnation_of("w"), 4) is OK
    world.pass_time(hours * HOUR)
    world.process().sweep(DAY)
    if again:
        assert world.process().commit([make_append("w", 0, incarnation="i-2")]) == [OK]
    assert sleeper.commit([make_append("w", 2)]) == [STALE]
    assert world.process().read_journal(incarnation_of("w")) == []
    assert list_ids(world.process()) == (["w"] if again else [])
    world.sweep()
    assert set(world.operations.objects) == world.needed()


def test_a_writer_that_sleeps_within_its_append(world: World) -> None:
    """It read, slept for days in which the workflow was deleted and swept, and then wrote."""
    for at in (1, 2):
        world = World()
        fill(world.storage, "w", 2)
        sleeper = world.process(at, "none")

        def meanwhile() -> None:
            assert world.process().delete("w", incarnation_of("w"), 2) is OK
            world.sweep()

        sleeper.operations.meanwhile = meanwhile
        assert sleeper.commit([make_append("w", 2, status=S)]) == [STALE]
        assert world.process().read_journal(incarnation_of("w")) == []
        assert list_ids(world.process()) == []
        world.sweep()
        assert set(world.operations.objects) == world.needed()


def test_a_creation_that_lost_leaves_its_incarnation_free(world: World) -> None:
    """Its submission is made again under the same one, when the id is free by then."""
    assert world.process().commit([make_append("w", 0, incarnation="i-1")]) == [OK]
    late = make_append("w", 0, incarnation="i-2", commit_id="first try")
    assert world.process().commit([late]) == [STALE]
    assert world.process().delete("w", "i-1", 1) is OK
    again = make_append("w", 0, incarnation="i-2", commit_id="second try", holder="h2")
    assert world.process().commit([again]) == [OK]
    assert world.process().read_catalog("w") == again.catalog


def test_emptied_segments_have_no_contents(world: World) -> None:
    append = make_append("w", 0, entry=b"private" * 10, error="private")
    assert world.storage.commit([append]) == [OK]
    world.storage.write_blob(append.incarnation, "k", [b"private"])
    assert world.storage.delete("w", append.incarnation, 1) is OK
    stored = b"".join(found.data for found in world.operations.objects.values())
    assert b"private" not in stored


@pytest.mark.parametrize("name", ["append", "claim", "finish", "resume", "cancel a failed one"])
def test_a_writer_that_sleeps_for_days_within_its_append(name: str) -> None:
    """Nobody else came, but what it had put before its segment was swept as a leftover."""
    (case,) = (c for c in CASES if c.name == name)
    for at in itertools.count(1):
        world = World()
        case.before(world)
        process = world.process(at, "none")
        process.operations.meanwhile = world.sweep
        assert case.act(process) == [OK]
        if process.operations.count < at:
            break
        assert check_consistent(world)[0] == case.ends[1]
        world.sweep()
        assert check_consistent(world)[0] == case.ends[1]
        assert set(world.operations.objects) == world.needed()


# -- the listing ------------------------------------------------------------------------------


def test_entries_of_live_holders_are_believed(world: World) -> None:
    """One request lists them all: nothing is read of the journals."""
    world.storage.renew_holder(make_holder("h1"), 15.0)
    for number in range(5):
        fill(world.storage, f"w{number}", 2)
    process = world.process()
    list_ids(process, statuses=(RUNNING,))
    count = process.operations.count
    # New ones are compared with their journals once.
    list_ids(process, statuses=(RUNNING,))
    assert process.operations.count == count + 1


def test_what_another_appends_to_ours_is_seen(world: World) -> None:
    """A request of another coordinator changes no status; the listing shows that the journal has
    grown, which is how its holder learns of it."""
    world.storage.renew_holder(make_holder("h1"), 15.0)
    fill(world.storage, "w", 3)
    other = world.process()
    for seq in (3, 4):
        # Also the second one, of which the one before was its own.
        assert other.commit([make_append("w", seq)]) == [OK]
        (row,) = world.storage.list_catalog(CatalogQuery(holders=("h1",))).rows
        assert row.seq == seq + 1


def test_one_append_is_one_request(world: World) -> None:
    """The usual one, of the holder who wrote the one before."""
    world.storage.renew_holder(make_holder("h1"), 15.0)
    fill(world.storage, "w", 2)
    count = world.storage.operations.count
    assert world.storage.commit([make_append("w", 2)]) == [OK]
    assert world.storage.operations.count == count + 1


@pytest.mark.parametrize(("was", "becomes"), [(F, R), (R, S), (F, C), (R, R)])
def test_a_workflow_that_moves_while_it_is_listed_is_not_missed(
    was: WorkflowStatus, becomes: WorkflowStatus
) -> None:
    for at in itertools.count(1):
        world = World()
        history(R, was)(world)
        world.process().renew_holder(make_holder("h"), 1e6)
        reader = world.process(at, "none")
        append = make_append("w", 2, status=becomes, holder="h")
        reader.operations.meanwhile = lambda: world.process().commit([append])
        assert list_ids(reader) == ["w"], at
        if reader.operations.count < at:
            break
    assert at > 2


@pytest.mark.parametrize("name", ["resume", "finish", "cancel a failed one", "delete settled"])
def test_a_reader_that_dies_while_it_mends(name: str) -> None:
    """After a writer that died while it wrote."""
    (case,) = (c for c in CASES if c.name == name)
    for first in itertools.count(1):
        for second in itertools.count(1):
            world = World()
            case.before(world)
            writer = world.process(first)
            with contextlib.suppress(Crash):
                case.act(writer)
            reader = world.process(second)
            with contextlib.suppress(Crash):
                list_ids(reader)
            found = check_consistent(world)
            world.sweep()
            assert check_consistent(world) == found
            assert set(world.operations.objects) == world.needed()
            if reader.operations.count < second:
                break
        if writer.operations.count < first:
            break


def test_ids_longer_than_a_name_are_in_order(world: World) -> None:
    names = ["x" * 70 + end for end in ("c", "a", "b")] + ["x" * 64, "x" * 65, "x" * 63 + "é"]
    for status in (RUNNING, FAILED):
        for name in names:
            fill(world.storage, f"{name}{status.value[0]}", status=status)
    ids = sorted(f"{name}{letter}" for name in names for letter in "RF")
    for limit in (1, 2, 5, 100):
        assert list_ids(world.process(), limit=limit) == ids
        assert list_ids(world.process(), limit=limit, newest_first=True) == ids[::-1]


TIMES = [
    -1e300,
    -1e9,
    -1.5,
    -0.0,
    0.0,
    1e-300,
    1.0,
    1.5,
    86399.9,
    86400.0,
    1.7e9,
    1.7e9 + 1e-6,
    1e300,
]


def test_names_sort_like_what_they_stand_for() -> None:
    ids = ["a", "a ", "aa", "b", "é", "\uffff", "🦑", "A", "\x01", "a" * 63, "a" * 64]
    places = [(at, name) for at in TIMES for name in ids]
    assert sorted(places, key=lambda p: place(*p)) == sorted(places, key=lambda p: (p[0], p[1]))
    assert [time_of(place(at, "x")) for at in TIMES] == TIMES
    assert sorted(TIMES, key=day) == TIMES
    for at, name in places:
        row = make_row(name, "i", 7, submitted_at=at)
        prefix, _, last = entry_key(row, "0" * 32, tentative=True).rpartition("/")
        entry = parse(prefix, last)
        assert isinstance(entry, Entry)
        assert (id_of(entry), entry.seq, entry.status, entry.tentative) == (name, 7, R, True)
        assert len(last) <= 255


#: What programs and file systems leave in directories of others.
STRAYS = (
    *(".nfs000000000012ab", ".DS_Store", "._0000000001", "Thumbs.db", "lost+found", ".snapshot"),
    *("0000000001~", "#0000000001#", ".0000000001.swp", "0000000001.bak", "0000000001 (copy)"),
    *("x", "a.b.c.d.e.f.g.h", "", "00", "9999999999999999999"),
)


def test_foreign_names_are_passed_over(world: World) -> None:
    """In every directory, by every verb, and nothing of them is changed."""
    storage = world.storage
    fill(storage, "w", 3)
    fill(storage, "ended", 2, status=S)
    blob = storage.write_blob(incarnation_of("w"), "key", [b"value"])
    storage.renew_holder(make_holder("h1"), 15.0)
    assert storage.delete("ended", incarnation_of("ended"), 2) == OK
    fill(storage, "later", 1, status=S)
    directories = {key.rpartition("/")[0] for key in world.operations.objects if "/" in key}
    strays = {f"{directory}/{name}" for directory in directories for name in STRAYS}
    for key in strays:
        world.operations.put(key, b"not ours")
    assert [holder.holder_id for holder in world.process().read_holders()] == ["h1"]
    for process in (world.process(), world.process()):
        assert list_ids(process) == ["later", "w"]
        assert list_ids(process, newest_first=True, statuses=(S,)) == ["later"]
        assert len(state(process, "w")[1]) == 3
        assert bytes(process.read_blob(incarnation_of("w"), blob)) == b"value"
        world.pass_time(3 * DAY)
        process.sweep(DAY)
    assert process.commit([make_append("w", 3, status=S)]) == [OK]
    fill(process, "ended", 1, incarnation="i-again")
    assert list_ids(world.process(), statuses=(S,)) == ["later", "w"]
    assert process.delete("later", incarnation_of("later"), 1) == OK
    world.pass_time(DAY)
    process.sweep(DAY)
    left = {key for key in strays if key in world.operations.objects}
    # What lies among the blobs or parts of a deleted workflow goes with them.
    assert {key for key in strays - left if not key.startswith(("blobs/", "parts/"))} == set()


def test_a_reader_that_may_not_write_reads_the_truth(world: World) -> None:
    process = world.process(4, "before")
    fill(world.storage, "w", 1)
    with contextlib.suppress(Crash):
        process.commit([make_append("w", 1, status=S)])
    reader = world.process()
    inner = reader.operations

    def refused(*arguments: object) -> None:
        raise StorageUnavailableError("read only")

    inner.put = inner.delete = inner.create = refused
    (row,) = reader.list_catalog(CatalogQuery()).rows
    assert row == world.process().read_catalog("w")


# -- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_segment_is_named(world: World, damage: str) -> None:
    fill(world.storage, "w", 3)
    key = segment_key(incarnation_of("w"), 2)
    data = world.operations.objects[key].data
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    world.operations.put(key, {"cut": data[:-1], "flip": flipped, "empty": b""}[damage])
    with pytest.raises(StorageCorruptError, match=key):
        world.process().read_journal(incarnation_of("w"))
    assert world.process().read_catalog("w").seq == 3


def test_a_missing_segment_is_named(world: World) -> None:
    fill(world.storage, "w", 3)
    key = segment_key(incarnation_of("w"), 2)
    world.operations.delete([key])
    with pytest.raises(StorageCorruptError, match=key):
        world.process().read_journal(incarnation_of("w"))


def test_a_store_without_conditional_writes_is_refused(world: World) -> None:
    process = world.process()
    inner = process.operations.inner

    class Careless(MemoryOperations):
        def create(self, key: str, data: bytes) -> bool:
            self.put(key, data)
            return True

    process.operations.inner = Careless(world.clock)
    with pytest.raises(StorageConfigError, match="conditional writes"):
        process.open()
    process.operations.inner = inner
    process.open()


def test_looking_creates_nothing() -> None:
    clock = VirtualClock()
    operations = MemoryOperations(clock)
    with pytest.raises(StorageConfigError, match="not a storage"):
        MemoryObjectStorage(operations, clock).open_existing()
    assert operations.objects == {}


def test_old_blobs(world: World) -> None:
    """With a workflow or not: what a storage needs that holds the blobs of another."""
    row = fill(world.storage, "w")
    world.storage.write_blob(row.incarnation, "k", [b"x"])
    world.storage.write_blob("i-old", "k", [b"x"])
    world.pass_time(50.0)
    world.storage.write_blob("i-young", "k", [b"x"])
    world.storage.write_blob("i-old", "k2", [b"x"])
    assert world.storage.old_blobs(40.0) == [row.incarnation]
    assert world.storage.old_blobs(0.0) == sorted([row.incarnation, "i-old", "i-young"])


# -- time -------------------------------------------------------------------------------------


def test_leases_are_measured_on_the_stores_clock(world: World) -> None:
    """Whatever this machine's says."""
    world.storage.renew_holder(make_holder("h1"), 15.0)
    process = world.process()
    process.clock = lambda: world.clock() - 1e6
    world.pass_time(14.0)
    (holder,) = process.read_holders()
    assert holder.lease_until - process.now() == pytest.approx(1.0)
    world.pass_time(1.5)
    assert holder.lease_until < process.holders.fresh_now()


def test_names_are_never_used_again(world: World) -> None:
    """A removal that comes late hits nothing."""
    seen: set[str] = set()
    for round_number in range(4):
        incarnation = f"i-{round_number}"
        assert world.storage.commit([make_append("w", 0, incarnation=incarnation)]) == [OK]
        ((key, _),) = world.storage.journals.chain("w")[-1:]
        assert key not in seen
        seen.add(key)
        assert world.storage.delete("w", incarnation, 1) is OK
        if round_number % 2:
            world.sweep()
    assert GRAVE_SECONDS > READING_SECONDS


# -- releases ----------------------------------------------------------------------------------


def test_a_layout_of_a_newer_release_is_refused() -> None:
    world = World()
    storage = world.process()
    storage.open()
    fill(storage, "w", 1)
    newer = encode(Layout("nonce", LAYOUT_VERSION + 1), LAYOUT_KEY)
    world.operations.put("layout", newer)
    for check in (world.process().open, world.process().open_existing):
        with pytest.raises(StorageConfigError, match=r"newer release.*layout 2.*Upgrade"):
            check()
    assert world.operations.get("layout").data == newer
    # Whoever was at work before goes on.
    assert storage.commit([make_append("w", 1)]) == [OK]


def test_a_record_of_a_newer_release_is_refused() -> None:
    world = World()
    storage = world.process()
    storage.open()
    row = fill(storage, "w", 2)
    key = f"journal/{row.incarnation}/0000000002"
    data = world.operations.get(key).data
    world.operations.put(key, b"\x02" + data[1:])
    with pytest.raises(StorageConfigError, match=rf"{key} was written by a newer release.*Upgrade"):
        world.process().read_journal(row.incarnation)
