"""`SharedStorage` keeps the contract, and its own promises: several processes, SIGKILL between any
two operations, file systems without links, and directories that are not mounted."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import Storage
from ray_workflows.storage.files import location
from ray_workflows.storage.objects import SharedStorage
from ray_workflows.storage.objects import directory_client as posix
from ray_workflows.storage.objects.client import InTurn
from ray_workflows.storage.sqlite import SqliteStorage
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    incarnation_of,
    list_ids,
    make_append,
    state,
)
from tests.support.put_once import Interrupted

# Children come from a server that has imported what they need: a real process in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "ray_workflows.storage.objects.directory", "tests.support.put_once"]
)

RUNNING, SUCCESSFUL = WorkflowStatus.RUNNING, WorkflowStatus.SUCCESSFUL

HANG_SECONDS = 60


class TestSharedStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = SharedStorage(tmp_path / "storage")
        storage.open()
        yield storage
        storage.close()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SharedStorage]:
    storage = SharedStorage(tmp_path / "storage")
    storage.open()
    yield storage
    storage.close()


def files(root: str | Path) -> set[str]:
    """Every file below."""
    return {str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file()}


# -- several processes ------------------------------------------------------------------------


def append_as_rival(pipe, directory, name, until):
    storage = SharedStorage(directory)
    pipe.recv()
    mine = []
    while (row := storage.read_catalog("w")).seq < until:
        commit_id = f"{name}-{row.seq}"
        if storage.commit([make_append("w", row.seq, commit_id=commit_id)]) == [OK]:
            mine.append((row.seq + 1, commit_id))
    storage.close()
    pipe.send(mine)


def test_rival_processes(storage: SharedStorage) -> None:
    """Each entry belongs to the one who was told so."""
    fill(storage, "w", 1)
    with contextlib.ExitStack() as stack:
        pipes = []
        for name in ("a", "b", "c", "d"):
            ours, theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(
                target=append_as_rival, args=(theirs, storage.directory, name, 200), daemon=True
            )
            process.start()
            stack.callback(process.join, HANG_SECONDS)
            stack.callback(process.kill)
            pipes.append(ours)
        for pipe in pipes:
            pipe.send("go")
        parts = []
        for pipe in pipes:
            assert pipe.poll(HANG_SECONDS)
            parts += pipe.recv()
            pipe.close()
    _, journal = state(storage, "w")
    assert [(entry.seq, entry.commit_id) for entry in journal[1:]] == sorted(parts)


class Killed(Interrupted):
    """SIGKILLs its process in place of an operation, or of a system call within it."""

    def pass_on(self, name, *arguments):
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self.inner, name)(*arguments)


SYSTEM_CALLS = ("open", "write", "link", "replace", "unlink", "mkdir", "fsync")


def live_and_die(directory: str, at: int, within: bool) -> None:
    """Drive two workflows until the n-th operation, or system call of one, and end there."""
    storage = SharedStorage(directory)
    home, burial = storage.journals.home, storage.journals.burial
    home.crew = home.journals.crew = home.index.crew = burial.crew = InTurn()
    if within:
        count = itertools.count(1)

        def wrapped(function):
            def call(*arguments, **keywords):
                if next(count) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **keywords)

            return call

        for name in SYSTEM_CALLS:
            setattr(os, name, wrapped(getattr(os, name)))
    else:
        killed = Killed(home.operations, at)
        for user in (home, home.journals, home.index, burial):
            user.operations = killed
    assert storage.commit([make_append("w", 0), make_append("v", 0)]) == [OK, OK]
    told(directory, "w1")
    storage.write_blob(incarnation_of("w"), "k", [b"blob"])
    assert storage.commit([make_append("w", 1, status=SUCCESSFUL)]) == [OK]
    told(directory, "w2")
    assert storage.delete("v", incarnation_of("v"), 1) is OK
    told(directory, "v gone")
    told(directory, "end")


def told(directory: str, what: str) -> None:
    """Note what was acknowledged, where the storage does not look; not a counted system call."""
    with open(f"{directory}.told", "a") as file:
        file.write(what + "\n")


@pytest.mark.parametrize("within", [False, True], ids=["operations", "system calls"])
def test_killed_anywhere(tmp_path: Path, within: bool) -> None:
    """What was acknowledged is there; another process goes on; nothing is left for ever."""
    step = 3 if within else 1
    for at in itertools.count(1, step):
        directory = str(tmp_path / f"s{at}")
        SharedStorage(directory).open()
        process = PROCESSES.Process(target=live_and_die, args=(directory, at, within))
        process.start()
        process.join(HANG_SECONDS)
        assert process.exitcode in (0, -signal.SIGKILL)
        log = Path(f"{directory}.told")
        acknowledged = log.read_text().split("\n") if log.exists() else []
        storage = SharedStorage(directory)
        ends = {}
        for name in ("w", "v"):
            row, _ = state(storage, name)
            ends[name] = row.seq if row else 0
        assert ends["w"] >= (2 if "w2" in acknowledged else 1 if "w1" in acknowledged else 0)
        assert "v gone" not in acknowledged or ends["v"] == 0
        assert "w1" not in acknowledged or "w2" in acknowledged or ends["v"] == 1
        assert sorted(list_ids(storage)) == sorted(name for name in ends if ends[name])
        for name, end in ends.items():
            # The one that was deleted keeps its incarnation for a while.
            append = make_append(name, end, incarnation="" if end else f"i-again-{name}")
            assert storage.commit([append]) == [OK]
        assert sorted(list_ids(storage)) == ["v", "w"]
        storage.close()
        if "end" in acknowledged:
            assert at > 20
            return


def test_temporary_files_of_the_killed_are_swept(storage: SharedStorage) -> None:
    path = os.path.join(storage.directory, "tmp", ".tmp-left")
    Path(path).write_bytes(b"x")
    storage.sweep(0.0)
    assert os.path.exists(path)
    os.utime(path, (0, 0))
    storage.sweep(0.0)
    assert not os.path.exists(path)


# -- file systems -----------------------------------------------------------------------------


def test_a_link_whose_answer_was_lost_is_known_as_ours(
    storage: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats a request, and is told that the name exists."""
    link = os.link

    def lossy(source: str, target: str) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists", target)

    monkeypatch.setattr(posix.os, "link", lossy)
    assert storage.journals.home.operations.create("a/b", b"x")
    monkeypatch.undo()
    assert not storage.journals.home.operations.create("a/b", b"y")
    assert storage.journals.home.operations.get("a/b").data == b"x"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(code, os.strerror(code), target)

    monkeypatch.setattr(posix.os, "link", refuse)
    with pytest.raises(StorageConfigError, match="hard links"):
        SharedStorage(tmp_path / "new" / "storage").open()


