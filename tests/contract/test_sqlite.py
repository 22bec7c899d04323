"""`SqliteStorage` keeps the contract, and its own promises: several processes, SIGKILL at any
moment, full disks, and files that are damaged, foreign or gone."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
)
from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.files import location
from ray_workflows.storage.sqlite import connection as database
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    in_threads,
    incarnation_of,
    list_ids,
    make_append,
    make_holder,
    state,
)
from tests.children import HANG_SECONDS, child, receive


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


def tree(root) -> dict[str, int]:
    """Every file and directory below, with its size."""
    return {
        str(path.relative_to(root)): path.lstat().st_size if path.is_file() else -1
        for path in Path(root).rglob("*")
    }


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
    with SqliteStorage(directory).writer.use(), SqliteStorage(directory).writer.turn():
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
                    assert storage.writer.connection is None
                    assert storage.reader.connection is None
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
    with storage.reader.use() as connection:
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


# -- open -------------------------------------------------------------------------------------


def test_what_open_creates(tmp_path):
    storage = SqliteStorage(tmp_path / "new" / "storage")
    storage.open()
    fill(storage, "w")
    modes = {
        name: os.stat(os.path.join(storage.directory, name)).st_mode & 0o777
        for name in (".", "..", *os.listdir(storage.directory))
    }
    assert modes.pop(".") == modes.pop("..") == modes.pop("blobs") == 0o700
    assert set(modes.values()) == {0o600}
    with storage.writer.use() as connection:
        pragmas = ("journal_mode", "synchronous", "user_version", "application_id")
        values = [connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas]
    assert values == ["wal", 2, len(database.MIGRATIONS), database.APPLICATION_ID]
    assert storage.url == f"file://{tmp_path}/new/storage"
    assert storage.node_bound
    storage.close()


def test_only_open_creates(tmp_path):
    storage = SqliteStorage(tmp_path / "storage")
    calls = [
        lambda: storage.commit([make_append("w", 0)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.list_catalog(CatalogQuery()),
        lambda: storage.write_blob("i", "k", [b"x"]),
        lambda: storage.renew_holder(make_holder("h"), 1.0),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailableError, match="storage"):
            call()
    assert tree(tmp_path) == {}


def foreign_database(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)"
        )


def newer_database(path):
    other = SqliteStorage(path.parent)
    other.open()
    with other.writer.use() as connection:
        connection.execute(f"PRAGMA user_version = {len(database.MIGRATIONS) + 1}")
    other.close()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (foreign_database, "is not a database of ray-workflows.*another directory"),
        (lambda path: path.write_bytes(b"hello, world\n" * 100), "is not a database"),
        (lambda path: path.write_bytes(b""), "is not a database of ray-workflows"),
        (lambda path: path.mkdir(), "workflows.sqlite can't be written"),
        (lambda path: path.symlink_to("nowhere"), "workflows.sqlite"),
        (newer_database, "newer release.*Upgrade"),
        (lambda path: (path.parent / "blobs").write_text(""), "blobs is not a directory"),
    ],
    ids=["foreign", "text", "empty", "directory", "dangling link", "newer", "blobs is a file"],
)
def test_open_refuses_what_is_in_the_directory(tmp_path, prepare, message):
    path = tmp_path / "workflows.sqlite"
    prepare(path)
    before = tree(tmp_path)
    storage = SqliteStorage(tmp_path)
    with pytest.raises(StorageConfigError, match=message) as caught:
        storage.open()
    assert str(tmp_path) in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert tree(tmp_path) == before
    if prepare is newer_database:
        with pytest.raises(StorageConfigError, match=message):
            storage.open_existing()
        assert tree(tmp_path) == before
    if prepare is foreign_database:
        with pytest.raises(StorageConfigError, match=message):
            storage.commit([make_append("w", 0)])


# -- migrations -------------------------------------------------------------------------------

STEP = """
-- What the next release adds; this is only a comment.
ALTER TABLE catalog ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
CREATE INDEX catalog_by_priority ON catalog (priority, submitted_at);
CREATE TABLE signals (
    incarnation TEXT NOT NULL,
    name TEXT NOT NULL DEFAULT ';'
);
"""


@pytest.fixture
def next_release(monkeypatch):
    """This process is of a release that has one migration more."""
    texts = {"step_3.sql": STEP}
    read_sql = database.read_sql
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "step_3.sql"))
    monkeypatch.setattr(database, "read_sql", lambda name: texts.get(name) or read_sql(name))
    return texts


def version_of(directory):
    with contextlib.closing(sqlite3.connect(directory / "workflows.sqlite")) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'signals'")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        return version, len(tables.fetchall())


OLDER = """
import os, sys
from ray_workflows.storage import SqliteStorage
from ray_workflows.testing.builders import OK, fill, make_append, state
storage = SqliteStorage(sys.argv[1])
storage.open()
fill(storage, "w", 1)
print("at work", flush=True)
seq = 1
while not os.path.exists(sys.argv[2]):
    assert storage.commit([make_append("w", seq)]) == [OK]
    seq += 1
    if seq % 7 == 0:
        # As after an error: it connects anew.
        storage.close()
