"""What asks PostgreSQL for a page of the catalog: the query, put together of those in
``queries.sql``, and its parameters. Nothing here talks to a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WORKFLOWS
from ray_workflows.storage.queries import compose
from ray_workflows.storage.records import check_limit, decode_cursor

STATUSES = sorted(status.value for status in WORKFLOWS)


def compose_listing(queries: Mapping[str, str], query: CatalogQuery) -> tuple[str, dict[str, Any]]:
    """The query for a page and one row more, which shows whether there is a next page."""
    limit = check_limit(query.limit)
    submitted_at, workflow_id = decode_cursor(query.cursor, newest_first=query.newest_first)
    statuses = sorted({status.value for status in query.statuses})
    parameters = {
        "submitted_at": submitted_at,
        "workflow_id": workflow_id,
        "statuses": statuses or STATUSES,
        "holders": sorted(set(query.holders)),
        "limit": limit + 1,
    }
    places = "places_by_holder" if query.holders else "places_by_status" if statuses else "places"
    return compose(queries, "list_page", places, newest_first=query.newest_first), parameters
