"""`SharedStorage` keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows.storage.base import Storage
from ray_workflows.storage.shared import SharedStorage
from ray_workflows.testing import StorageContract


class TestSharedStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = SharedStorage(tmp_path / "storage")
        storage.open()
        yield storage
        storage.close()
