"""A storage with codecs keeps the contract of the storage without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.testing import StorageContract
from tests.unit.codec.test_payload_codec import Deflate


class TestEncodedStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = SqliteStorage(tmp_path).with_codecs([Deflate()])
        storage.open()
        yield storage
        storage.close()
