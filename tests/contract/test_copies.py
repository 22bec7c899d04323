"""Copies between real storages: the same workflow arrives, whatever interrupts it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import ray_workflows
from ray_workflows._client import copies
from ray_workflows._client.copies import COPIER, Copying
from ray_workflows._client.reader import Reader
from ray_workflows._client.reads import get_metadata, get_status, get_tasks, stored_output
from ray_workflows._codec.envelope import seal
from ray_workflows._codec.journal import decode_entries, encode_entry, encode_plan
from ray_workflows._codec.references import blobs_in
from ray_workflows._coordinator.requests import Submission
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import messages as msg
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Value
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
    WorkflowCopyError,
    WorkflowNotFoundError,
    WorkflowStillActiveError,
)
from ray_workflows.storage import MemoryStorage, SqliteStorage, Storage
from ray_workflows.storage.combined import combine
from ray_workflows.storage.objects import ObjectStorage, SharedStorage
from ray_workflows.storage.urls import storage_from_url
from ray_workflows.testing.builders import OK, list_ids, make_append, make_holder
from tests.cli.store import Store
from tests.support.moto import CREDENTIALS, s3_server, storage_url
from tests.support.put_once import Crash, Interrupted, MemoryObjectStorage, MemoryOperations
from tests.unit.plans import plan

KINDS = ("sqlite", "postgres", "s3", "shared", "combined")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Storage]]:
    """Makes an open, empty storage of a kind."""
    with contextlib.ExitStack() as stack:

        def make(kind: str) -> Storage:
            name = f"copies_{uuid.uuid4().hex[:12]}"
            storage: Storage
            if kind == "postgres":
                url = request.getfixturevalue("postgres_url")
                storage = storage_from_url(f"{url}{'&' if '?' in url else '?'}schema={name}")
                stack.callback(drop, url, name)
            elif kind == "s3":
                storage = ObjectStorage(storage_url(request.getfixturevalue("s3")))
            elif kind == "shared":
                storage = SharedStorage(tmp_path / name)
            elif kind == "combined":
                storage = combine(
                    SqliteStorage(tmp_path / name), SqliteStorage(tmp_path / f"{name}-blobs")
                )
            else:
                storage = SqliteStorage(tmp_path / name)
            storage.open()
            stack.callback(storage.close)
            return storage

        yield make


def drop(url: str, schema: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "source")
    yield store
    store.storage.close()


def with_objects(store: Store, workflow_id: str) -> None:
    """A workflow whose result refers to an object, which refers to another one."""
    story = store.story(workflow_id)
    incarnation = story.state.incarnation
    inner = store.storage.write_blob(incarnation, "object-inner", seal(b"inner", []))
    outer = store.storage.write_blob(incarnation, "object-outer", seal(b"outer", [], [inner]))
    store.give(story, "fetch", bytes(300_000))
    value = Value(b"".join(seal(b"result", [], [outer])), (outer,))
    story.report(msg.AttemptReturned, "total", value=value)
    store.save(story)


def fill_source(store: Store) -> list[str]:
    store.successful("done", {"sum": 18}, ago=5000)
    store.successful("large", b"x" * 9_000_000, ago=4000)
    with_objects(store, "objects")
    store.failed("failed")
    store.canceled("canceled")
    store.running("cut off")
    return ["done", "large", "objects", "failed", "canceled", "cut off"]


def contents(storage: Storage, workflow_id: str) -> dict[str, Any]:
    """All that is stored of a workflow."""
    row = storage.read_catalog(workflow_id)
    assert row is not None
    entries = storage.read_journal(row.incarnation)
    assert len(entries) == row.seq
    blobs = {}
    pending = list(blobs_in(decode_entries(entries, workflow_id, row.incarnation)))
    if workflow_id == "objects":
        found = storage.find_blob(row.incarnation, "object-inner")
        assert found is not None
        pending.append(found)
    for blob in pending:
        blobs[blob] = bytes(storage.read_blob(row.incarnation, blob))
    return {"row": row, "entries": entries, "blobs": blobs}


def views(storage: Storage, workflow_id: str) -> dict[str, Any]:
    """What users see of it."""
    reader = Reader(storage)
    seen: dict[str, Any] = {
        "status": get_status(reader, workflow_id),
        "metadata": get_metadata(reader, workflow_id, None),
        "tasks": get_tasks(reader, workflow_id),
    }
    if seen["status"] == "SUCCESSFUL" and workflow_id != "objects":
        seen["output"] = stored_output(reader, workflow_id, None)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_all_there_and_back(
    kind: str, source: Store, make: Callable[[str], Storage], tmp_path: Path
) -> None:
    names = fill_source(source)
    there = make(kind)
    assert sorted(ray_workflows.copy(source=source.storage, target=there)) == sorted(names)
    back = SqliteStorage(tmp_path / "back")
    assert sorted(ray_workflows.copy(source=there, target=back)) == sorted(names)
    for name in names:
        expected = contents(source.storage, name)
        assert expected["blobs"] or name != "large"
        assert contents(there, name) == expected
        assert contents(back, name) == expected
        assert views(there, name) == views(source.storage, name)
    assert list_ids(there) == list_ids(source.storage)
    assert there.read_holders() == []
    # Again: nothing is left to do.
    assert ray_workflows.copy(source=source.storage, target=there) == []
    # What is deleted there is gone; the source has it.
    for name in names:
        row = there.read_catalog(name)
        assert there.delete(name, row.incarnation, row.seq) is OK
        assert there.find_blob(row.incarnation, "result-total") is None
    assert list_ids(there) == []
    assert sorted(list_ids(source.storage)) == sorted(names)
    back.close()


def test_one_alone(source: Store, make: Callable[[str], Storage]) -> None:
    source.successful("w", 1)
    source.successful("other", 2)
    target = make("sqlite")
    assert ray_workflows.copy("w", source=source.storage, target=target) == ["w"]
    assert list_ids(target) == ["w"]
    assert ray_workflows.copy("w", source=source.storage, target=target) == []


def test_the_unknown_creates_nothing(source: Store, tmp_path: Path) -> None:
    where = tmp_path / "none"
    with pytest.raises(WorkflowNotFoundError):
        ray_workflows.copy("w", source=source.storage, target=where)
    assert not where.exists()
    with pytest.raises(StorageConfigError, match="is not a storage"):
        ray_workflows.copy("w", source=where, target=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(TypeError, match="target=None"):
        ray_workflows.copy("w", source=source.storage, target=None)
    with pytest.raises(ValueError, match="empty"):
        ray_workflows.copy("", source=source.storage, target=where)


def test_a_storage_is_not_copied_to_itself(source: Store, tmp_path: Path) -> None:
    source.successful("w")
    with pytest.raises(StorageConfigError, match="copied from"):
        ray_workflows.copy(source=source.storage, target=source.directory)
    target = combine(SqliteStorage(source.directory), SqliteStorage(tmp_path / "blobs"))
    with pytest.raises(StorageConfigError, match="copied from"):
        ray_workflows.copy(source=source.storage, target=target)


def test_what_is_driven_stays(source: Store, make: Callable[[str], Storage]) -> None:
    source.running("running")
    source.successful("done", 1)
    source.hold()
    target = make("sqlite")
    with pytest.raises(WorkflowStillActiveError, match="COPY"):
        ray_workflows.copy("running", source=source.storage, target=target)
    with pytest.raises(WorkflowCopyError, match="running or pending") as caught:
        ray_workflows.copy(source=source.storage, target=target)
    assert caught.value.workflow_ids == ["running"]
    assert list_ids(target) == ["done"]


def test_another_one_of_the_id(source: Store, make: Callable[[str], Storage]) -> None:
    source.successful("w", 1)
    target = make("sqlite")
    other = make_append("w", 0, incarnation="i-other")
    assert target.commit([other]) == [OK]
    with pytest.raises(WorkflowCopyError, match=r"another workflow of this id.*Delete"):
        ray_workflows.copy("w", source=source.storage, target=target)
    assert target.read_catalog("w") == other.catalog


def test_a_copy_that_went_on_by_itself(source: Store, make: Callable[[str], Storage]) -> None:
    """Neither overwrites the other."""
    row = source.failed("w")
    target = make("sqlite")
    ray_workflows.copy("w", source=source.storage, target=target)
    fields = {"incarnation": row.incarnation, "status": WorkflowStatus.RUNNING}
    assert target.commit([make_append("w", row.seq, **fields)]) == [OK]
    with pytest.raises(WorkflowCopyError, match="went on by itself"):
        ray_workflows.copy("w", source=source.storage, target=target)
    entry = encode_entry([], "w", row.incarnation, row.seq + 1)
    resumed = make_append("w", row.seq, commit_id="mine", entry=entry, **fields)
    assert source.storage.commit([resumed]) == [OK]
    with pytest.raises(WorkflowCopyError, match="went on by itself"):
        ray_workflows.copy("w", source=source.storage, target=target)


def test_a_copy_is_brought_up_to_date(source: Store, make: Callable[[str], Storage]) -> None:
    """A backup of a workflow that was cut off, and has gone on since."""
    story = source.story("w")
    source.give(story, "fetch", bytes(100_000))
    done = len(story.journal)
    before = source.save(story)
    target = make("shared")
    assert ray_workflows.copy("w", source=source.storage, target=target) == ["w"]
    assert contents(target, "w")["row"] == before
    source.give(story, "total", b"y" * 100_000)
    entries = story.journal[done:]
    row = catalog_row(story.state, len(story.journal))
    for seq, event in enumerate(entries, done):
        entry = encode_entry([event], "w", row.incarnation, seq + 1)
        append = make_append("w", seq, incarnation=row.incarnation, entry=entry)
        catalog = msgspec.structs.replace(row, seq=seq + 1)
        assert source.storage.commit([msgspec.structs.replace(append, catalog=catalog)]) == [OK]
    # Somebody drives the copy just now.
    target.renew_holder(make_holder("h1"), 15.0)
    with pytest.raises(WorkflowStillActiveError):
        Copying(source.storage, target).copy("w")
    target.remove_holder("h1")
    assert ray_workflows.copy("w", source=source.storage, target=target) == ["w"]
    assert contents(target, "w") == contents(source.storage, "w")
    assert views(target, "w")["output"] == b"y" * 100_000


def submission(store: Store, child: str) -> tuple[OutboxMessage, Blob]:
    """A message that starts a workflow, and the blob of the argument of its task."""
    blob = store.storage.write_blob(f"i-{child}", "argument", seal(bytes(200_000), []))
    (task,) = plan(("f", ())).tasks
    large = msgspec.structs.replace(task, arguments=Value(blob))
    raw = msgspec.Raw(encode_plan(msgspec.structs.replace(plan(("f", ())), tasks=(large,))))
    body = msgspec.msgpack.encode(Submission(child, f"i-{child}", raw, {}, None, f"id-{child}"))
    return OutboxMessage(f"id-{child}", child, Value(body)), blob


@pytest.mark.parametrize("kind", ["sqlite", "shared"])
def test_what_is_not_handed_over_is_copied(
    kind: str, source: Store, make: Callable[[str], Storage]
) -> None:
    """The copy starts it where it goes on, and needs what belongs to it."""
    story = source.story("w")
    (done, done_blob), (left, left_blob) = (submission(source, each) for each in ("done", "left"))
    # One is in a blob itself, as large ones are.
    data = left.body.data
    assert isinstance(data, bytes)
    stored = source.storage.write_blob(story.state.incarnation, "message", [data])
    left = msgspec.structs.replace(left, body=Value(stored))
    story.report(msg.AttemptReturned, "fetch", value=Value(b"v"), messages=(done, left))
    story.send(msg.Delivered(done.message_id))
    source.save(story)
    target = make(kind)
    assert ray_workflows.copy("w", source=source.storage, target=target) == ["w"]
    assert contents(target, "w") == contents(source.storage, "w")
    assert target.read_blob("i-left", left_blob) == source.storage.read_blob("i-left", left_blob)
    assert target.find_blob("i-done", done_blob.key) is None


def test_who_goes_on_meanwhile_is_not_copied(
    source: Store, make: Callable[[str], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = source.failed("w")
    target = make("sqlite")
    real = copies.copy_blobs

    def resumed_first(*arguments: Any) -> None:
        real(*arguments)
        fields = {"incarnation": row.incarnation, "status": WorkflowStatus.RUNNING}
        source.storage.commit([make_append("w", row.seq, **fields)])

    monkeypatch.setattr(copies, "copy_blobs", resumed_first)
    with pytest.raises(WorkflowCopyError, match="changed while"):
        ray_workflows.copy("w", source=source.storage, target=target)
    assert target.read_catalog("w") is None


def test_damage_is_not_copied(source: Store, make: Callable[[str], Storage]) -> None:
    row = source.successful("w", bytes(200_000))
    source.successful("whole", 1)
    target = make("sqlite")
    path = source.directory / "blobs" / row.incarnation / "result-total"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageCorruptError, match="result-total"):
        ray_workflows.copy("w", source=source.storage, target=target)
    with pytest.raises(WorkflowCopyError, match="result-total") as caught:
        ray_workflows.copy(source=source.storage, target=target)
    assert caught.value.workflow_ids == ["w"]
    assert list_ids(target) == ["whole"]


def test_a_deleted_copy_comes_back_later(source: Store, make: Callable[[str], Storage]) -> None:
    """Where a deleted journal keeps its numbers for hours, the message says so."""
    row = source.successful("w", 1)
    for kind in ("sqlite", "shared"):
        target = make(kind)
        ray_workflows.copy("w", source=source.storage, target=target)
        assert target.delete("w", row.incarnation, row.seq) is OK
        if kind == "sqlite":
            assert ray_workflows.copy("w", source=source.storage, target=target) == ["w"]
        else:
            with pytest.raises(WorkflowCopyError, match="some hours later"):
                ray_workflows.copy("w", source=source.storage, target=target)


# -- interruptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["before", "after", "lost"])
def test_interrupted_at_any_request(
    source: Store, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is whole, nobody takes it for a workflow that was interrupted; then it is equal."""
    monkeypatch.setattr(copies, "BATCH_ENTRIES", 2)
    now = [1_000_000.0]
    source.successful("w", b"x" * 70_000)
    expected = contents(source.storage, "w")
    seen = set()
    for at in itertools.count(1):
        operations = MemoryOperations(lambda: now[0])

        def process(
            at: int = 0, how: str = "before", operations: MemoryOperations = operations
        ) -> MemoryObjectStorage:
            return MemoryObjectStorage(Interrupted(operations, at, how), lambda: now[0])

        process().open()
        dying = process(at, how)
        with contextlib.suppress(Crash, StorageUnavailableError):
            Copying(source.storage, dying).copy("w")
        reached = dying.journals.home.operations.count >= at
        row = process().read_catalog("w")
        if row is not None and row.seq < expected["row"].seq:
            assert row.status is WorkflowStatus.CANCELED
            assert row.holder.startswith(COPIER)
            assert "copy it again" in row.error
            with pytest.raises(WorkflowCopyError, match="half a copy itself"):
                Copying(process(), MemoryStorage()).copy("w")
            seen.add(row.seq)
        now[0] += 100.0
        again = process()
        Copying(source.storage, again).copy("w")
        assert contents(process(), "w") == expected
        assert list_ids(process(), statuses=(WorkflowStatus.SUCCESSFUL,)) == ["w"]
        assert list_ids(process(), statuses=(WorkflowStatus.CANCELED,)) == []
        if not reached:
            break
    assert len(seen) > 2


