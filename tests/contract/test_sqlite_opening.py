"""What `SqliteStorage` makes of the directory that it opens or looks into: new, of another release,
foreign, or of another account."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from ray_workflows.storage import SqliteStorage
from ray_workflows.storage.files import location
from ray_workflows.storage.sqlite import connection as database
from ray_workflows.storage.sqlite.connection import MIGRATIONS
from ray_workflows.testing.builders import (
    OK,
    fill,
    in_threads,
    list_ids,
    make_append,
    make_holder,
    state,
)
from tests.support.children import child, receive
from tests.support.files import tree


@pytest.fixture
def storage(tmp_path):
    storage = SqliteStorage(tmp_path / "storage")
    storage.open()
    yield storage
    storage.close()


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
    with storage.journals.home.writer.use() as connection:
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
    with other.journals.home.writer.use() as connection:
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
ALTER TABLE catalog ADD COLUMN weight INTEGER NOT NULL DEFAULT 0;
CREATE INDEX catalog_by_weight ON catalog (weight, submitted_at);
CREATE TABLE signals (
    incarnation TEXT NOT NULL,
    name TEXT NOT NULL DEFAULT ';'
);
"""


@pytest.fixture
def next_release(monkeypatch):
    """This process is of a release that has one migration more."""
    texts = {"next.sql": STEP}
    read_sql = database.read_sql
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "next.sql"))
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
        with pytest.raises(StorageConfigError, match=rf"schema {len(MIGRATIONS)}.*init\(\)"):
            newer.open_existing()
        assert version_of(store) == (len(MIGRATIONS), 0)
        copies = [SqliteStorage(store) for _ in range(3)]
        in_threads([copy.open for copy in copies])
        assert version_of(store) == (len(MIGRATIONS) + 1, 1)
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
    assert version_of(tmp_path) == (len(MIGRATIONS) + 1, 1)
    fill(storage, "w", 2)
    storage.close()


def test_a_failed_migration_changes_nothing(tmp_path, next_release):
    next_release["next.sql"] = STEP + "CREATE TABLE journal (x);"
    before = database.MIGRATIONS
    database.MIGRATIONS = before[:-1]
    storage = SqliteStorage(tmp_path)
    storage.open()
    fill(storage, "w", 2)
    database.MIGRATIONS = before
    with pytest.raises(StorageError, match="journal already exists"):
        storage.open()
    assert version_of(tmp_path) == (len(MIGRATIONS), 0)
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
        shutil.copy(f"{others_storage.journals.home.writer.path}{suffix}", left)
    assert os.path.getsize(left / "workflows.sqlite-wal") > 0
    with child(look_as_nobody, str(left)) as (_, pipe):
        error = receive(pipe)
    assert isinstance(error, StorageConfigError)
    assert "-wal" in str(error)


@pytest.mark.administrator
def test_looking_without_the_right_to_read(others_storage):
    Path(others_storage.journals.home.writer.path).chmod(0o600)
    with child(look_as_nobody, others_storage.directory) as (_, pipe):
        error = receive(pipe)
    assert isinstance(error, StorageConfigError)
    assert "can't be read" in str(error)