@pytest.mark.parametrize("left", ["nothing", "mount point"])
def test_an_unmounted_directory_is_not_written_to(storage: SharedStorage, left: str) -> None:
    """What lies below the mount is no storage: nothing is committed there."""
    fill(storage, "w", 2)
    moved = storage.directory + "-moved"
    os.rename(storage.directory, moved)
    if left == "mount point":
        os.mkdir(storage.directory)
    for call in (
        lambda: storage.commit([make_append("w", 2)]),
        lambda: storage.commit([make_append("new", 0)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.write_blob("i", "k", [b"x"]),
        lambda: list_ids(storage),
        storage.now,
    ):
        with pytest.raises(StorageUnavailableError, match="storage"):
            call()
    if left == "mount point":
        assert os.listdir(storage.directory) == []
        os.rmdir(storage.directory)
    os.rename(moved, storage.directory)
    assert storage.commit([make_append("w", 2)]) == [OK]


def test_a_full_disk(storage: SharedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(storage, "w", 1)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(posix.os, "write", full)
    with pytest.raises(StorageUnavailableError, match="Free some space"):
        storage.commit([make_append("w", 1)])
    monkeypatch.undo()
    assert os.listdir(os.path.join(storage.directory, "tmp")) == []
    assert storage.commit([make_append("w", 1)]) == [OK]


def test_network_file_systems_are_what_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded storage refuses them and names shared://, which takes them."""
    monkeypatch.setattr(location, "read_mounts", lambda: f"server:/x {tmp_path} nfs4 rw 0 0\n")
    with pytest.raises(StorageConfigError, match=f"shared://{tmp_path}"):
        SqliteStorage(tmp_path / "storage").open()
    storage = SharedStorage(tmp_path / "storage")
    storage.open()
    assert storage.commit([make_append("w", 0)]) == [OK]
    storage.close()


def test_an_embedded_storage_is_not_taken_for_a_shared_one(tmp_path: Path) -> None:
    embedded = SqliteStorage(tmp_path)
    embedded.open()
    embedded.close()
    before = files(tmp_path)
    for call in (SharedStorage(tmp_path).open, SharedStorage(tmp_path).open_existing):
        with pytest.raises(StorageConfigError, match="embedded"):
            call()
    assert files(tmp_path) == before


def test_looking_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageConfigError, match="not a shared storage"):
        SharedStorage(tmp_path / "absent").open_existing()
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageConfigError, match="not a directory"):
        SharedStorage(tmp_path / "file").open()


def test_every_process_sees_it_under_its_url(storage: SharedStorage) -> None:
    copy = pickle.loads(pickle.dumps(storage))
    assert (copy.url, copy.node_bound) == (storage.url, False)
    assert repr(copy) == repr(storage)


def test_what_is_renamed_while_a_directory_is_read_is_listed(
    storage: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a directory may show neither the name that goes nor the one that comes."""
    operations = storage.journals.home.operations
    operations.put("d/old", b"")
    operations.put("d/stays", b"")
    scandir = os.scandir

    @contextlib.contextmanager
    def racing(path: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            found = [entry for entry in entries if entry.name != "old"]
        if not os.path.exists(os.path.join(path, "new")):
            operations.put("d/new", b"")
            operations.delete(["d/old"])
        yield found

    monkeypatch.setattr(posix.os, "scandir", racing)
    assert [listed.name for listed in operations.list("d")] == ["new", "stays"]


# -- damage -----------------------------------------------------------------------------------


def test_a_damaged_blob_is_named(storage: SharedStorage) -> None:
    blob = storage.write_blob("inc-1", "key-1", [b"x" * 2_000_000])
    path = os.path.join(storage.directory, "blobs", "inc-1", "key-1")
    os.chmod(path, 0o600)
    Path(path).write_bytes(b"x" * 1_999_999 + b"y")
    with pytest.raises(StorageCorruptError, match=r"'key-1'.*'inc-1'"):
        storage.read_blob("inc-1", blob)


def test_a_rival_on_another_machine_is_fenced(storage: SharedStorage) -> None:
    """Two views of one directory: the second learns that it is late."""
    fill(storage, "w", 2)
    other = SharedStorage(storage.directory)
    assert other.commit([make_append("w", 2, holder="other")]) == [OK]
    assert storage.commit([make_append("w", 2, holder="me")]) == [STALE]
    assert storage.read_catalog("w").holder == "other"
    other.close()


# -- what others leave in the directory -------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "shared"])
def test_strays_beside_and_among_blobs(tmp_path: Path, kind: str) -> None:
    """As file systems, file managers and editors leave them; one of them can't be removed."""
    storage: Storage = (SqliteStorage if kind == "sqlite" else SharedStorage)(tmp_path)
    storage.open()
    for name in ("w", "ended"):
        fill(storage, name, 2, status=SUCCESSFUL)
    blob = storage.write_blob(incarnation_of("w"), "key", [b"value"])
    storage.write_blob(incarnation_of("ended"), "key", [b"value"])
    blobs = tmp_path / "blobs"
    for directory in (blobs, blobs / incarnation_of("w"), blobs / incarnation_of("ended")):
        for name in (".nfs0000012ab", ".DS_Store", "key~", "#key#"):
            (directory / name).write_bytes(b"not ours")
        # As a .nfs file that another machine has open.
        (directory / ".nfs0000busy").mkdir()
    (blobs / "lost+found").mkdir()
    for path in blobs.rglob("*"):
        os.utime(path, (1000.0, 1000.0))
    assert storage.delete("ended", incarnation_of("ended"), 2) is OK
    storage.sweep(0.0)
    assert bytes(storage.read_blob(incarnation_of("w"), blob)) == b"value"
    assert list_ids(storage) == ["w"]
    assert not list(blobs.glob(f"{incarnation_of('ended')}/key"))
    assert (blobs / "lost+found").is_dir()
    assert (blobs / ".DS_Store").exists()
    storage.close()