fill(storage, "after", 2)
assert len(state(storage, "w")[1]) == seq
print(seq, flush=True)
"""


def test_a_migration_and_a_running_coordinator(tmp_path, next_release):
    """An older release is at work, in a process of its own, while a newer one migrates."""
    store, stop = tmp_path / "store", tmp_path / "stop"
    program = [sys.executable, "-c", OLDER, str(store), str(stop)]
    with (
        subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as older,
        contextlib.ExitStack() as stack,
    ):
        # It must end if this fails, too.
        stack.callback(stop.touch)
        assert older.stdout.readline() == "at work\n"
        newer = SqliteStorage(store)
        with pytest.raises(StorageConfigError, match=r"schema 2.*init\(\)"):
            newer.open_existing()
        assert version_of(store) == (2, 0)
        copies = [SqliteStorage(store) for _ in range(3)]
        in_threads([copy.open for copy in copies])
        assert version_of(store) == (3, 1)
        newer.open_existing()
        seen = newer.read_catalog("w").seq
        deadline = time.monotonic() + 60
        while newer.read_catalog("w").seq < seen + 20:
            assert time.monotonic() < deadline
        stop.touch()
        seq = int(older.stdout.readline())
        assert older.wait() == 0
    assert [row.workflow_id for row in newer.list_catalog(CatalogQuery()).rows] == ["after", "w"]
    assert len(state(newer, "w")[1]) == seq
    assert newer.commit([make_append("after", 2)]) == [OK]
    for storage in (newer, *copies):
        storage.close()


def test_a_new_database_has_all_migrations(tmp_path, next_release):
    storage = SqliteStorage(tmp_path)
    storage.open()
    assert version_of(tmp_path) == (3, 1)
    fill(storage, "w", 2)
    storage.close()


def test_a_failed_migration_changes_nothing(tmp_path, next_release):
    next_release["step_3.sql"] = STEP + "CREATE TABLE journal (x);"
    before = database.MIGRATIONS
    database.MIGRATIONS = before[:-1]
    storage = SqliteStorage(tmp_path)
    storage.open()
    fill(storage, "w", 2)
    database.MIGRATIONS = before
    with pytest.raises(StorageError, match="journal already exists"):
        storage.open()
    assert version_of(tmp_path) == (2, 0)
    assert len(state(storage, "w")[1]) == 2
    storage.close()


@pytest.mark.parametrize("below", [".", "a", "a/b/c"])
def test_open_refuses_a_file_in_the_path(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    before = tree(tmp_path)
    storage = SqliteStorage(file / below)
    with pytest.raises(StorageConfigError, match=r"file is not a directory.*RAY_WORKFLOW_STORAGE"):
        storage.open()
    assert tree(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_open_refuses_a_path_that_cannot_be_created():
    with pytest.raises(StorageConfigError, match=r"/proc/x/y can't be used.*RAY_WORKFLOW_STORAGE"):
        SqliteStorage("/proc/x/y").open()


@pytest.mark.parametrize("name", ["", "a\0b", "~no-such-user-here/x"])
def test_directory_that_is_no_path(name):
    with pytest.raises(StorageConfigError, match=r"Give"):
        SqliteStorage(name)


def test_too_long_a_name(tmp_path):
    with pytest.raises(StorageConfigError, match="can't be used"):
        SqliteStorage(tmp_path / "a" / ("x" * 300)).open()
    assert tree(tmp_path) == {}


def open_as_nobody(pipe, directory):
    """Permission bits do not stop root."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    storage = SqliteStorage(directory)
    try:
        storage.open()
    except StorageError as error:
        pipe.send(error)
    else:
        pipe.send(None)


