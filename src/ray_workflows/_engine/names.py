"""Unique task ids: ``name``, ``name_1``, ``name_2``, in the order in which tasks are created.

Memory grows with the number of distinct names, not of tasks.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping


def is_taken(counters: Mapping[str, int], base: str) -> bool:
    """Whether an unused base equals an id that may have been generated from another base."""
    stem, separator, suffix = base.rpartition("_")
    # Only canonical numbers are ever generated: "a_01" can't collide.
    if not separator or not (suffix.isascii() and suffix.isdigit()) or suffix[0] == "0":
        return False
    return counters.get(stem, 0) > int(suffix)


def assign_task_ids(counters: dict[str, int], bases: Iterable[str]) -> tuple[str, ...]:
    """Ids for new tasks, given the next suffix for each base name. Changes nothing."""
    fresh: dict[str, int] = {}
    view = ChainMap(fresh, counters)
    assigned: list[str] = []
    for base in bases:
        suffix = fresh.get(base, 0) or counters.get(base, 0)
        if suffix == 0 and is_taken(view, base):
            suffix = 1
        task_id = base
        if suffix:
            # Two lookups, because a chained view would take ten times as long.
            while (task_id := f"{base}_{suffix}") in fresh or task_id in counters:
                suffix += 1
        assigned.append(task_id)
        fresh[base] = suffix + 1
    return tuple(assigned)


def register_task_ids(
    counters: dict[str, int], bases: Iterable[str], task_ids: Iterable[str]
) -> None:
    """Update the counters for ids that `assign_task_ids` made, read back from the journal."""
    # For each base the last id counts.
    for base, task_id in dict(zip(bases, task_ids, strict=True)).items():
        counters[base] = 1 if task_id == base else int(task_id[len(base) + 1 :]) + 1
