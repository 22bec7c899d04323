"""Verbs for many workflows are about those that were listed, and about no other that has the id of
one of them by then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_workflows._client import bulk
from ray_workflows._client.bulk import BulkResult, Verb
from ray_workflows._client.code_changes import CodeChanges
from ray_workflows._client.connection import Connection
from ray_workflows._client.environments import ResumeOptions
from ray_workflows._client.reader import Reader
from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.protocol import SENT
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.filters import parse_filter
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    SerializationError,
    WorkflowNotFoundError,
    WorkflowToResumeNotFoundError,
)
from tests.unit.coordinator.test_failover import PLAN, Coordinator, World

RUNNING, CANCELED = WorkflowStatus.RUNNING, WorkflowStatus.CANCELED


class Near(Connection):
    """A connection to a coordinator whose loop is in this process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.storage = coordinator.world.storage
        self.cluster = None
        self.names_incarnations = True
        self.near = coordinator
        self.lock = threading.Lock()

    def call(self, method: str, *args: Any) -> Any:
        answers: list[Any] = []
        loop = self.near.loop
        with self.lock:
            if method == "delete":
                Deletion(loop, *args, answers.append).begin()
            elif method == "signal":
                sent = SENT.decode(args[0])
                given = (sent.name, sent.signal_id, sent.value, sent.incarnation)
                loop.ask(sent.workflow_id, msg.Signal(*given), answers.append)
            else:
                message = {"cancel": msg.Cancel, "resume": msg.Resume}[method]
                loop.ask(args[0], message(*args[1:]), answers.append)
            self.near.world.pass_time(1.0)
        (answer,) = answers
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def near() -> Near:
    return Near(Coordinator(World(), "owner", auto_resume=False))


def submit(near: Near, workflow_id: str, incarnation: str, status: WorkflowStatus) -> None:
    """Let a workflow run, and cancel it if that is its status."""
    loop = near.near.loop
    answers: list[Any] = []
    loop.ask(workflow_id, msg.Submit(PLAN, {}, incarnation, incarnation), answers.append)
    near.near.world.pass_time(1.0)
    if status is CANCELED:
        near.ask("cancel", workflow_id, incarnation=incarnation)
    assert row_of(near, workflow_id).status is status


def row_of(near: Near, workflow_id: str) -> CatalogRow:
    row = near.storage.read_catalog(workflow_id)
    assert row is not None
    return row


def remove(near: Near, workflow_id: str) -> None:
    near.ask("cancel", workflow_id, incarnation="")
    near.ask("delete", workflow_id, incarnation="")


def resuming(near: Near) -> Verb:
    return bulk.resuming(near, True, ResumeOptions(), CodeChanges(near.storage))


#: The verbs, and the status of workflows to which they do something.
VERBS: dict[str, tuple[Callable[[Near], Verb], WorkflowStatus]] = {
    "cancel": (bulk.canceling, RUNNING),
    "delete": (bulk.deleting, CANCELED),
    "delete without a cluster": (lambda near: bulk.deleting(Reader(near.storage)), CANCELED),
    "signal": (lambda near: bulk.signaling(near, "go", 1, None), RUNNING),
    "resume": (resuming, CANCELED),
}


def done(
    near: Near, verb: Verb, meanwhile: Callable[[], None] = lambda: None
) -> dict[str, BulkResult]:
    """What becomes of all workflows. ``meanwhile``: done when they were listed."""

    def agree(targets: list[CatalogRow]) -> bool:
        meanwhile()
        return True

    results = bulk.do_many(near, parse_filter("id=*"), verb, agree)
    return {each.workflow_id: each for each in results}


@pytest.mark.parametrize("name", VERBS)
def test_one_that_was_deleted_and_made_again_is_left_alone(near: Near, name: str) -> None:
    make, status = VERBS[name]
    for workflow_id in ("v", "w"):
        submit(near, workflow_id, f"i-{workflow_id}", status)
    other = row_of(near, "v")

    def made_again() -> None:
        remove(near, "w")
        submit(near, "w", "i-2", status)

    results = done(near, make(near), made_again)
    error = results["w"].error
    assert isinstance(error, WorkflowNotFoundError)
    assert "'w'" in str(error) or "id=w" in str(error)
    assert "was deleted, and another one of this id was made since" in str(error)
    assert error.replaced
    assert isinstance(error, WorkflowToResumeNotFoundError) == (name == "resume")
    assert (row_of(near, "w").incarnation, row_of(near, "w").status) == ("i-2", status)
    before = row_of(near, "w")
    # It was done to the other one, and is done to this one when it is listed.
    assert results["v"].error is None
    assert near.storage.read_catalog("v") != other
    assert done(near, make(near))["w"].error is None
    assert near.storage.read_catalog("w") != before


def test_a_fork_is_of_the_workflow_that_was_listed(near: Near) -> None:
    submit(near, "w", "i-w", CANCELED)

    def made_again() -> None:
        remove(near, "w")
        submit(near, "w", "i-2", CANCELED)

    verb = bulk.forking(near, "f", ResumeOptions(), CodeChanges(near.storage))
    error = done(near, verb, made_again)["w"].error
    assert isinstance(error, WorkflowNotFoundError)
    assert error.replaced
    assert error.task_id is None


@pytest.mark.parametrize("name", VERBS)
def test_one_that_is_gone(near: Near, name: str) -> None:
    """It is deleted, as was wanted; nothing else can be done to it."""
    make, status = VERBS[name]
    submit(near, "w", "i-w", status)
    error = done(near, make(near), lambda: remove(near, "w"))["w"].error
    if name.startswith("delete"):
        assert error is None
    else:
        assert isinstance(error, WorkflowNotFoundError)
        assert not error.replaced
    assert near.storage.read_catalog("w") is None


def test_one_that_can_be_resumed_only_since_it_was_listed(near: Near) -> None:
    """What it needs is looked for all the same: it is told how it is to go on."""
    submit(near, "w", "i-w", RUNNING)
    changes = CodeChanges(near.storage)
    verb = bulk.resuming(near, True, ResumeOptions(task_options={"f": {"num_cpus": 2}}), changes)
    verb = verb._replace(usual=(RUNNING,))
    (result,) = done(near, verb, lambda: near.ask("cancel", "w", incarnation="i-w")).values()
    assert result.error is None
    resumed = near.near.loop.active["w"].state
    assert resumed.status is RUNNING
    assert resumed.ray_options == {"f": {"num_cpus": 2}}


def test_nobody_agrees(near: Near) -> None:
    submit(near, "w", "i-w", RUNNING)
    seen: list[str] = []

    def agree(targets: list[CatalogRow]) -> bool:
        seen.extend(row.workflow_id for row in targets)
        return False

    results = bulk.do_many(near, parse_filter("id=*"), bulk.canceling(near), agree)
    assert results == [BulkResult("w")]
    assert seen == ["w"]
    assert row_of(near, "w").status is RUNNING


def test_a_value_that_cant_be_stored_is_refused_before_anything_is_sent(near: Near) -> None:
    with pytest.raises(SerializationError, match="value of signal 'go'"):
        bulk.signaling(near, "go", (each for each in "ab"), None)
