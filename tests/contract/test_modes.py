"""What a storage writes on this machine, nobody else can read, whatever the umask is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.combined import combine
from ray_workflows.storage.objects import SharedStorage
from ray_workflows.testing.builders import OK, fill, incarnation_of, make_append, make_holder


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def make(kind: str, root: Path) -> Storage:
    if kind == "combined":
        return combine(SqliteStorage(root / "a" / "b"), SharedStorage(root / "c" / "d"))
    return {"sqlite": SqliteStorage, "shared": SharedStorage}[kind](root / "a" / "b")


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "shared", "combined"])
def test_nobody_else_can_read_it(tmp_path: Path, umask: int, kind: str, there: bool) -> None:
    """``there``: the directory is one that everybody can read."""
    if there:
        for name in ("a/b", "c/d"):
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name).chmod(0o755)
    given = set(tmp_path.rglob("*"))
    storage = make(kind, tmp_path)
    storage.open()
    fill(storage, "w", 3)
    for size in (10, 100_000, 9_000_000):
        storage.write_blob(incarnation_of("w"), f"k{size}", [b"x" * size])
    storage.renew_holder(make_holder("h1"), 15.0)
    assert storage.commit([make_append("w", 3)]) == [OK]
    made = set(tmp_path.rglob("*")) - given
    # Also the log of the database, which is there while it is open.
    assert kind == "shared" or any(path.name.endswith("-wal") for path in made)
    open_to_others = {path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077}
    assert open_to_others == set()
    storage.close()
