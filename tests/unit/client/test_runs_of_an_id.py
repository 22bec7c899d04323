"""What a driver asks of a coordinator names the run that it is about, and not only its id.

That coordinators heed it is in `test_late_requests`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ray_workflows as workflow
from ray_workflows._client import workflows
from ray_workflows._client.connection import Connection
from ray_workflows._coordinator.protocol import SENT
from ray_workflows._model.answers import Accepted, Finished
from ray_workflows.exceptions import WorkflowNotFoundError
from ray_workflows.storage import MemoryStorage
from ray_workflows.testing.builders import fill, incarnation_of


class Asked(Connection):
    """A connection that keeps what the coordinator is asked for."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.cluster = None
        self.names_incarnations = True
        self.calls: list[tuple[Any, ...]] = []

    def call(self, method: str, *args: Any) -> None:
        self.calls.append((method, *args))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(workflows, "connect", lambda: asked)
    return asked


VERBS: dict[str, Callable[[], Any]] = {
    "cancel": lambda: workflow.cancel("w"),
    "delete": lambda: workflow.delete("w"),
    "signal": lambda: workflow.signal("w", "name", 1),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_request_names_the_run_that_it_is_about(asked: Asked, verb: str) -> None:
    fill(asked.storage, "w")
    VERBS[verb]()
    (call,) = asked.calls
    about = SENT.decode(call[1]).incarnation if verb == "signal" else call[-1]
    assert about == incarnation_of("w")


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_there_is_not_found(asked: Asked, verb: str) -> None:
    with pytest.raises(WorkflowNotFoundError):
        VERBS[verb]()
    assert not asked.calls


def test_a_coordinator_of_0_1_0_is_asked_as_it_understands(asked: Asked) -> None:
    asked.names_incarnations = False
    fill(asked.storage, "w")
    workflow.cancel("w")
    assert asked.calls == [("cancel", "w")]


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("answer", [Finished("another"), Accepted("another", created=True)])
def test_what_is_waited_for_is_not_another_run(
    asked: Asked, answer: Finished | Accepted, progress: bool
) -> None:
    """It was deleted between the coordinator's answer and the reading, and its id is used again."""
    fill(asked.storage, "w")
    with pytest.raises(WorkflowNotFoundError):
        workflows.awaited(asked, "w", answer, progress)
