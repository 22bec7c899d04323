"""Builds the SQL for a query of the catalog from the parts in ``queries.sql``. This module itself
contains no SQL but names of columns, and operators.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_workflows._model.catalog import TAGS, CatalogQuery, Condition, Operator
from ray_workflows.storage.validation import Position, check_limit, decode_cursor

#: The kind of nearly all workflows: its rows are not in the index of kinds.
COMMON_KIND = "dag"


class Listing:
    """A query, its parameters, and the SQL for a database.

    Args:
        queries: those of the database, by name.
        query: the conditions and the page.
        mark: makes the placeholder of a named parameter.
    """

    def __init__(
        self, queries: Mapping[str, str], query: CatalogQuery, mark: Callable[[str], str]
    ) -> None:
        self.queries = queries
        self.query = query
        self.mark = mark
        submitted_at, workflow_id = first_place(query)
        self.parameters: dict[str, Any] = {
            "submitted_at": submitted_at,
            "workflow_id": workflow_id,
            # One row more than the limit shows whether there is a next page.
            "limit": check_limit(query.limit) + 1,
        }

    def page(self, places: str, conditions: Sequence[Condition], *more: str) -> str:
        """The query for a page. ``places`` names the query that finds its places, ``more`` names
        queries that are further conditions."""
        return self.ordered(
            self.queries["list_page"].replace("{places}", self.places(places, conditions, *more))
        )

    def places(self, name: str, conditions: Sequence[Condition], *more: str) -> str:
        """The query of that name, with conditions."""
        return self.part(name).replace("{conditions}", self.all_of(conditions, more))

    def page_by_tag(self, tag: Condition, conditions: Sequence[Condition], *more: str) -> str:
        """The query for a page that is found by a tag. Only workflows have tags."""
        others = self.all_of(conditions, more)
        if others:
            others = "\n    " + self.part("tagged_rows").replace("{conditions}", others)
        arms = [
            self.part("places_by_tag").replace("{tagged}", each).replace("{conditions}", others)
            for each in self.tagged(tag)
        ]
        places = arms[0]
        if len(arms) == 2:
            places = self.part("places_of_two")
            places = places.replace("{first}", arms[0]).replace("{second}", arms[1])
        return self.ordered(self.queries["list_page"].replace("{places}", places))

    def count(self, *more: str) -> str:
        """The query that counts the rows."""
        return self.places("count_page", self.query.conditions, *more)

    def all_of(self, conditions: Sequence[Condition], more: Sequence[str]) -> str:
        """The SQL that adds these conditions to a query."""
        texts = [*map(self.part, more), *map(self.condition, conditions)]
        return "".join(f"\n    AND ({text})" for text in texts)

    def condition(self, condition: Condition) -> str:
        """A condition in SQL."""
        if condition.column == TAGS:
            either = " OR ".join(f"({each})" for each in self.tagged(condition))
            return self.part("tag_of_row").replace("{tagged}", either)
        name = "compares" if condition.number is not None else NAMES[condition.operator]
        if condition.column == "kind" and condition.operator is Operator.IS:
            name = "text_is_common" if condition.text == COMMON_KIND else "kind_is"
        return self.filled(name, condition).replace("{column}", condition.column)

    def tagged(self, condition: Condition) -> list[str]:
        """The alternatives for a row of tags: one, or two of which either may hold."""
        if condition.operator is Operator.THERE:
            return [self.filled("tag_there", condition)]
        found = []
        if condition.operator in (Operator.IS, Operator.BEGINS):
            found.append(self.filled(f"tag_{NAMES[condition.operator]}", condition))
        if condition.number is not None and condition.operator is not Operator.BEGINS:
            found.append(self.filled("tag_compares", condition))
        return found

    def filled(self, name: str, condition: Condition) -> str:
        """A condition from ``queries.sql``, with placeholders for its values."""
        text = self.part(name).replace("{operator}", condition.operator.value)
        values = {
            "tag": condition.tag,
            "text": condition.text,
            "end": end_of_prefix(condition.text),
            "number": condition.number,
        }
        for slot, value in values.items():
            if f"{{{slot}}}" in text:
                parameter = f"{slot}_{len(self.parameters)}"
                self.parameters[parameter] = value
                text = text.replace(f"{{{slot}}}", self.mark(parameter))
        return text

    def part(self, name: str) -> str:
        """A query to be put into another one."""
        return self.queries[name].rstrip(";")

    def ordered(self, text: str) -> str:
        """A query with the keywords and operators of the listing's order."""
        oldest, newest = ("ASC", ">", "<="), ("DESC", "<", ">=")
        order, beyond, until = newest if self.query.newest_first else oldest
        return text.replace("{order}", order).replace("{beyond}", beyond).replace("{until}", until)


def driving_tag(
    conditions: Sequence[Condition],
) -> tuple[Condition | None, list[Condition]]:
    """The tag by which to find the rows, if that is better than the other columns, and the
    remaining conditions."""
    tags = [each for each in conditions if each.column == TAGS]
    tags.sort(key=lambda each: each.operator is not Operator.IS)
    if not tags or any(each.operator is Operator.IS for each in conditions if each not in tags):
        return None, [*conditions]
    return tags[0], [each for each in conditions if each is not tags[0]]


def is_narrow(conditions: Sequence[Condition]) -> bool:
    """Whether few rows are likely to match, whatever their status."""
    return any(each.operator is Operator.IS for each in conditions)


def first_place(query: CatalogQuery) -> Position:
    """The place after which a listing begins: the cursor, or a bound by time of submission."""
    place = decode_cursor(query.cursor, newest_first=query.newest_first)
    bounds = BEFORE if query.newest_first else BEHIND
    for each in query.conditions:
        if each.column == "submitted_at" and each.number is not None and each.operator in bounds:
            whole = each.operator in (Operator.AT_MOST, Operator.MORE)
            # All ids with that time are on the same side.
            at = math.nextafter(each.number, math.inf) if whole else each.number
            place = min(place, (at, "")) if query.newest_first else max(place, (at, ""))
    return place


BEFORE = (Operator.LESS, Operator.AT_MOST)
BEHIND = (Operator.MORE, Operator.AT_LEAST)

#: The queries that are conditions of a text.
NAMES = {
    Operator.IS: "text_is",
    Operator.BEGINS: "text_begins",
    Operator.THERE: "text_there",
}


def end_of_prefix(prefix: str) -> str:
    """The first text, by code points, after all texts with a prefix."""
    head = prefix.rstrip(chr(sys.maxunicode))
    if not head:
        return chr(sys.maxunicode) * 1000
    last = ord(head[-1]) + 1
    # UTF-8 has no surrogates.
    return head[:-1] + chr(0xE000 if 0xD800 <= last < 0xE000 else last)
