"""The SQL files beside the modules of a database, as text by name.
SQL is reviewed there; nothing is composed here.
"""

from __future__ import annotations

import importlib.resources
import re


def read_sql(name: str) -> str:
    """The text of a file below ``storage``, such as ``sqlite/queries.sql``."""
    package = importlib.resources.files("ray_workflows")
    return package.joinpath("storage", *name.split("/")).read_text(encoding="utf-8")


def read_queries(name: str) -> dict[str, str]:
    """The statements of a file below ``storage``, by the names in its ``-- name:`` lines."""
    parts = re.split(r"^-- name: (\w+)\n", read_sql(name), flags=re.MULTILINE)
    return {query: text.strip() for query, text in zip(parts[1::2], parts[2::2], strict=True)}
