"""Deleting workflows that tasks have started, and those that have started them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ray_workflows._client import removal
from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import Reader
from ray_workflows._coordinator.deletion import AGAIN_SECONDS, LOOKS, Deletion
from ray_workflows._coordinator.liveness import LEASE_SECONDS
from ray_workflows._model import messages as msg
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.exceptions import WorkflowNotFoundError, WorkflowStillActiveError
from tests.unit.coordinator.test_deliveries import Senders
from tests.unit.coordinator.test_failover import Coordinator

NONE, RUNNING = WorkflowStatus.NONE, WorkflowStatus.RUNNING
SUCCESSFUL = WorkflowStatus.SUCCESSFUL


def delete(coordinator: Coordinator, workflow_id: str) -> list[Any]:
    """Ask for a deletion; what is answered."""
    answers: list[Any] = []
    Deletion(coordinator.loop, workflow_id, "", answers.append).begin()
    coordinator.step()
    return answers


@pytest.fixture
def senders() -> Senders:
    """A child has ended, and its parent has not heard that it was there."""
    senders = Senders()
    senders.deliveries.report = lambda *arguments: None  # type: ignore[method-assign]
    senders.send("parent", "child")
    report = msg.AttemptReturned(0, 0, 1, 0.0, 1.0, value=Value(b"v"))
    senders.coordinator.loop.report("of-parent-0", [report])
    senders.coordinator.step()
    assert [senders.status(each) for each in ("parent", "child")] == [RUNNING, SUCCESSFUL]
    return senders


def hear(senders: Senders) -> None:
    """The message is answered again, and the parent hears of it."""
    loop = senders.coordinator.loop
    senders.deliveries.report = loop.report  # type: ignore[method-assign]
    loop.activation.reload(loop.active["parent"])
    senders.coordinator.step()


def test_a_child_is_deleted_when_its_parent_knows_of_it(senders: Senders) -> None:
    answers = delete(senders.coordinator, "child")
    senders.world.pass_time(1.0)
    assert answers == []
    hear(senders)
    senders.world.pass_time(2 * AGAIN_SECONDS)
    assert answers == [None]
    assert [senders.status(each) for each in ("parent", "child")] == [SUCCESSFUL, NONE]


def test_a_child_whose_parent_never_hears_of_it_is_not_deleted(senders: Senders) -> None:
    """It would begin again when somebody goes on with the parent."""
    answers = delete(senders.coordinator, "child")
    senders.world.pass_time(2 * AGAIN_SECONDS * LOOKS)
    (error,) = answers
    assert isinstance(error, WorkflowStillActiveError)
    assert error.parent == "parent"
    assert "resume('parent')" in str(error)
    reader = Reader(senders.storage)
    with pytest.raises(WorkflowStillActiveError, match="was started by 'parent'"):
        removal.delete(reader, read_row(senders.storage, "child"))
    assert removal.prune(reader, 0.0, None, 0) == []
    assert senders.status("child") is SUCCESSFUL
    hear(senders)
    assert removal.prune(reader, 0.0, [SUCCESSFUL], 0) == ["child", "parent"]


@pytest.mark.parametrize("what", ["deleted", "damaged"])
def test_a_child_whose_parent_starts_nothing_any_more_is_deleted(
    senders: Senders, what: str
) -> None:
    if what == "deleted":
        row = senders.storage.read_catalog("parent")
        assert row is not None
        senders.storage.delete("parent", "i-parent", row.seq)
    else:
        journal = senders.storage.journals.home.journals["i-parent"]
        journal[0] = msgspec.structs.replace(journal[0], entry=b"damaged")
    assert delete(senders.coordinator, "child") == [None]


def test_a_damaged_child_is_deleted_and_begins_anew(senders: Senders) -> None:
    """Its parent can't end before: the child can't say that it is there."""
    journal = senders.storage.journals.home.journals["of-parent-0"]
    journal[0] = msgspec.structs.replace(journal[0], entry=b"damaged")
    assert delete(senders.coordinator, "child") == [None]
    hear(senders)
    assert [senders.status(each) for each in ("parent", "child")] == [SUCCESSFUL, RUNNING]


def test_what_an_interrupted_workflow_has_not_handed_over_is_deleted_with_it() -> None:
    senders = Senders()
    senders.deliveries.ask = lambda *arguments: None  # type: ignore[method-assign]
    senders.send("parent", "child")
    (error,) = delete(senders.coordinator, "parent")
    assert isinstance(error, WorkflowStillActiveError)
    senders.coordinator.die()
    other = Coordinator(senders.world, "other", auto_resume=False)
    senders.world.pass_time(LEASE_SECONDS + 1.0)
    assert delete(other, "parent") == [None]
    senders.world.pass_time(60.0)
    assert senders.status("child") is NONE
    (error,) = delete(other, "child")
    assert isinstance(error, WorkflowNotFoundError)
