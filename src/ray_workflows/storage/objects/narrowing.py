"""Evaluates conditions of a query on the names of index entries, as far as names can tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_workflows._model.catalog import Condition, Operator, compares
from ray_workflows.storage.objects.index_keys import Entry, day, id_of, time_of


def may_match(entry: Entry, conditions: Iterable[Condition]) -> bool:
    """Whether all conditions may hold for an entry's row, as far as its name tells."""
    for condition in conditions:
        value: str | float | None = None
        if condition.column == "workflow_id":
            value = id_of(entry)
        elif condition.column == "submitted_at":
            value = time_of(entry.place)
        if value is not None and not compares(condition, value):
            return False
    return True


def days_within(days: Sequence[str], conditions: Iterable[Condition]) -> list[str]:
    """The days on which workflows that match all conditions may have been submitted."""
    found = list(days)
    for condition in conditions:
        if condition.column == "submitted_at" and condition.number is not None:
            at = day(condition.number)
            if condition.operator in (Operator.LESS, Operator.AT_MOST, Operator.IS):
                found = [name for name in found if name <= at]
            if condition.operator in (Operator.MORE, Operator.AT_LEAST, Operator.IS):
                found = [name for name in found if name >= at]
    return found
