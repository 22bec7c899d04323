"""Broken snapshots, registered beside the other mutations."""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._codec.journal import Chain
from ray_workflows._coordinator import activation as activation_module
from ray_workflows._coordinator import holdings as holdings_module
from ray_workflows._coordinator.activation import Activation
from ray_workflows._coordinator.recovery import More, Reading, recover
from ray_workflows._engine import snapshots as snapshots_module
from tests.simulation.mutations import breaks


@breaks("snapshot")
def snapshots_omit_a_field_of_tasks(patch: Any) -> None:
    original = snapshots_module.save_task

    def save_task(task: Any) -> Any:
        return msgspec.structs.replace(original(task), charged=0)

    patch.setattr(snapshots_module, "save_task", save_task)


@breaks("snapshot")
def snapshots_omit_a_field_of_the_lifecycle(patch: Any) -> None:
    original = snapshots_module.restore_lifecycle

    def restore_lifecycle(saved: Any) -> Any:
        lifecycle = original(saved)
        lifecycle.taken = {}
        return lifecycle

    patch.setattr(snapshots_module, "restore_lifecycle", restore_lifecycle)


@breaks("snapshot")
def snapshots_sort_the_tasks_that_wait(patch: Any) -> None:
    original = snapshots_module.save_tasks

    def save_tasks(state: Any) -> Any:
        saved = original(state)
        waits = {name: tuple(sorted(numbers)) for name, numbers in sorted(saved.waits.items())}
        return msgspec.structs.replace(saved, waits=waits)

    patch.setattr(snapshots_module, "save_tasks", save_tasks)


# -- reading -------------------------------------------------------------------------------


@breaks("unexpected", "one truth", "snapshot", "replay", "invariant", "stuck", "commit once")
def what_a_snapshot_has_is_applied_again(patch: Any) -> None:
    original = Reading.begin

    def begin(self: Reading, entry: Any, saved: Any) -> None:
        original(self, entry, saved)
        chain = Chain(self.state.workflow_id, self.state.incarnation, entry.seq - 1)
        self.fold(entry, chain.decode(entry)[:-1])

    patch.setattr(Reading, "begin", begin)


@breaks("snapshot", "unexpected", "one truth", "stuck")
def a_saved_lifecycle_is_taken_for_the_state(patch: Any) -> None:
    def recover_lifecycle(storage: Any, workflow_id: str, *, whole: bool = True) -> Any:
        found = recover(storage, workflow_id, whole=False)
        if found is not None:
            found.whole = True
        return found

    patch.setattr(activation_module, "recover", recover_lifecycle)
    patch.setattr(holdings_module, "recover", recover_lifecycle)


@breaks("unexpected", "one truth", "replay", "durable", "start")
def what_was_overtaken_is_kept(patch: Any) -> None:
    original = Activation.reload

    def reload(self: Any, workflow: Any, *, anew: bool = False) -> None:
        original(self, workflow)

    patch.setattr(Activation, "reload", reload)


@breaks("stuck", "unexpected", "one truth", "replies")
def what_others_appended_is_not_folded(patch: Any) -> None:
    def added_to(self: More, state: Any, unsaved: Any) -> Any:
        reading = Reading(self.history.row)
        reading.state, reading.unsaved = state, unsaved
        return reading.recovered(self.history)

    patch.setattr(More, "added_to", added_to)
