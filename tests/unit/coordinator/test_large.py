"""What very large and very many workflows must not cost. Nothing runs here."""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._coordinator import holdings
from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.recovery import read_end, recover
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus
from tests.unit.coordinator.test_failover import Coordinator, World

CANCELED = WorkflowStatus.CANCELED


@pytest.fixture
def world() -> World:
    return World()


def test_who_holds_many_looks_after_them_less_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("a", "b", "c")
    world.pass_time(60.0)
    usual = world.storage.calls["list_catalog"]
    assert usual > 60
    monkeypatch.setattr(holdings, "ROWS_PER_SECOND", 0.1)
    world.pass_time(60.0)
    assert 2 <= world.storage.calls["list_catalog"] - usual <= 8
    # What another one leaves is found nevertheless.
    other = Coordinator(world, "other", auto_resume=False)
    answers: list[Any] = []
    other.loop.ask("a", msg.Cancel(), answers.append)
    world.pass_time(35.0)
    assert answers == [None]
    assert world.status("a") == (CANCELED, "owner")


def test_what_is_deleted_is_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("a")
    answers: list[Any] = []
    owner.loop.ask("a", msg.Cancel(), answers.append)
    owner.step()
    entries: list[Any] = []
    read = world.storage.read_journal

    def reading(incarnation: str, after: int = 0) -> Any:
        found = read(incarnation, after)
        entries.extend(found)
        return found

    monkeypatch.setattr(world.storage, "read_journal", reading, raising=False)
    Deletion(owner.loop, "a", "", answers.append).begin()
    owner.step()
    assert answers == [None, None]
    assert world.storage.read_catalog("a") is None
    assert not entries


def test_a_row_that_is_behind_its_journal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the row of an object store may be."""
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("a")
    behind = world.storage.read_catalog("a")
    owner.loop.ask("a", msg.Cancel(), lambda answer: None)
    owner.step()
    monkeypatch.setattr(world.storage, "read_catalog", lambda name: behind, raising=False)
    assert isinstance(behind, CatalogRow)
    whole, end = recover(world.storage, "a"), read_end(world.storage, "a")
    assert whole is not None
    assert end is not None
    assert (end.status, end.seq) == (CANCELED, whole.seq)
    assert end == whole.row
