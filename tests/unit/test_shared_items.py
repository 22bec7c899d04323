"""What workflows share grows with none of them, and goes with the last."""

from __future__ import annotations

import msgspec

from ray_workflows._environment import store
from ray_workflows.storage.memory import MemoryStorage
from ray_workflows.testing.builders import OK, make_append


def submit(storage: MemoryStorage, workflow_id: str) -> tuple[str, str]:
    append = make_append(workflow_id, 0)
    assert storage.commit([append]) == [OK]
    return workflow_id, append.incarnation


def row_of(storage: MemoryStorage, name: str):
    return storage.read_catalog(store.PREFIX + name)


def test_a_package_that_a_thousand_workflows_use_is_not_written_to() -> None:
    storage = MemoryStorage(name="many-users")
    first = store.keep(storage, "package/a", lambda: [b"code"])
    before = row_of(storage, "package/a")
    for number in range(1_000):
        user = submit(storage, f"w{number}")
        assert store.use(storage, "package/a", user) == first
        # Again by the same one, as by each continuation.
        assert store.use(storage, "package/a", user) == first
    assert row_of(storage, "package/a") == before


def test_a_package_goes_with_the_last_workflow_that_uses_it() -> None:
    storage = MemoryStorage(name="last-user")
    one, two = submit(storage, "one"), submit(storage, "two")
    store.keep(storage, "package/a", lambda: [b"a"], (), one)
    store.keep(storage, "package/a", lambda: [b"a"], (), two)
    store.keep(storage, "package/b", lambda: [b"b"], (), two)
    assert store.collect(storage, 0.0) == []
    delete(storage, *one)
    assert store.collect(storage, 0.0) == [f"uses/{one[1]}"]
    assert store.find(storage, "package/a") is not None
    delete(storage, *two)
    assert store.collect(storage, 0.0) == [f"uses/{two[1]}", "package/a", "package/b"]


def test_users_that_an_earlier_release_named_in_the_row_count() -> None:
    storage = MemoryStorage(name="earlier-users")
    user = submit(storage, "one")
    item = store.keep(storage, "package/a", lambda: [b"a"])
    row = row_of(storage, "package/a")
    users = {**row.metadata, "users": {user[1]: user[0]}}
    assert store.append(storage, msgspec.structs.replace(row, seq=2, metadata=users))
    assert store.collect(storage, 0.0) == []
    assert store.find(storage, "package/a") == item
    delete(storage, *user)
    assert store.collect(storage, 0.0) == ["package/a"]


def delete(storage: MemoryStorage, workflow_id: str, incarnation: str) -> None:
    assert storage.delete(workflow_id, incarnation, 1).value == "ok"
