"""`MemoryStorage` keeps the contract; its clock is the one it is given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_workflows.storage import MemoryStorage, Storage
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import OK, fill, make_append, make_holder


class TestMemoryStorage(StorageContract):
    shared = False

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        storage = MemoryStorage()
        storage.open()
        yield storage
        storage.close()


def test_clock_is_injected():
    now = 100.0
    storage = MemoryStorage(clock=lambda: now, name="sim")
    assert storage.url == "memory://sim"
    storage.renew_holder(make_holder("h"), 15.0)
    assert storage.read_holders()[0].lease_until == 115.0
    storage.write_blob("i-orphan", "k", [b"x"])
    now = 150.0
    storage.write_blob("i-orphan", "k2", [b"x"])
    now = 200.0
    assert storage.now() == 200.0
    assert storage.sweep(60.0) == 0
    assert storage.sweep(50.0) == 1


def test_instances_are_apart():
    one, two = MemoryStorage(), MemoryStorage()
    assert one.url != two.url
    fill(one, "w")
    assert two.read_catalog("w") is None
    assert two.commit([make_append("w", 0)]) == [OK]
