"""`PutOnceStorage` keeps the contract and its own promises: a crash between any two operations,
answers that get lost, writers that slept for hours, and nothing left over for ever."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.objects.client import Crew
from ray_workflows.storage.objects.journals import HOUR, segment_key
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    incarnation_of,
    list_ids,
    make_append,
    make_holder,
    state,
)
from tests.support.put_once import Crash, MemoryObjectStorage, MemoryOperations
from tests.support.put_once_world import (
    CASES,
    DAY,
    FAILED,
    RUNNING,
    C,
    Case,
    F,
    R,
    S,
    World,
    check_consistent,
    history,
)


class TestPutOnceStorage(StorageContract):
    shared = False

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        storage = MemoryObjectStorage(MemoryOperations(time.time), time.time, Crew(8))
        storage.open()
        yield storage
        storage.close()


@pytest.fixture
def world() -> World:
    return World()


# -- a crash between any two operations -------------------------------------------------------


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
        reached = process.journals.home.operations.count >= at
        if sweep_at_once:
            world.process().sweep(DAY)
        if how == "retried" or (how == "lost" and process.journals.home.operations.met == "create"):
            # It is known as our own.
            assert set(said) == {OK}
        if how in ("lost", "failed"):
            # It lives on, and mends what it owes.
            process.journals.home.operations.at = 0
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
        if process.journals.home.operations.count < at:
            break
        process.journals.home.operations.at = 0
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
        process.journals.home.operations.meanwhile = lambda: theirs.extend(others(world.process()))
        ours = found.act(process)
        if process.journals.home.operations.count < at:
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
        process.journals.home.operations.count = 0

        def meanwhile() -> None:
            other = world.process()
            seq = other.read_catalog("w").seq
            for status in (R, C):
                append = make_append("w", seq, status=status, holder="other")
                assert other.commit([append]) == [OK]
                seq += 1

        process.journals.home.operations.meanwhile = meanwhile
        process.commit([make_append("w", 2, status=becomes, holder="slow")])
        if process.journals.home.operations.count < at:
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
            other.journals.home.journals.clock = lambda: world.clock() + HOUR
            theirs.extend(other.commit([make_append("w", 0, incarnation="i-rival")]))

        process.journals.home.operations.meanwhile = meanwhile
        ours = process.commit([make_append("w", 0)])
        if process.journals.home.operations.count < at:
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

        sleeper.journals.home.operations.meanwhile = meanwhile
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
        process.journals.home.operations.meanwhile = world.sweep
        assert case.act(process) == [OK]
        if process.journals.home.operations.count < at:
            break
        assert check_consistent(world)[0] == case.ends[1]
        world.sweep()
        assert check_consistent(world)[0] == case.ends[1]
        assert set(world.operations.objects) == world.needed()


@pytest.mark.parametrize("place", range(3))
def test_one_append_that_is_refused_leaves_no_other_half_done(world: World, place: int) -> None:
    storage = world.storage
    # An owner's append is one put; what follows it is done for one after the other.
    storage.renew_holder(make_holder("h1"), 15.0)
    names = ["a", "b", "c"]
    for name in names:
        fill(storage, name, 2)
    bad = incarnation_of(names[place])
    key = segment_key(bad, 2)
    world.operations.put(key, world.operations.get(key).data[:-1])
    journals = storage.journals.home.journals
    journals.forget_all(bad)
    with pytest.raises(StorageCorruptError, match=key):
        storage.commit([make_append(name, 2) for name in names])
    for name in names[:place] + names[place + 1 :]:
        # The next append needs no reading.
        assert journals.known(incarnation_of(name), 3) is not None
        assert storage.commit([make_append(name, 3)]) == [OK]
        row, entries = state(storage, name)
        assert row.seq == len(entries) == 4
