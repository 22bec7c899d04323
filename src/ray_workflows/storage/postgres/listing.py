"""Composes catalog queries for PostgreSQL. Nothing here talks to a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WORKFLOWS
from ray_workflows.storage.listing import Listing, driving_tag, is_narrow


def compose_listing(queries: Mapping[str, str], query: CatalogQuery) -> tuple[str, dict[str, Any]]:
    """The query for a page and one row more, and its parameters."""
    listing, more = start(queries, query)
    tag, others = driving_tag(query.conditions)
    if query.holders:
        text = listing.page("places_by_holder", query.conditions)
    elif tag is not None:
        text = listing.page_by_tag(tag, others, *(more if query.statuses else more[1:]))
    elif query.statuses and not is_narrow(query.conditions):
        text = listing.page("places_by_status", query.conditions)
    else:
        text = listing.page("places", query.conditions, *more)
    return text, listing.parameters


def compose_count(queries: Mapping[str, str], query: CatalogQuery) -> tuple[str, dict[str, Any]]:
    """The query that counts rows, and its parameters."""
    listing, more = start(queries, query)
    return listing.count(*more), listing.parameters


def start(queries: Mapping[str, str], query: CatalogQuery) -> tuple[Listing, list[str]]:
    """The listing, and the names of its conditions on status and holder."""
    listing = Listing(queries, query, lambda name: f"%({name})s")
    statuses = sorted({status.value for status in query.statuses or WORKFLOWS})
    listing.parameters["statuses"] = statuses
    more = ["status_is_one" if query.statuses else "is_workflow"]
    if query.holders:
        listing.parameters["holders"] = sorted(set(query.holders))
        more.append("holder_is_one")
    return listing, more
