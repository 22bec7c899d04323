"""Parts that are not a whole storage: each suite holds one part alone; those of users compose."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows.storage import MemoryStorage, SqliteStorage, Storage
from ray_workflows.storage.combined import combine
from ray_workflows.storage.parts import BlobStore, JournalStore, LeaseStore
from ray_workflows.storage.urls import storage_from_url
from ray_workflows.testing import BlobStoreContract, JournalStoreContract, LeaseStoreContract
from ray_workflows.testing.builders import OK, fill
from tests.unit.codec.test_payload_codec import Deflate

PAGE = Path(__file__).parents[2] / "docs" / "storage-own.md"


class TestJournalsAlone(JournalStoreContract):
    @pytest.fixture
    def journals(self) -> JournalStore:
        return MemoryStorage().journals


class TestBlobsAlone(BlobStoreContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Iterator[BlobStore]:
        blobs = SqliteStorage(tmp_path).blobs
        blobs.home.open()
        yield blobs
        blobs.home.close()


class TestLeasesAlone(LeaseStoreContract):
    @pytest.fixture
    def leases(self) -> LeaseStore:
        return MemoryStorage().leases


def test_the_example_of_a_part_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(block, {})


def test_what_takes_a_part_takes_a_whole_storage() -> None:
    """Its homes are opened and closed with the rest, and its blobs go with their workflow."""
    rows, values = MemoryStorage(name="rows"), MemoryStorage(name="values")
    storage = Storage(journals=rows, blobs=values, leases=rows)
    storage.open()
    assert storage.url == "memory://rows#blobs=memory%3A%2F%2Fvalues"
    row = fill(storage, "w")
    blob = storage.write_blob(row.incarnation, "k", [b"x"])
    assert values.find_blob(row.incarnation, "k") == blob
    assert storage.delete("w", row.incarnation, 1) is OK
    assert values.find_blob(row.incarnation, "k") is None


def test_a_home_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = SqliteStorage(tmp_path)
    (home,) = storage.homes
    opened: list[str] = []
    monkeypatch.setattr(home, "open", lambda: opened.append(home.url))
    storage.open()
    assert opened == [storage.url]


@pytest.mark.parametrize("way", ["codec", "combined"])
@pytest.mark.parametrize(
    "url", ["{}/here", "shared://{}/there", "s3://bucket/prefix", "postgresql://me@db/work"]
)
def test_parts_of_every_storage_travel_with_their_home(url: str, way: str, tmp_path: Path) -> None:
    """Those of one home have one home again; nothing is opened for it."""
    inner = storage_from_url(url.format(tmp_path))
    rows = SqliteStorage(tmp_path / "rows")
    storage = inner.with_codecs([Deflate()]) if way == "codec" else combine(rows, inner)
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.url == storage.url
    assert [home.url for home in copy.homes] == [home.url for home in storage.homes]
    for method in (storage.commit, storage.journals.commit, storage.blobs.read_blob, storage.now):
        assert pickle.loads(pickle.dumps(method)).__name__ == method.__name__