@pytest.mark.parametrize("what", ["parent", "directory", "database"])
def test_open_without_permission(what):
    # Not in tmp_path, which only its owner may enter.
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        directory = root / "storage"
        if what != "parent":
            directory.mkdir(0o755)
        if what == "database":
            storage = SqliteStorage(directory)
            storage.open()
            storage.close()
            (directory / "blobs").chmod(0o755)
            (directory / "workflows.sqlite").chmod(0o444)
        for path in (root, directory):
            if path.exists():
                path.chmod(0o555)
        before = tree(root)
        with child(open_as_nobody, str(directory)) as (_, pipe):
            error = receive(pipe)
        assert isinstance(error, StorageConfigError)
        assert str(directory) in str(error)
        assert "init(storage=...)" in str(error)
        assert tree(root) == before
    finally:
        for path in (root, root / "storage"):
            if path.exists():
                path.chmod(0o755)
        shutil.rmtree(root)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StorageUnavailableError),
        (errno.EIO, StorageUnavailableError),
        (errno.EACCES, StorageConfigError),
        (errno.EROFS, StorageConfigError),
        (errno.EPERM, StorageConfigError),
    ],
)
def test_failing_open_leaves_nothing_behind(tmp_path, monkeypatch, number, expected):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    storage = SqliteStorage(tmp_path / "a" / "b")
    with monkeypatch.context() as patch:
        # After the database file was written, and before it is in place.
        patch.setattr(os, "link", fail)
        with pytest.raises(expected, match="a/b"):
            storage.open()
    assert tree(tmp_path) == {}
    storage.open()
    fill(storage, "w")
    storage.close()


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /mnt/nfs nfs4 rw 0 0
//server/share /mnt/my\\040share cifs rw 0 0
auto /home/remote autofs rw 0 0
server:/home /home/remote nfs rw 0 0
/dev/sdb1 /mnt/nfs/local xfs rw 0 0
me@server:/ /mnt/ssh fuse.sshfs rw 0 0
bucket /mnt/bucket fuse.s3fs rw 0 0
/dev/sdc1 /mnt/usb fuse.exfat rw 0 0
tmpfs /run tmpfs rw 0 0
server:/x /mnt/hidden nfs rw 0 0
/dev/sdd1 /mnt/hidden ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", None),
        ("/home/me", None),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/a/b", "nfs4"),
        ("/mnt/nfsx", None),
        ("/mnt/nfs/local/a", None),
        ("/mnt/my share/a", "cifs"),
        ("/home/remote/me", "nfs"),
        ("/mnt/ssh", "fuse.sshfs"),
        ("/mnt/bucket/x", "fuse.s3fs"),
        ("/mnt/usb/x", None),
        ("/run/x", None),
        ("/mnt/hidden/x", None),
    ],
)
def test_network_file_systems_are_recognized(path, kind):
    assert location.network_filesystem(path, MOUNTS) == kind


@pytest.mark.parametrize("exists", [True, False])
def test_open_refuses_network_file_systems(tmp_path, monkeypatch, exists):
    directory = tmp_path / "storage"
    if exists:
        directory.mkdir()
    before = tree(tmp_path)
    monkeypatch.setattr(location, "read_mounts", lambda: f"server:/x {tmp_path} nfs4 rw 0 0\n")
    with pytest.raises(StorageConfigError, match=r"network file system \(nfs4\).*shared://"):
        SqliteStorage(directory).open()
    assert tree(tmp_path) == before


