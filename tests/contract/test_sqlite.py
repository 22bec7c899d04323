"""`SqliteStorage` keeps the contract, and its own promises: several processes, SIGKILL at any
moment, whole blobs, and pages from indexes."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.sqlite import connection as database
from ray_workflows.storage.sqlite.directory import SqliteDirectory
from ray_workflows.storage.sqlite.listing import compose_listing
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    in_threads,
    incarnation_of,
    list_ids,
    make_append,
    state,
)
from tests.support.children import HANG_SECONDS, child, receive
from tests.support.files import tree


class TestSqliteStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = SqliteStorage(tmp_path / "storage")
        storage.open()
        yield storage
        storage.close()


@pytest.fixture
def storage(tmp_path):
    storage = SqliteStorage(tmp_path / "storage")
    storage.open()
    yield storage
    storage.close()


# -- several processes ------------------------------------------------------------------------


def append_as_rival(pipe, directory, name, until):
    storage = SqliteStorage(directory)
    pipe.recv()
    mine = []
    while True:
        row = storage.read_catalog("w")
        if row.seq >= until:
            break
        commit_id = f"{name}-{row.seq}"
        if storage.commit([make_append("w", row.seq, commit_id=commit_id)]) == [OK]:
            mine.append((row.seq + 1, commit_id))
    storage.close()
    pipe.send(mine)


def test_two_processes_append_to_one_journal(storage):
    fill(storage, "w", 1)
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(child(append_as_rival, storage.directory, name, 150))[1]
            for name in ("a", "b")
        ]
        for pipe in pipes:
            pipe.send("go")
        # Meanwhile a driver reads, and sees every state whole.
        row, _ = state(storage, "w")
        while row.seq < 150:
            row = storage.read_catalog("w")
            assert len(storage.read_journal(incarnation_of("w"))) >= row.seq
        acknowledged = [receive(pipe) for pipe in pipes]
    _, journal = state(storage, "w")
    stored = {(entry.seq, entry.commit_id) for entry in journal[1:]}
    assert stored == {*acknowledged[0], *acknowledged[1]}
    assert len(stored) == len(acknowledged[0]) + len(acknowledged[1])
    assert len(journal) == 150


def commit_without_pause(pipe, directory):
    storage = SqliteStorage(directory)
    for seq in range(1_000_000):
        assert storage.commit([make_append("busy", seq)]) == [OK]
        if seq == 0:
            pipe.send("busy")


def test_busy_process_does_not_keep_others_out(storage):
    overtaken = []
    with child(commit_without_pause, storage.directory) as (_, pipe):
        assert receive(pipe) == "busy"
        for seq in range(20):
            before = storage.read_catalog("busy").seq
            while storage.read_catalog("busy").seq < before + 3:
                pass
            before = storage.read_catalog("busy").seq
            assert storage.commit([make_append("w", seq)]) == [OK]
            overtaken.append(storage.read_catalog("busy").seq - before)
    # In order, it would be one or two; by SQLite's own waiting, a thousand.
    assert sorted(overtaken)[10] < 30


def stop_in_the_queue(pipe, directory):
    with SqliteDirectory(directory).writer.use(), SqliteDirectory(directory).writer.turn():
        pipe.send("queued")
        os.kill(os.getpid(), signal.SIGSTOP)


def test_process_stopped_in_the_queue_is_passed_by(storage, monkeypatch):
    monkeypatch.setattr(database, "TURN_SECONDS", 0.01)
    with child(stop_in_the_queue, storage.directory) as (_, pipe):
        assert receive(pipe) == "queued"
        fill(storage, "w", 3)
    fill(storage, "w2", 3)


def open_and_create(pipe, directory, name):
    pipe.recv()
    storage = SqliteStorage(directory)
    storage.open()
    pipe.send(storage.commit([make_append(name, 0)]))
    storage.close()


def test_processes_and_threads_open_a_new_storage_at_once(tmp_path):
    directory = str(tmp_path / "a" / "b")
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(child(open_and_create, directory, f"p{i}"))[1] for i in range(3)
        ]
        for pipe in pipes:
            pipe.send("go")
        ours = [SqliteStorage(directory) for _ in range(4)]
        in_threads([storage.open for storage in ours])
        assert [receive(pipe) for pipe in pipes] == [[OK]] * 3
    for number, storage in enumerate(ours):
        fill(storage, f"t{number}")
    assert len(list_ids(ours[0])) == 7
    for storage in ours:
        storage.close()
    assert set(os.listdir(directory)) == {"blobs", "workflows.sqlite"}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_while_another_thread_commits(storage):
    fill(storage, "w", 1)
    stop = threading.Event()

    def commit_until_stopped():
        seq = 1
        while not stop.is_set():
            assert storage.commit([make_append("w", seq)]) == [OK]
            seq += 1
        return seq

    def fork_children():
        codes = []
        for number in range(5):
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    # No inherited connection, no lock that nobody will release.
                    assert storage.journals.home.writer.connection is None
                    assert storage.journals.home.reader.connection is None
                    assert storage.commit([make_append(f"child{number}", 0)]) == [OK]
                    storage.close()
                    code = 0
                os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop.set()
        return codes

    seq, codes = in_threads([commit_until_stopped, fork_children])
    assert codes == [0] * 5
    assert len(state(storage, "w")[1]) == seq
    assert len(list_ids(storage)) == 6


def test_pickle_holds_the_directory_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = SqliteStorage("relative")
    storage.open()
    fill(storage, "w")
    data = pickle.dumps(storage)
    assert len(data) < 200 + len(str(tmp_path))
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert copy.read_catalog("w") is not None
    copy.close()
    storage.close()


# -- SIGKILL ----------------------------------------------------------------------------------


def entry_of(name, seq):
    return f"{name}:{seq}:".encode() * 400


def blob_of(name, seq):
    return f"{name}/{seq}/".encode() * 20_000


def work_until_killed(pipe, directory):
    """Commit to five journals at once, write a blob, create and delete a workflow; tell; repeat."""
    storage = SqliteStorage(directory)
    names = [f"w{i}" for i in range(5)]
    rows = storage.list_catalog(CatalogQuery()).rows
    ends = {row.workflow_id: row.seq for row in rows if row.workflow_id in names}
    while True:
        appends = []
        for name in names:
            for seq in range(ends.get(name, 0), ends.get(name, 0) + 3):
                entry = entry_of(name, seq + 1)
                appends.append(make_append(name, seq, entry=entry, started_at=seq + 1.0))
            ends[name] = appends[-1].catalog.seq
        assert storage.commit(appends) == [OK] * len(appends)
        pipe.send(("commit", dict(ends)))
        name, seq = names[0], ends[names[0]]
        blob = storage.write_blob(incarnation_of(name), f"b{seq}", [blob_of(name, seq)])
        pipe.send(("blob", blob))
        victim = make_append(f"victim{seq}", 0)
        assert storage.commit([victim]) == [OK]
        storage.write_blob(victim.incarnation, "b", [b"x" * 1000])
        assert storage.delete(victim.workflow_id, victim.incarnation, 1) is OK
        pipe.send(("deleted", victim.workflow_id))


def test_sigkill_leaves_the_previous_or_the_next_state(tmp_path):
    chance = random.Random(20260719)
    directory = tmp_path / "storage"
    storage = SqliteStorage(directory)
    storage.open()
    storage.close()
    ends: dict[str, int] = {}
    blobs, deleted = {}, set()
    for _ in range(25):
        with child(work_until_killed, str(directory)) as (process, pipe):
            for _ in range(chance.randint(1, 12)):
                assert pipe.poll(HANG_SECONDS)
                message = pipe.recv()
                remember(message, ends, blobs, deleted)
            # Not a wait for anything: it moves the kill to any point of the next operations.
            time.sleep(chance.random() * 0.004)
            process.kill()
            with contextlib.suppress(EOFError, OSError):
                while True:
                    remember(pipe.recv(), ends, blobs, deleted)
        check_after_kill(storage, ends, blobs, deleted)
    assert sum(ends.values()) > 100
    assert len(blobs) > 10
    assert len(deleted) > 10


def remember(message, ends, blobs, deleted):
    kind, content = message
    if kind == "commit":
        ends.update(content)
    elif kind == "blob":
        blobs[content.key] = content
    else:
        deleted.add(content)


def check_after_kill(storage, ends, blobs, deleted):
    rows = {}
    for row in storage.list_catalog(CatalogQuery()).rows:
        rows[row.workflow_id] = row
        _, journal = state(storage, row.workflow_id)
        if not row.workflow_id.startswith("victim"):
            assert row.started_at == row.seq
            assert [e.entry for e in journal] == [entry_of(row.workflow_id, e.seq) for e in journal]
    for name, end in ends.items():
        assert rows[name].seq >= end, "an acknowledged commit is gone"
        # All appends of one call were in one transaction.
        assert rows[name].seq in (end, end + 3)
    assert len({row.seq for name, row in rows.items() if name in ends}) <= 1
    assert not deleted & set(rows)
    for blob in blobs.values():
        seq = int(blob.key[1:])
        assert bytes(storage.read_blob(incarnation_of("w0"), blob)) == blob_of("w0", seq)
    # A file is under its key whole or not at all.
    for path in Path(storage.blobs.directory(incarnation_of("w0"))).glob("b*"):
        assert path.read_bytes() == blob_of("w0", int(path.name[1:]))
    storage.sweep(0.0)
    left = tree(storage.directory)
    assert not [name for name in left if ".tmp-" in name]
    assert {name.split("/")[1] for name in left if name.startswith("blobs/")} <= {
        row.incarnation for row in rows.values()
    }
    with storage.journals.home.reader.use() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM tombstones").fetchone() == (0,)
        orphans = "SELECT incarnation FROM journal EXCEPT SELECT incarnation FROM catalog"
        assert connection.execute(orphans).fetchall() == []
    # The next child then has to recover the log itself.
    storage.close()


def die_while_writing(pipe, directory):
    def chunks():
        yield b"x" * 5_000_000
        os.kill(os.getpid(), signal.SIGKILL)

    SqliteStorage(directory).write_blob("i", "k", chunks())


@pytest.mark.parametrize("created", [True, False])
def test_writer_killed_while_writing_leaves_a_temporary(storage, created):
    with child(die_while_writing, storage.directory) as (process, _):
        process.join(HANG_SECONDS)
        assert process.exitcode == -signal.SIGKILL
    names = os.listdir(storage.blobs.directory("i"))
    assert [name.startswith(".tmp-") for name in names] == [True]
    assert storage.find_blob("i", "k") is None
    if created:
        fill(storage, "w", incarnation="i")
    assert storage.sweep(3600.0) == 0
    assert os.listdir(storage.blobs.directory("i")) == names
    assert storage.sweep(0.0) == (0 if created else 1)
    assert not list(Path(storage.blobs.root).rglob(".tmp-*"))
    blob = storage.write_blob("i", "k", [b"again"])
    assert bytes(storage.read_blob("i", blob)) == b"again"


# -- blobs ------------------------------------------------------------------------------------


def damage(path, change):
    os.chmod(path, 0o600)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.__setitem__(500, data[500] ^ 1), "checksum"),
        (lambda data: data.__delitem__(slice(900, None)), "900 bytes, expected"),
        (lambda data: data.clear(), "0 bytes, expected"),
        (lambda data: data.append(0), "bytes, expected"),
    ],
    ids=["bit", "truncated", "emptied", "longer"],
)
def test_damaged_blob_is_corrupt(storage, size, change, message):
    blob = storage.write_blob("inc", "key", [b"x" * size])
    path = Path(storage.directory) / "blobs" / "inc" / "key"
    damage(path, change)
    with pytest.raises(
        StorageCorruptError, match=f"'key' of workflow incarnation 'inc'.*{message}"
    ):
        storage.read_blob("inc", blob)
    os.unlink(path)
    with pytest.raises(StorageCorruptError, match="'key' of workflow incarnation 'inc'.*missing"):
        storage.read_blob("inc", blob)


def test_large_blobs_are_mapped(storage):
    size = 3_000_000
    blob = storage.write_blob("i", "k", [b"x" * size])
    views = [storage.read_blob("i", blob) for _ in range(3)]
    assert {type(view.obj).__name__ for view in views} == {"mmap"}
    part = views[0][10:20]
    del views
    assert bytes(part) == b"x" * 10


def test_interrupted_delete_is_finished_by_sweep(storage, monkeypatch):
    row = fill(storage, "w")
    storage.write_blob(row.incarnation, "k", [b"x"])

    def fail(incarnation):
        raise StorageUnavailableError("no")

    with monkeypatch.context() as patch:
        patch.setattr(storage.blobs, "delete_blobs", fail)
        assert storage.delete("w", row.incarnation, 1) is OK
    assert storage.read_catalog("w") is None
    assert storage.find_blob(row.incarnation, "k") is not None
    # The sweep would delete the blobs of a workflow that is created again now.
    assert storage.commit([make_append("w", 0)]) == [STALE]
    assert storage.sweep(3600.0) == 1
    assert storage.find_blob(row.incarnation, "k") is None
    assert storage.sweep(0.0) == 0
    assert os.listdir(storage.blobs.root) == []


def test_sweep_goes_by_the_newest_file(storage):
    for key in ("a", "b"):
        storage.write_blob("i", key, [b"x"])
    directory = Path(storage.blobs.directory("i"))
    old = time.time() - 1000.0
    for path in (directory / "a", directory):
        os.utime(path, (old, old))
    assert storage.sweep(500.0) == 0
    os.utime(directory / "b", (old, old))
    assert storage.sweep(1500.0) == 0
    assert storage.sweep(500.0) == 1


def test_sweep_and_creation_exclude_each_other(storage, monkeypatch):
    blob = storage.write_blob("i", "k", [b"x"])
    delete = storage.blobs.delete_blobs
    outcomes = []

    def create_in_between(incarnation):
        outcomes.extend(storage.commit([make_append("w", 0, incarnation="i")]))
        delete(incarnation)

    monkeypatch.setattr(storage.blobs, "delete_blobs", create_in_between)
    assert storage.sweep(0.0) == 1
    assert outcomes == [STALE]
    # And the other way round: created after the look into the catalog, before the tombstone.
    blob = storage.write_blob("i", "k", [b"x"])
    monkeypatch.setattr(
        storage.journals,
        "is_known",
        lambda incarnation: bool(fill(storage, "w", incarnation="i")) and False,
    )
    assert storage.sweep(0.0) == 0
    assert bytes(storage.read_blob("i", blob)) == b"x"


def test_sweep_leaves_files_that_are_not_ours(storage):
    stray = Path(storage.blobs.root) / "README"
    stray.write_text("mine")
    assert storage.sweep(0.0) == 0
    assert stray.read_text() == "mine"


# -- queries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "index"),
    [((), "catalog_by_submission"), ((WorkflowStatus.FAILED,), "catalog_by_status")],
)
@pytest.mark.parametrize("newest_first", [False, True])
def test_listing_reads_a_page_from_its_index(storage, statuses, index, newest_first):
    query = CatalogQuery(statuses=statuses, newest_first=newest_first)
    text, parameters = compose_listing(query, storage.journals.count)
    with storage.journals.home.reader.use() as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters)]
    uses = [step for step in plan if index in step]
    assert len(uses) == 1
    assert "SEARCH" in uses[0]
    assert "submitted_at" in uses[0] or re.search(r"\(submitted_at,workflow_id\)[<>]", uses[0])
    assert not [step for step in plan if step.startswith("SCAN catalog")]


def test_many_appends_in_one_commit(storage):
    appends = [make_append(f"w{i}", 0, status=WorkflowStatus.PENDING) for i in range(10_000)]
    assert storage.commit(appends) == [OK] * 10_000
    assert len(list_ids(storage, statuses=(WorkflowStatus.PENDING,), limit=3000)) == 10_000


@pytest.mark.parametrize(
    "odd",
    [
        make_append("w3", 7),
        make_append("nobody", 1),
        make_append("w3", 1, status=WorkflowStatus.PENDING),
        make_append("w3", 0),
        make_append("w3", 7, status=WorkflowStatus.FAILED),
    ],
    ids=["stale", "unknown", "another status", "created before", "stale and over"],
)
def test_a_group_with_one_odd_append_is_as_if_one_by_one(storage, odd):
    for number in range(6):
        fill(storage, f"w{number}")
    group = [
        make_append("w0", 1),
        make_append("new", 0),
        odd,
        make_append("w0", 2),
        make_append("w1", 1, status=WorkflowStatus.SUCCESSFUL),
        make_append("w1", 2),
        make_append("w2", 1),
    ]
    fits = odd.workflow_id == "w3" and odd.expected_seq == 1
    assert storage.commit(group) == [OK, OK, OK if fits else STALE, OK, OK, OK, OK]
    ends = {name: state(storage, name)[0].seq for name in ("w0", "new", "w1", "w2", "w3")}
    assert ends == {"w0": 3, "new": 1, "w1": 3, "w2": 2, "w3": 2 if fits else 1}
    assert storage.read_catalog("w3").status is (
        WorkflowStatus.PENDING if fits else WorkflowStatus.RUNNING
    )
    assert storage.read_catalog("w1").status is WorkflowStatus.RUNNING
