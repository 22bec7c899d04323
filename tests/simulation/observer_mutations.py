"""Observers that see what is not so, or are not harmless, registered beside the other mutations."""

from __future__ import annotations

from typing import Any

from ray_workflows._coordinator import loop as loop_module
from ray_workflows._coordinator.commits import Commits
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.observers import Feed, Observers
from ray_workflows._coordinator.quarantine import Quarantine
from tests.simulation.mutations import breaks


@breaks("observers")
def observers_see_what_is_not_durable(patch: Any) -> None:
    original = Loop.pending

    def pending(self: Any, *arguments: Any) -> Any:
        decided = original(self, *arguments)
        self.observers.committed(decided.commit)
        return decided

    patch.setattr(Loop, "pending", pending)


@breaks("observers")
def what_was_found_to_be_durable_is_not_observed(patch: Any) -> None:
    original = Commits.settle

    def settle(self: Any, workflow: Any, refusal: Any = None) -> None:
        workflow.pending.commit = None
        original(self, workflow, refusal)

    patch.setattr(Commits, "settle", settle)


@breaks("observers", until=30.0, read_fails=0.1, corrupt=0.3, crash_after_step=0.02)
def what_ends_a_coordinators_part_is_not_observed(patch: Any) -> None:
    original = Quarantine.release

    def release(self: Any, workflow: Any, *arguments: Any) -> None:
        original(self, workflow, *arguments)
        workflow.pending.commit = None

    patch.setattr(Quarantine, "release", release)


@breaks("observers")
def what_is_dropped_is_not_counted(patch: Any) -> None:
    original = Feed.put

    def put(self: Any, commit: Any) -> None:
        original(self, commit)
        self.missed = 0

    patch.setattr(Feed, "put", put)


@breaks("observers")
def commits_are_handed_over_in_the_wrong_order(patch: Any) -> None:
    original = Feed.hand_over

    def hand_over(self: Any) -> None:
        self.waiting.reverse()
        original(self)

    patch.setattr(Feed, "hand_over", hand_over)


@breaks("observers")
def tasks_are_named_when_they_may_be_gone(patch: Any) -> None:
    original_evolve, original_name = loop_module.evolve, loop_module.name_tasks
    late: list[Any] = []

    def evolve(state: Any, event: Any) -> Any:
        deltas = original_evolve(state, event)
        for arguments in late:
            original_name(*arguments)
        late.clear()
        return deltas

    patch.setattr(loop_module, "name_tasks", lambda *arguments: late.append(arguments))
    patch.setattr(loop_module, "evolve", evolve)


@breaks("unexpected")
def observers_are_called_by_the_loop(patch: Any) -> None:
    def committed(self: Any, commit: Any) -> None:
        for feed in self.feeds:
            try:
                feed.observer.on_commits((commit,), 0)
            except SystemExit as error:
                raise RuntimeError("an observer has raised") from error

    patch.setattr(Observers, "committed", committed)
