"""`ObjectStorage` keeps the contract, on S3 over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_workflows.storage.base import Storage
from ray_workflows.storage.objects import ObjectStorage
from ray_workflows.testing import StorageContract
from tests.moto import CREDENTIALS, s3_server, storage_url


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


class TestObjectStorage(StorageContract):
    @pytest.fixture
    def storage(self, s3: str) -> Iterator[Storage]:
        storage = ObjectStorage(storage_url(s3))
        storage.open()
        yield storage
        storage.close()
