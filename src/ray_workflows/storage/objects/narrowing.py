"""What the names of objects say about the conditions of a query; the rest is in their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_workflows._model.catalog import Condition, Operator, compares
from ray_workflows.storage.objects.index_keys import Entry, day, id_of, time_of


def may_match(entry: Entry, conditions: Iterable[Condition]) -> bool:
    """Whether the name of an entry leaves open that all conditions hold of its row."""
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
    """The days on which a workflow may have been submitted of which all conditions hold."""
    found = list(days)
    for condition in conditions:
        if condition.column == "submitted_at" and condition.number is not None:
            at = day(condition.number)
            if condition.operator in (Operator.LESS, Operator.AT_MOST, Operator.IS):
                found = [name for name in found if name <= at]
            if condition.operator in (Operator.MORE, Operator.AT_LEAST, Operator.IS):
                found = [name for name in found if name >= at]
    return found
