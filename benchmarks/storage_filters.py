"""The first page of very many workflows for each column of a filter, and how many they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from benchmarks.storage_pages import TARGET_SECONDS, fill, indexes
from benchmarks.storage_parts import Context, Part, judged, medians
from ray_workflows._model.catalog import TAGS, CatalogQuery, Condition, Operator
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.sqlite import SqliteStorage

ROUNDS = 9


def condition(column: str, operator: Operator, text: str = "", **more: Any) -> CatalogQuery:
    """The newest of those of which this holds."""
    found = Condition(column, operator, text, **more)
    return CatalogQuery(limit=100, newest_first=True, conditions=(found,))


#: One for each column of a filter: some find one row in a thousand, some nearly all, some none.
FILTERS = {
    "id=workflow-00500*": condition("workflow_id", Operator.BEGINS, "workflow-00500"),
    "id=workflow-*": condition("workflow_id", Operator.BEGINS, "workflow-"),
    "id=nobody*": condition("workflow_id", Operator.BEGINS, "nobody"),
    "kind=dag": condition("kind", Operator.IS, "dag"),
    "kind=actor": condition("kind", Operator.IS, "actor"),
    "name=rare": condition("name", Operator.IS, "rare"),
    "name=train*": condition("name", Operator.BEGINS, "train"),
    "name=nobody*": condition("name", Operator.BEGINS, "nobody"),
    "queue=gpu": condition("queue", Operator.IS, "gpu"),
    "parent=workflow-0000000": condition("parent", Operator.IS, "workflow-0000000"),
    "tag.team=vision": condition(TAGS, Operator.IS, "vision", tag="team"),
    "tag.team=v*": condition(TAGS, Operator.BEGINS, "v", tag="team"),
    "tag.rare=true": condition(TAGS, Operator.IS, "true", tag="rare"),
    "tag.round>5": condition(TAGS, Operator.MORE, "5", number=5.0, tag="round"),
    "submitted>(all)": condition("submitted_at", Operator.MORE, number=1.7e9 - 1.0),
    "submitted<(few)": condition("submitted_at", Operator.LESS, number=1.7e9 + 500.0),
    "ended>(all)": condition("ended_at", Operator.MORE, number=1.0),
    "ended<(few)": condition("ended_at", Operator.LESS, number=1.7e9 + 500.0),
    "ended<(none)": condition("ended_at", Operator.LESS, number=1.0),
}


def measure(context: Context) -> Iterator[Part]:
    count = context.options.workflows
    part = Part(
        f"First pages of {count:,} workflows, by a filter",
        ["filter", "SQLite", "counted", "PostgreSQL", "counted", "indexes (by EXPLAIN)"],
        before=(
            "The 100 newest that one word finds: of all, of one in a thousand (rare, few), of none "
            f"(nobody). Medians of {ROUNDS} rounds. Target: a page in less than 100 ms."
        ),
    )
    context.directory.joinpath("filters").mkdir()
    sqlite = SqliteStorage(context.directory / "filters")
    sqlite.open()
    cells: dict[str, list[str]] = {name: [name] for name in FILTERS}
    used: dict[str, list[str]] = {name: [] for name in FILTERS}
    with context.schema() as (postgres, bare):
        for storage in (sqlite, postgres):
            fill(storage, count)
            if isinstance(storage, PostgresStorage):
                bare.execute("ANALYZE catalog, catalog_tags, journal")
            pages = [partial(storage.list_catalog, query) for query in FILTERS.values()]
            all_of = [msgspec.structs.replace(query, limit=1) for query in FILTERS.values()]
            counts = [partial(storage.count_catalog, query) for query in all_of]
            for name, took, counted in zip(
                FILTERS, medians(pages, ROUNDS), medians(counts, 3), strict=True
            ):
                cells[name].append(judged(took, took < TARGET_SECONDS, f"{1e3 * took:.1f} ms"))
                cells[name].append(f"{1e3 * counted:.1f} ms")
                used[name].append(indexes(storage, FILTERS[name]) or "by key")
    sqlite.close()
    part.rows = [[*cells[name], "; ".join(used[name])] for name in FILTERS]
    yield part
