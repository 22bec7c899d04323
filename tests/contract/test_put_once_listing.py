"""What `PutOnceStorage` reads: listings while others write, damage, time, and other releases."""

from __future__ import annotations

import contextlib
import itertools
import zlib

import pytest

from ray_workflows._coordinator.liveness import Liveness
from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage.objects.home import LAYOUT_KEY, LAYOUT_VERSION
from ray_workflows.storage.objects.index_keys import (
    Entry,
    day,
    entry_key,
    id_of,
    parse,
    place,
    time_of,
)
from ray_workflows.storage.objects.journals import GRAVE_SECONDS, READING_SECONDS, segment_key
from ray_workflows.storage.objects.leases import CLOCK_SECONDS
from ray_workflows.storage.objects.records import Layout, encode
from ray_workflows.testing.builders import (
    OK,
    fill,
    incarnation_of,
    list_ids,
    make_append,
    make_holder,
    make_row,
    state,
)
from ray_workflows.testing.clock import VirtualClock
from tests.support.put_once import Crash, MemoryObjectStorage, MemoryOperations
from tests.support.put_once_world import (
    CASES,
    DAY,
    FAILED,
    RUNNING,
    C,
    F,
    R,
    S,
    World,
    check_consistent,
    history,
)


@pytest.fixture
def world() -> World:
    return World()


# -- the listing ------------------------------------------------------------------------------


def test_entries_of_live_holders_are_believed(world: World) -> None:
    """One request lists them all: nothing is read of the journals."""
    world.storage.renew_holder(make_holder("h1"), 15.0)
    for number in range(5):
        fill(world.storage, f"w{number}", 2)
    process = world.process()
    list_ids(process, statuses=(RUNNING,))
    count = process.journals.home.operations.count
    # New ones are compared with their journals once.
    list_ids(process, statuses=(RUNNING,))
    assert process.journals.home.operations.count == count + 1


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
    count = world.storage.journals.home.operations.count
    assert world.storage.commit([make_append("w", 2)]) == [OK]
    assert world.storage.journals.home.operations.count == count + 1


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
        reader.journals.home.operations.meanwhile = lambda: world.process().commit([append])
        assert list_ids(reader) == ["w"], at
        if reader.journals.home.operations.count < at:
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
            if reader.journals.home.operations.count < second:
                break
        if writer.journals.home.operations.count < first:
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
    inner = reader.journals.home.operations

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
    inner = process.journals.home.operations.inner

    class Careless(MemoryOperations):
        def create(self, key: str, data: bytes) -> bool:
            self.put(key, data)
            return True

    process.journals.home.operations.inner = Careless(world.clock)
    with pytest.raises(StorageConfigError, match="conditional writes"):
        process.open()
    process.journals.home.operations.inner = inner
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
    assert holder.lease_until < process.journals.home.holders.fresh_now()


def test_a_store_whose_clock_was_set_back(world: World) -> None:
    """What died before has a lease from a time to come: it is dead, and who renews is alive, for a
    process that was there and for a later one."""
    world.storage.renew_holder(make_holder("dead", host="a"), 15.0)
    before = world.storage.now()
    world.operations.clock = lambda: world.clock() - 3600.0
    world.pass_time(CLOCK_SECONDS)
    later = world.process()
    for _ in range(3):
        world.pass_time(10.0)
        world.process().renew_holder(make_holder("alive", host="b"), 15.0)
        for process in (world.storage, later):
            claims = Liveness(process.read_holders(), process.now())
            assert [claims.is_alive(name) for name in ("dead", "alive")] == [False, True]
            assert process.now() < before - 3500.0


def test_names_are_never_used_again(world: World) -> None:
    """A removal that comes late hits nothing."""
    seen: set[str] = set()
    for round_number in range(4):
        incarnation = f"i-{round_number}"
        assert world.storage.commit([make_append("w", 0, incarnation=incarnation)]) == [OK]
        ((key, _),) = world.storage.journals.home.journals.chain("w")[-1:]
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
    # A storage opened before goes on.
    assert storage.commit([make_append("w", 1)]) == [OK]


def newer_object(data: bytes) -> bytes:
    """An object as a later release will write it: the checksum covers the format too."""
    return b"\x02" + zlib.crc32(b"\x02" + data[5:]).to_bytes(4, "big") + data[5:]


def test_a_record_of_a_newer_release_is_refused() -> None:
    world = World()
    storage = world.process()
    storage.open()
    row = fill(storage, "w", 2)
    key = f"journal/{row.incarnation}/0000000002"
    world.operations.put(key, newer_object(world.operations.get(key).data))
    with pytest.raises(
        StorageCorruptError, match=rf"{key} was written by a newer release.*Upgrade"
    ):
        world.process().read_journal(row.incarnation)


def test_a_row_of_a_newer_release_is_left_out_of_a_listing_alone() -> None:
    world = World()
    storage = world.process()
    storage.open()
    for name in ("one", "new", "two"):
        fill(storage, name, 1)
    entries = [key for key in world.operations.objects if key.startswith("index/")]
    (key,) = (key for key in entries if id_of(parse("", key.rpartition("/")[2])) == "new")
    world.operations.put(key, newer_object(world.operations.get(key).data))
    page = world.process().list_catalog(CatalogQuery())
    assert {row.workflow_id for row in page.rows} == {"one", "two"}
    assert ["newer release" in damage for damage in page.damaged] == [True]
