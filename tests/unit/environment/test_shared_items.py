"""What workflows share grows with none of them, and goes with the last."""

from __future__ import annotations

import msgspec

from ray_workflows._environment import shared_items
from ray_workflows.storage.memory import MemoryStorage
from ray_workflows.testing.builders import OK, make_append


def submit(storage: MemoryStorage, workflow_id: str) -> tuple[str, str]:
    append = make_append(workflow_id, 0)
    assert storage.commit([append]) == [OK]
    return workflow_id, append.incarnation


def row_of(storage: MemoryStorage, name: str):
    return storage.read_catalog(shared_items.PREFIX + name)


def test_a_package_that_a_thousand_workflows_use_is_not_written_to() -> None:
    storage = MemoryStorage(name="many-users")
    first = shared_items.keep(storage, "package/a", lambda: [b"code"])
    before = row_of(storage, "package/a")
    for number in range(1_000):
        user = submit(storage, f"w{number}")
        assert shared_items.use(storage, "package/a", user) == first
        # Again by the same one, as by each continuation.
        assert shared_items.use(storage, "package/a", user) == first
    assert row_of(storage, "package/a") == before


def test_a_package_goes_with_the_last_workflow_that_uses_it() -> None:
    storage = MemoryStorage(name="last-user")
    one, two = submit(storage, "one"), submit(storage, "two")
    shared_items.keep(storage, "package/a", lambda: [b"a"], (), one)
    shared_items.keep(storage, "package/a", lambda: [b"a"], (), two)
    shared_items.keep(storage, "package/b", lambda: [b"b"], (), two)
    assert shared_items.collect(storage, 0.0) == []
    delete(storage, *one)
    assert shared_items.collect(storage, 0.0) == [f"uses/{one[1]}"]
    assert shared_items.find(storage, "package/a") is not None
    delete(storage, *two)
    assert shared_items.collect(storage, 0.0) == [f"uses/{two[1]}", "package/a", "package/b"]


def test_users_that_an_earlier_release_named_in_the_row_count() -> None:
    storage = MemoryStorage(name="earlier-users")
    user = submit(storage, "one")
    item = shared_items.keep(storage, "package/a", lambda: [b"a"])
    row = row_of(storage, "package/a")
    users = {**row.metadata, "users": {user[1]: user[0]}}
    assert shared_items.append(storage, msgspec.structs.replace(row, seq=2, metadata=users))
    assert shared_items.collect(storage, 0.0) == []
    assert shared_items.find(storage, "package/a") == item
    delete(storage, *user)
    assert shared_items.collect(storage, 0.0) == ["package/a"]


def delete(storage: MemoryStorage, workflow_id: str, incarnation: str) -> None:
    assert storage.delete(workflow_id, incarnation, 1).value == "ok"
