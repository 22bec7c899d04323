"""What is deleted or pruned leaves nothing behind: no row, no file, no object."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_workflows._client import removal
from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import Reader
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.combined import combine
from ray_workflows.storage.objects import ObjectStorage, SharedStorage
from ray_workflows.storage.objects import deletion as burial
from ray_workflows.storage.urls import storage_from_url
from ray_workflows.testing.builders import OK, fill, list_ids, make_append
from tests.support.moto import CREDENTIALS, s3_server, storage_url
from tests.support.stored import in_bucket, in_files, in_postgres, in_sqlite

KINDS = ("sqlite", "postgres", "s3", "shared", "combined")

#: What nobody may find afterwards.
SECRET = b"the value of somebody"

#: What is there without any workflow.
LASTING = ("layout", "clocks/", "tmp/")

#: In a store where nothing can be deleted on condition, this stays for some hours.
TRACES = ("journal/", "ids/", "graves/")


class Place:
    """A storage, and all that is stored there, by name."""

    def __init__(self, storage: Storage, look: Callable[[], dict[str, bytes]]) -> None:
        self.storage = storage
        self.look = look


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    kind = request.param
    if kind == "postgres":
        url, schema = request.getfixturevalue("postgres_url"), f"left_{uuid.uuid4().hex[:12]}"
        storage = storage_from_url(f"{url}{'&' if '?' in url else '?'}schema={schema}")
        place = Place(storage, lambda: in_postgres(url, schema))
    elif kind == "s3":
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        bucket = ObjectStorage(storage_url(request.getfixturevalue("s3")))
        place = Place(bucket, lambda: in_bucket(bucket))
    elif kind == "shared":
        place = Place(SharedStorage(tmp_path), lambda: in_files(tmp_path))
    elif kind == "combined":
        rows, values = tmp_path / "rows", tmp_path / "values"
        combined = combine(SqliteStorage(rows), SqliteStorage(values))
        place = Place(combined, lambda: in_sqlite(rows) | in_sqlite(values))
    else:
        place = Place(SqliteStorage(tmp_path), lambda: in_sqlite(tmp_path))
    place.storage.open()
    yield place
    place.storage.close()
    if kind == "postgres":
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def lasting(found: dict[str, bytes]) -> set[str]:
    return {name for name in found if not name.startswith(LASTING)}


def story(storage: Storage, workflow_id: str, ended_at: float, status: str) -> str:
    """A workflow with values of all sizes; its incarnation."""
    row = fill(storage, workflow_id, 2, entry=SECRET, metadata={"k": "v"})
    for key, size in (("small", 1), ("large", 10_000), ("parts", 500_000)):
        storage.write_blob(row.incarnation, key, [SECRET * size])
    fields = {"status": WorkflowStatus(status), "ended_at": ended_at, "metadata": {"k": "v"}}
    assert storage.commit([make_append(workflow_id, 2, entry=SECRET, **fields)]) == [OK]
    return row.incarnation


def test_delete_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = place.storage
    before = place.look()
    assert not any(SECRET in data for data in before.values())
    story(storage, "w", 2000.0, "SUCCESSFUL")
    assert len(place.look()) > len(before)
    assert any(SECRET in data for data in place.look().values())
    removal.delete(Reader(storage), read_row(storage, "w"))
    left = place.look()
    assert not any(SECRET in data for data in left.values())
    traces = lasting(left) - lasting(before)
    if not isinstance(storage, (ObjectStorage, SharedStorage)):
        assert traces == set()
    assert all(name.startswith(TRACES) and len(left[name]) < 1000 for name in traces), traces
    monkeypatch.setattr(burial, "GRAVE_SECONDS", -10.0)
    storage.sweep(3600.0)
    assert lasting(place.look()) == lasting(before)


def test_prune_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that are to be kept."""
    storage = place.storage
    before = place.look()
    now = storage.now()
    for number, status in enumerate(("SUCCESSFUL", "FAILED", "CANCELED", "SUCCESSFUL")):
        story(storage, f"w{number}", now - 1000.0 + number, status)
    story(storage, "young", now, "SUCCESSFUL")
    reader = Reader(storage)
    assert removal.prune(reader, 100.0, None, 2) == ["w0", "w1", "w2"]
    assert list_ids(storage) == ["w3", "young"]
    assert removal.prune(reader, 0.0, {WorkflowStatus.SUCCESSFUL}, 0) == ["w3", "young"]
    monkeypatch.setattr(burial, "GRAVE_SECONDS", -10.0)
    storage.sweep(3600.0)
    assert lasting(place.look()) == lasting(before)


def test_the_id_is_free_at_once(place: Place) -> None:
    storage = place.storage
    story(storage, "w", 2000.0, "FAILED")
    removal.delete(Reader(storage), read_row(storage, "w"))
    row = fill(storage, "w", 1, incarnation="i-again")
    assert storage.delete("w", row.incarnation, 1) is OK
