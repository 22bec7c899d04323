"""A deletion that Ray asks for twice, because its coordinator died before it answered."""

from __future__ import annotations

import pytest

import ray_workflows as workflow
from ray_workflows._client import workflows
from ray_workflows.exceptions import WorkflowNotFoundError
from ray_workflows.storage import MemoryStorage
from ray_workflows.testing.builders import fill, incarnation_of


class Asked:
    """A connection to a coordinator that is asked for a deletion the second time."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()

    def call(self, method: str, workflow_id: str) -> None:
        assert method == "delete"
        self.storage.delete(workflow_id, incarnation_of(workflow_id), 1)
        raise WorkflowNotFoundError(workflow_id)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(workflows, "connect", lambda: asked)
    return asked


def test_a_deletion_that_was_done_is_no_error(asked: Asked) -> None:
    fill(asked.storage, "w")
    workflow.delete("w")
    assert asked.storage.read_catalog("w") is None


def test_what_was_never_there_is_not_found(asked: Asked) -> None:
    with pytest.raises(WorkflowNotFoundError):
        workflow.delete("w")
