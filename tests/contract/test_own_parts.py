"""Parts that are not a whole storage: each suite holds one part alone; those of users compose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows.storage import MemoryStorage, SqliteStorage, Storage
from ray_workflows.storage.parts import BlobStore, JournalStore, LeaseStore
from ray_workflows.testing import BlobStoreContract, JournalStoreContract, LeaseStoreContract
from ray_workflows.testing.builders import OK, fill

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
