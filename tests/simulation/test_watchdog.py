"""The watchdog: whatever runs has something in flight, a timer, or a reason that can be named. In
each world it sees what would hang, at once, and says what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_workflows._coordinator.admission import Admission
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.starting import Starter
from tests.simulation.runner import WORLDS, run_seed
from tests.simulation.violations import Violation

#: A hang has to be seen within this many seeds.
MAX_SEEDS = 60

Break = Callable[[pytest.MonkeyPatch], None]


def an_attempt_is_not_given_to_the_executor(patch: pytest.MonkeyPatch) -> None:
    original = Starter.start_attempt

    def start_attempt(self: Starter, workflow: Any, command: Any) -> None:
        if command.task != 1:
            original(self, workflow, command)

    patch.setattr(Starter, "start_attempt", start_attempt)


def an_alarm_is_not_set(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Starter, "set_alarm", lambda self, workflow, at: None)


def commands_are_kept(patch: pytest.MonkeyPatch) -> None:
    def add(self: Starter, workflow: Any, commands: Any) -> None:
        workflow.commands.extend(commands)

    patch.setattr(Starter, "add", add)


def reports_are_kept(patch: pytest.MonkeyPatch) -> None:
    def report(self: Loop, incarnation: str, reports: Any) -> None:
        workflow = self.active.by_incarnation.get(incarnation)
        if workflow is not None:
            workflow.inbox.extend(reports)

    patch.setattr(Loop, "report", report)


def what_waits_for_room_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def change(self: Admission, workflow_id: str, before: Any, after: Any) -> None:
        original(self, workflow_id, before, after)
        self.waiting.clear()

    original = Admission.change
    patch.setattr(Admission, "change", change)


BROKEN: dict[str, Break] = {
    "nothing comes of task 1": an_attempt_is_not_given_to_the_executor,
    "nothing wakes it": an_alarm_is_not_set,
    "nothing starts its commands": commands_are_kept,
    "nothing decides on what came in": reports_are_kept,
    "nothing admits it": what_waits_for_room_is_forgotten,
}


@pytest.mark.parametrize("why", BROKEN)
@pytest.mark.parametrize("world", WORLDS)
def test_what_would_hang_is_seen(world: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[why](monkeypatch)
    with pytest.raises(Violation, match=why) as caught:
        run_some(world)
    assert caught.value.kind == "idle"


def run_some(world: str) -> None:
    """Live through seeds until a promise is broken."""
    for seed in range(MAX_SEEDS):
        run_seed(seed, crowded=True, world=world)
