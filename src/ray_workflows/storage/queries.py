"""The SQL files beside the modules of a database, as text by name.
SQL is reviewed there: what is put together here is whole queries of those files.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping


def read_sql(name: str) -> str:
    """The text of a file below ``storage``, such as ``sqlite/queries.sql``."""
    package = importlib.resources.files("ray_workflows")
    return package.joinpath("storage", *name.split("/")).read_text(encoding="utf-8")


def read_queries(name: str) -> dict[str, str]:
    """The statements of a file below ``storage``, by the names in its ``-- name:`` lines."""
    parts = re.split(r"^-- name: (\w+)\n", read_sql(name), flags=re.MULTILINE)
    return {query: text.strip() for query, text in zip(parts[1::2], parts[2::2], strict=True)}


def compose(queries: Mapping[str, str], name: str, places: str, *, newest_first: bool) -> str:
    """The query that lists rows, of two: ``name`` reads the rows whose places ``places`` finds.

    For ``{order}``, ``{beyond}`` and ``{until}`` they have what the order of the listing needs.
    """
    text = queries[name].replace("{places}", queries[places].rstrip(";"))
    order, beyond, until = ("DESC", "<", ">=") if newest_first else ("ASC", ">", "<=")
    return text.replace("{order}", order).replace("{beyond}", beyond).replace("{until}", until)
