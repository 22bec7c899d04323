"""Broken snapshots, registered beside the other mutations."""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._engine import snapshots as snapshots_module
from tests.simulation.mutations import MUTATIONS, breaks

__all__ = ["MUTATIONS"]


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
