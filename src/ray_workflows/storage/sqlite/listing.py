"""What asks SQLite for a page of the catalog: the query, put together of those in ``queries.sql``,
and its parameters. Nothing here talks to a database.
"""

from __future__ import annotations

import json
from typing import Any

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows.storage.queries import compose
from ray_workflows.storage.records import check_limit, decode_cursor
from ray_workflows.storage.sqlite.connection import QUERIES


def compose_listing(query: CatalogQuery) -> tuple[str, dict[str, Any]]:
    """The query for a page and one row more, which shows whether there is a next page."""
    limit = check_limit(query.limit)
    submitted_at, workflow_id = decode_cursor(query.cursor, newest_first=query.newest_first)
    parameters = {
        "submitted_at": submitted_at,
        "workflow_id": workflow_id,
        "holders": json.dumps(query.holders) if query.holders else None,
        "limit": limit + 1,
    }
    places = "places"
    if query.statuses:
        places = "places_by_status"
        parameters["statuses"] = json.dumps(sorted({s.value for s in query.statuses}))
    text = compose(QUERIES, "list_page", places, newest_first=query.newest_first)
    return text, parameters
