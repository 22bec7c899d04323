"""Pytest suites that check whether a storage, or one part of it, keeps its promises.
They need pytest, and use public methods only, so that any backend can be tested.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from ray_workflows.storage.base import Storage
from ray_workflows.storage.parts import BlobStore, JournalStore, LeaseStore
from ray_workflows.testing.blob_contract import BlobContract
from ray_workflows.testing.builders import OK, fill, make_append, make_holder, state
from ray_workflows.testing.catalog_contract import CatalogContract
from ray_workflows.testing.filter_contract import FilterContract
from ray_workflows.testing.journal_contract import JournalContract
from ray_workflows.testing.lease_contract import LeaseContract
from ray_workflows.testing.reader_contract import ReaderContract
from ray_workflows.testing.removal_contract import RemovalContract
from ray_workflows.testing.shared_contract import SharedContract


class JournalStoreContract(JournalContract, CatalogContract, FilterContract):
    """Every promise of `JournalStore`, as tests. Override the fixture ``journals``."""

    @pytest.fixture
    def journals(self) -> Iterator[JournalStore]:
        """An open, empty journal store."""
        raise NotImplementedError("Override the fixture `journals` of JournalStoreContract.")


class BlobStoreContract(BlobContract):
    """Every promise of `BlobStore`, as tests. Override the fixture ``blobs``."""

    @pytest.fixture
    def blobs(self) -> Iterator[BlobStore]:
        """An open, empty blob store."""
        raise NotImplementedError("Override the fixture `blobs` of BlobStoreContract.")


class LeaseStoreContract(LeaseContract):
    """Every promise of `LeaseStore`, as tests. Override the fixture ``leases``."""

    @pytest.fixture
    def leases(self) -> Iterator[LeaseStore]:
        """An open, empty lease store."""
        raise NotImplementedError("Override the fixture `leases` of LeaseStoreContract.")


class StorageContract(
    JournalStoreContract,
    BlobStoreContract,
    LeaseStoreContract,
    RemovalContract,
    ReaderContract,
    SharedContract,
):
    """Every promise of `Storage` and of its parts, as tests. Subclass it in a test module of yours.

    Override the fixture ``storage`` so that it yields an open, empty storage for each test, and
    closes it afterwards. Set ``shared`` to False if other processes can't use the storage.

    Example:
        >>> class TestMyStorage(StorageContract):
        ...     @pytest.fixture
        ...     def storage(self, tmp_path):
        ...         mine = SqliteStorage(tmp_path)
        ...         storage = Storage(
        ...             journals=mine.journals, blobs=MyBlobs(tmp_path), leases=mine.leases
        ...         )
        ...         storage.open()
        ...         yield storage
        ...         storage.close()
    """

    #: Whether a pickled copy, in this process or another, sees the same workflows.
    shared = True

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        """An open, empty storage."""
        raise NotImplementedError("Override the fixture `storage` of StorageContract.")

    @pytest.fixture
    def journals(self, storage: Storage) -> JournalStore:
        """The journals of the storage."""
        return storage.journals

    @pytest.fixture
    def blobs(self, storage: Storage) -> BlobStore:
        """The blobs of the storage."""
        return storage.blobs

    @pytest.fixture
    def leases(self, storage: Storage) -> LeaseStore:
        """The leases of the storage."""
        return storage.leases

    def test_open_is_idempotent(self, storage: Storage) -> None:
        """Opening a storage that is open, or has contents, changes nothing."""
        fill(storage, "w", 2)
        before = state(storage, "w")
        storage.open()
        storage.open()
        assert state(storage, "w") == before

    def test_a_storage_that_exists_can_be_looked_at(self, storage: Storage) -> None:
        """Opening a storage for reading changes nothing, and shows what others commit later."""
        fill(storage, "w", 2)
        before = state(storage, "w")
        storage.open_existing()
        storage.open_existing()
        assert state(storage, "w") == before
        assert storage.commit([make_append("w", 2)]) == [OK]
        assert len(storage.read_journal(before[0].incarnation)) == 3  # type: ignore[union-attr]

    def test_use_after_close(self, storage: Storage) -> None:
        """A closed storage reopens when it is used, with its contents."""
        row = fill(storage, "w", 2)
        blob = storage.write_blob(row.incarnation, "k", [b"x"])
        storage.renew_holder(make_holder("h"), 15.0)
        before = state(storage, "w")
        storage.close()
        storage.close()
        assert state(storage, "w") == before
        assert bytes(storage.read_blob(row.incarnation, blob)) == b"x"
        assert [holder.holder_id for holder in storage.read_holders()] == ["h"]
        storage.close()
        assert storage.commit([make_append("w", 2)]) == [OK]

    def test_url_names_the_storage(self, storage: Storage) -> None:
        """The URL has a scheme, and does not change."""
        url = storage.url
        assert "://" in url
        storage.close()
        assert storage.url == url

    def test_pickled_copy_is_the_same_storage(self, storage: Storage) -> None:
        """A shared storage can be pickled for workers; another one raises instead of coming back
        empty."""
        if not self.shared:
            with pytest.raises(TypeError, match="process"):
                pickle.dumps(storage)
            return
        fill(storage, "w", 1)
        copy = pickle.loads(pickle.dumps(storage))
        try:
            assert copy.url == storage.url
            assert copy.node_bound == storage.node_bound
            assert copy.commit([make_append("w", 1)]) == [OK]
            assert state(storage, "w") == state(copy, "w")
            blob = copy.write_blob("i", "k", [b"x"])
            assert bytes(storage.read_blob("i", blob)) == b"x"
        finally:
            copy.close()