# -- looking at what exists ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("none/at/all", "none/at/all is not a storage.*does not exist.*Nothing was created"),
        ("empty", "empty is not a storage.*has no workflows.sqlite"),
        ("file", "file is not a storage.*is no directory"),
        ("file/below", "file/below is not a storage.*does not exist"),
    ],
)
def test_looking_creates_nothing(tmp_path, where, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = tree(tmp_path)
    with pytest.raises(StorageConfigError, match=message):
        SqliteStorage(tmp_path / where).open_existing()
    assert tree(tmp_path) == before


def test_looking_refuses_what_is_not_ours(tmp_path):
    (tmp_path / "workflows.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    with pytest.raises(StorageConfigError, match="not a database of ray-workflows"):
        SqliteStorage(tmp_path).open_existing()


def test_looking_refuses_network_file_systems(storage, monkeypatch):
    mounts = f"server:/x {storage.directory} nfs4 rw 0 0\n"
    monkeypatch.setattr(location, "read_mounts", lambda: mounts)
    with pytest.raises(StorageConfigError, match=r"network file system \(nfs4\)"):
        SqliteStorage(storage.directory).open_existing()


def look_as_nobody(pipe, directory):
    os.setgid(65534)
    os.setuid(65534)
    storage = SqliteStorage(directory)
    try:
        storage.open_existing()
        pipe.send(list_ids(storage))
        assert pipe.recv() == "again"
        pipe.send(list_ids(storage))
    except StorageError as error:
        pipe.send(error)


@pytest.fixture
def others_storage():
    """A storage of root's that everybody may read."""
    if os.getuid() != 0:
        pytest.skip("only root can look as somebody else")
    # Not in tmp_path, which only its owner may enter.
    root = Path(tempfile.mkdtemp())
    storage = SqliteStorage(root / "storage")
    storage.open()
    fill(storage, "w")
    root.chmod(0o755)
    (root / "storage").chmod(0o755)
    for file in (root / "storage").glob("workflows.sqlite*"):
        file.chmod(0o644)
    yield storage
    storage.close()
    shutil.rmtree(root)


@pytest.mark.administrator
def test_looking_without_the_right_to_write(others_storage):
    others_storage.close()
    before = tree(others_storage.directory)
    with child(look_as_nobody, others_storage.directory) as (_, pipe):
        assert receive(pipe) == ["w"]
        assert tree(others_storage.directory) == before
        # Somebody comes to write after all: what is read then is true, or it is an error.
        fill(others_storage, "w2")
        pipe.send("again")
        found = receive(pipe)
    assert found == ["w", "w2"] or isinstance(found, StorageUnavailableError)


@pytest.mark.administrator
def test_looking_without_the_right_to_write_while_others_write(others_storage):
    with child(look_as_nobody, others_storage.directory) as (_, pipe):
        assert receive(pipe) == ["w"]
        fill(others_storage, "w2")
        pipe.send("again")
        assert receive(pipe) == ["w", "w2"]


@pytest.mark.administrator
def test_looking_without_the_right_to_write_past_a_log(others_storage):
    """As after a crash: what was committed last is in the log, which can't be read from here."""
    left = Path(others_storage.directory).parent / "left"
    left.mkdir(0o755)
    for suffix in ("", "-wal"):
        shutil.copy(f"{others_storage.writer.path}{suffix}", left)
    assert os.path.getsize(left / "workflows.sqlite-wal") > 0
    with child(look_as_nobody, str(left)) as (_, pipe):
        error = receive(pipe)
    assert isinstance(error, StorageConfigError)
    assert "-wal" in str(error)


@pytest.mark.administrator
def test_looking_without_the_right_to_read(others_storage):
    Path(others_storage.writer.path).chmod(0o600)
    with child(look_as_nobody, others_storage.directory) as (_, pipe):
        error = receive(pipe)
    assert isinstance(error, StorageConfigError)
    assert "can't be read" in str(error)


# -- trouble in use ---------------------------------------------------------------------------


def test_deleted_database_is_noticed(storage):
    fill(storage, "w")
    os.unlink(storage.writer.path)
    for call in (
        lambda: storage.commit([make_append("w", 1)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.commit([make_append("w", 1)]),
        lambda: storage.read_journal(incarnation_of("w")),
    ):
        with pytest.raises(StorageUnavailableError, match=r"workflows\.sqlite"):
            call()
    assert not os.path.exists(storage.writer.path)


def test_database_deleted_during_a_commit_is_noticed(storage):
    fill(storage, "w")

    def commit_and_lose():
        with storage.writer.transaction() as connection:
            connection.execute("DELETE FROM holders")
            os.unlink(storage.writer.path)

    with pytest.raises(StorageUnavailableError, match="deleted or replaced"):
        commit_and_lose()


def test_deleted_log_is_noticed(storage):
    fill(storage, "w")
    os.unlink(storage.writer.path + "-wal")
    with pytest.raises(StorageUnavailableError, match="-wal"):
        storage.commit([make_append("w", 1)])


def test_work_goes_on_when_the_directory_returns(storage, tmp_path):
    fill(storage, "w")
    blob = storage.write_blob("i", "k", [b"x"])
    os.rename(storage.directory, tmp_path / "away")
    for call in (
        lambda: storage.commit([make_append("w", 1)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.read_blob("i", blob),
        lambda: storage.write_blob("i", "k2", [b"x"]),
        lambda: storage.delete_blobs("i"),
        lambda: storage.sweep(0.0),
    ):
        with pytest.raises(StorageUnavailableError, match="storage"):
            call()
    os.rename(tmp_path / "away", storage.directory)
    assert storage.commit([make_append("w", 1)]) == [OK]
    assert bytes(storage.read_blob("i", blob)) == b"x"
    assert len(state(storage, "w")[1]) == 2


def test_replaced_database_is_noticed_and_then_used(storage, tmp_path):
    other = SqliteStorage(tmp_path / "other")
    other.open()
    fill(other, "backup")
    other.close()
    fill(storage, "w")
    os.unlink(storage.writer.path + "-wal")
    os.rename(other.writer.path, storage.writer.path)
    with pytest.raises(StorageUnavailableError, match="replaced"):
        storage.commit([make_append("w", 1)])
    assert storage.commit([make_append("w", 1)]) == [STALE]


def test_locked_database_is_unavailable_for_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.02)
    one, two = SqliteStorage(tmp_path), SqliteStorage(tmp_path)
    one.open()
    fill(one, "w")
    with one.writer.transaction():
        with pytest.raises(StorageUnavailableError, match="locked"):
            two.commit([make_append("w", 1)])
        # Readers do not mind.
        assert two.read_catalog("w").seq == 1
    assert two.commit([make_append("w", 1)]) == [OK]
    one.close()
    two.close()


def test_damaged_database_is_corrupt(storage):
    for i in range(50):
        fill(storage, f"w{i}", 2, entry=b"x" * 5000)
    storage.close()
    size = os.path.getsize(storage.writer.path)
    with open(storage.writer.path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    for call in (
        lambda: storage.list_catalog(CatalogQuery()),
        lambda: storage.read_journal(incarnation_of("w1")),
        lambda: storage.commit([make_append("w1", 2)]),
    ):
        with pytest.raises(StorageCorruptError, match=r"workflows\.sqlite is damaged"):
            call()


def test_error_within_a_commit_writes_nothing(storage):
    bad = make_append("b", 0, metadata={"x": object()})
    with pytest.raises(TypeError):
        storage.commit([make_append("a", 0), bad])
    # Neither the rows nor the lock are left over: another connection sees that.
    other = SqliteStorage(storage.directory)
    assert list_ids(other) == []
    fill(other, "a")
    other.close()
    fill(storage, "b")


def test_failed_transaction_gives_its_lock_back(storage):
    kept = []

    def fail():
        with storage.writer.transaction() as connection:
            connection.execute("DELETE FROM holders")
            # A traceback can keep such a cursor alive for long.
            kept.append(connection.execute("SELECT * FROM sqlite_master"))
            raise ZeroDivisionError

    storage.renew_holder(make_holder("h"), 1.0)
    with pytest.raises(ZeroDivisionError):
        fail()
    other = SqliteStorage(storage.directory)
    fill(other, "w")
    assert [holder.holder_id for holder in other.read_holders()] == ["h"]
    other.close()


def test_missing_table_is_corrupt(storage):
    with storage.writer.use() as connection:
        connection.execute("DROP TABLE journal")
    with pytest.raises(StorageCorruptError, match="schema"):
        storage.read_journal("i")


def test_unreadable_row_is_corrupt(storage):
    fill(storage, "w")
    with storage.writer.use() as connection:
        connection.execute("UPDATE catalog SET status = 'LOST'")
    with pytest.raises(StorageCorruptError, match="'w'.*checksum"):
        storage.read_catalog("w")


def test_full_database_is_unavailable_and_recovers(storage):
    fill(storage, "w", 1)
    with storage.writer.use() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    seq, error = 1, None
    while error is None:
        append = make_append("w", seq, entry=b"x" * 10_000)
        try:
            assert storage.commit([append, make_append(f"other{seq}", 0)]) == [OK, OK]
            seq += 1
        except StorageUnavailableError as caught:
            error = caught
    assert re.search("full.*Free some space", str(error))
    assert seq > 2
    row, _ = state(storage, "w")
    assert row.seq == seq
    assert storage.read_catalog(f"other{seq}") is None
    assert storage.commit([append]) == [OK]


def fill_the_disk(pipe, directory):
    """A limit on file sizes is as good as a full disk, and needs no mount."""
    storage = SqliteStorage(directory)
    fill(storage, "w", 1)
    size = os.path.getsize(storage.writer.path + "-wal")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 400_000, hard))
    errors = []
    seq = 1
    while not errors:
        try:
            assert storage.commit([make_append("w", seq, entry=b"x" * 50_000)]) == [OK]
            seq += 1
        except StorageError as error:
            errors.append(error)
    try:
        storage.write_blob("i", "k", [b"x" * 5_000_000])
    except StorageError as error:
        errors.append(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    # What is acknowledged is there, and the rest can be repeated.
    pipe.send((errors, seq, storage.read_catalog("w").seq, tree(storage.blobs.root)))
    pipe.send(storage.commit([make_append("w", seq)]))
    storage.write_blob("i", "k", [b"x" * 5_000_000])
    storage.close()
    pipe.send("end")


def test_full_disk_is_unavailable_and_recovers(storage):
    with child(fill_the_disk, storage.directory) as (_, pipe):
        errors, acknowledged, stored, files = receive(pipe)
        assert [type(error) for error in errors] == [StorageUnavailableError] * 2
        assert "workflows.sqlite" in str(errors[0])
        assert "Free some space" in str(errors[1])
        assert acknowledged == stored > 3
        assert [name for name in files if name != "i"] == []
        assert receive(pipe) == [OK]
        assert receive(pipe) == "end"
    assert len(state(storage, "w")[1]) == stored + 1
    assert storage.find_blob("i", "k").size == 5_000_000


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
        patch.setattr(storage.blobs, "delete", fail)
        assert storage.delete("w", row.incarnation, 1) is OK
    assert storage.read_catalog("w") is None
    assert storage.find_blob(row.incarnation, "k") is not None
    # Whoever repeats the creation now would lose its blobs.
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
    delete = storage.blobs.delete
    outcomes = []

    def create_in_between(incarnation):
        outcomes.extend(storage.commit([make_append("w", 0, incarnation="i")]))
        delete(incarnation)

    monkeypatch.setattr(storage.blobs, "delete", create_in_between)
    assert storage.sweep(0.0) == 1
    assert outcomes == [STALE]
    # And the other way round: created after the look into the catalog, before the tombstone.
    blob = storage.write_blob("i", "k", [b"x"])
    monkeypatch.setattr(
        storage, "is_known", lambda incarnation: bool(fill(storage, "w", incarnation="i")) and False
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
    ("name", "index"),
    [
        ("list_catalog", "catalog_by_submission"),
        ("list_catalog_by_status", "catalog_by_status"),
        ("list_catalog_newest", "catalog_by_submission"),
        ("list_catalog_newest_by_status", "catalog_by_status"),
    ],
)
def test_listing_reads_a_page_from_its_index(storage, name, index):
    names = ("submitted_at", "workflow_id", "holders", "statuses", "limit")
    parameters = dict.fromkeys(names)
    with storage.reader.use() as connection:
        query = f"EXPLAIN QUERY PLAN {strip(database.QUERIES[name])}"
        plan = [row[3] for row in connection.execute(query, parameters)]
    uses = [step for step in plan if index in step]
    assert len(uses) == 1
    assert "SEARCH" in uses[0]
    assert "submitted_at" in uses[0] or re.search(r"\(submitted_at,workflow_id\)[<>]", uses[0])
    assert not [step for step in plan if step.startswith("SCAN catalog")]


def strip(query):
    return "\n".join(line for line in query.splitlines() if not line.startswith("--"))


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