KILLED = """
import os, signal, sys
from ray_workflows import copy
from ray_workflows._client import copies
real, left = copies.copy_blobs, [int(sys.argv[3])]

def counted(*arguments):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    real(*arguments)

copies.copy_blobs = counted
print(copy(source=sys.argv[1], target=sys.argv[2]))
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "s3", "shared"])
def test_killed_and_run_again(kind: str, source: Store, make: Callable[[str], Storage]) -> None:
    """The process, with SIGKILL."""
    names = fill_source(source)
    target = make(kind)
    environment = {**os.environ, **CREDENTIALS}
    url = target.url
    if kind == "postgres":
        url = url.replace("postgresql://", "postgresql://postgres@")
    if kind == "s3":
        url = repr(target).partition("'")[2].rpartition("'")[0]
    program = [sys.executable, "-c", KILLED, source.storage.url, url]
    killed = subprocess.run([*program, "12"], env=environment, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 0 < len(list_ids(target)) < len(names)
    subprocess.run([*program, "1000"], env=environment, check=True)
    for name in names:
        assert contents(target, name) == contents(source.storage, name)
        assert views(target, name) == views(source.storage, name)


# -- memory ----------------------------------------------------------------------------------------

STREAMED = """
import resource, sys
from ray_workflows import copy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
copy("w", source=sys.argv[1], target=sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""

#: Larger than what all buffers together may be.
SIZE = 250_000_000


def test_a_blob_is_never_whole_in_memory(
    source: Store, tmp_path: Path, make: Callable[[str], Storage]
) -> None:
    story = source.story("w")
    piece = os.urandom(1_000_000)
    chunks = itertools.chain(
        seal(b"", []), [memoryview(piece)[:0]], itertools.repeat(piece, SIZE // 1_000_000)
    )
    blob = source.storage.write_blob(story.state.incarnation, "huge", chunks)
    source.give(story, "fetch", 1)
    story.report(msg.AttemptReturned, "total", value=Value(blob))
    source.save(story)
    postgres = make("postgres")
    urls = [
        source.storage.url,
        f"shared://{tmp_path}/shared",
        postgres.url.replace("postgresql://", "postgresql://postgres@"),
        str(tmp_path / "end"),
    ]
    for here, there in itertools.pairwise(urls):
        result = subprocess.run(
            [sys.executable, "-c", STREAMED, here, there],
            check=True,
            capture_output=True,
            text=True,
        )
        grown = int(result.stdout)
        assert grown < 100, f"{here} -> {there}: {grown} MiB"
        if here == source.storage.url:
            source.storage.delete("w", story.state.incarnation, len(story.journal))
    assert SqliteStorage(tmp_path / "end").find_blob(story.state.incarnation, "huge") == blob
