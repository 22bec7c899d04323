"""Composes catalog queries for SQLite. Nothing here talks to a database."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ray_workflows._model.catalog import CatalogQuery, Condition, Operator
from ray_workflows._model.status import WORKFLOWS
from ray_workflows.storage.listing import Listing, driving_tag, is_narrow
from ray_workflows.storage.sqlite.connection import QUERIES

#: If fewer rows match a condition, its index finds them; if more, a scan in the listing's order
#: finds a page sooner. (SQLite has no statistics here.)
MANY = 10_000

#: Counts the rows of a query, with these parameters.
Count = Callable[[str, dict[str, Any]], int]


def compose_listing(query: CatalogQuery, count: Count) -> tuple[str, dict[str, Any]]:
    """The query for a page and one row more, and its parameters."""
    listing, more = start(query)
    tag, others = driving_tag(query.conditions)
    wide = [each for each in query.conditions if is_wide(each)]
    if tag is not None:
        text = listing.page_by_tag(tag, others, *(more if query.statuses else more[1:]))
    elif query.statuses and not is_narrow(query.conditions):
        text = listing.page("places_by_status", query.conditions, *more[1:])
    elif wide and not is_narrow(query.conditions):
        few = any(count(*compose_probe(each)) < MANY for each in wide)
        places = "places_sorted" if few else "places_in_order"
        text = listing.page(places, query.conditions, *more)
    else:
        text = listing.page("places", query.conditions, *more)
    return text, listing.parameters


def is_wide(condition: Condition) -> bool:
    """Whether a condition may match many rows or few, so that counting in the index decides."""
    prefix = condition.operator is Operator.BEGINS and bool(condition.text)
    return prefix or condition.column == "ended_at"


def compose_probe(condition: Condition) -> tuple[str, dict[str, Any]]:
    """The query that counts the rows that match a condition, up to `MANY`."""
    listing, _ = start(CatalogQuery(conditions=(condition,)))
    listing.parameters["most"] = MANY
    text = listing.part("some_rows").replace("{condition}", listing.condition(condition))
    return text, listing.parameters


def compose_count(query: CatalogQuery) -> tuple[str, dict[str, Any]]:
    """The query that counts rows, and its parameters."""
    listing, more = start(query)
    return listing.count(*more), listing.parameters


def start(query: CatalogQuery) -> tuple[Listing, list[str]]:
    """The listing, and the names of its conditions on status and holder."""
    listing = Listing(QUERIES, query, lambda name: f":{name}")
    statuses = sorted({status.value for status in query.statuses or WORKFLOWS})
    listing.parameters["statuses"] = json.dumps(statuses)
    more = ["status_is_one" if query.statuses else "is_workflow"]
    if query.holders:
        listing.parameters["holders"] = json.dumps(query.holders)
        more.append("holder_is_one")
    return listing, more
