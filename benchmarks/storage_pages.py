"""The first page of very many workflows, and the index that it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.storage_parts import Context, Part, judged, medians
from ray_workflows._model.catalog import CatalogQuery, CatalogRow, Tag
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.base import Storage
from ray_workflows.storage.objects.index_keys import entry_key
from ray_workflows.storage.objects.records import new_nonce
from ray_workflows.storage.objects.storage import PutOnceStorage
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres.listing import compose_listing as postgres_listing
from ray_workflows.storage.sqlite import SqliteStorage
from ray_workflows.storage.sqlite.listing import compose_listing as sqlite_listing
from ray_workflows.testing.builders import OK, make_append, make_holder, make_row

TARGET_SECONDS = 0.1

FAILED, RUNNING = WorkflowStatus.FAILED, WorkflowStatus.RUNNING

QUERIES = {
    "100 oldest": CatalogQuery(limit=100),
    "100 newest": CatalogQuery(limit=100, newest_first=True),
    "100 FAILED": CatalogQuery(limit=100, statuses=(FAILED,)),
    "100 newest RUNNING or FAILED": CatalogQuery(
        limit=100, statuses=(RUNNING, FAILED), newest_first=True
    ),
    "100 newest RUNNING of a holder": CatalogQuery(
        limit=100, statuses=(RUNNING,), holders=("h1",), newest_first=True
    ),
}


def status_of(number: int) -> WorkflowStatus:
    """One in a hundred has failed, one in a thousand runs."""
    if number % 1000 == 1:
        return RUNNING
    return FAILED if number % 100 == 0 else WorkflowStatus.SUCCESSFUL


def tags_of(number: int) -> dict[str, Tag]:
    """Each of half of them has two."""
    if number % 2:
        return {"rare": True} if number % 1000 == 15 else {}
    return {"team": "vision" if number % 4 else "audio", "round": number % 10}


def row_of(number: int) -> CatalogRow:
    """10 s after the one before, so that a day has 8,640."""
    return make_row(
        f"workflow-{number:07d}",
        f"i-{number}",
        1,
        status=status_of(number),
        submitted_at=1.7e9 + number * 10.0,
        ended_at=None if status_of(number) is RUNNING else 1.7e9 + number * 10.0 + 5.0,
        kind="actor" if number % 1000 == 7 else "dag",
        name="rare" if number % 1000 == 9 else f"train_{number % 20}",
        queue="gpu" if number % 1000 == 11 else "",
        parent="workflow-0000000" if number % 1000 == 13 else "",
        tags=tags_of(number),
    )


def fill(storage: Storage, count: int) -> None:
    """Create them. In object stores only their index entries, as commits leave them."""
    if isinstance(storage, PutOnceStorage):
        storage.renew_holder(make_holder("h1"), 36000.0)

        def put(number: int) -> None:
            row = row_of(number)
            storage.journals.home.index.put(entry_key(row, new_nonce()), row)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(put, range(count)))
        return
    for start in range(0, count, 5000):
        rows = [row_of(number) for number in range(start, min(start + 5000, count))]
        group = [
            make_append(
                row.workflow_id,
                0,
                incarnation=row.incarnation,
                **{name: getattr(row, name) for name in row.__struct_fields__[3:]},
            )
            for row in rows
        ]
        assert storage.commit(group) == [OK] * len(group)


def indexes(storage: Storage, query: CatalogQuery) -> str:
    """Which indexes the database says that it uses; a scan of a table would be named too."""
    if isinstance(storage, SqliteStorage):
        return sqlite_indexes(storage, query)
    if isinstance(storage, PostgresStorage):
        return postgres_indexes(storage, query)
    return "names of objects"


def named(lines: Sequence[str], table_scan: str) -> str:
    """The indexes that a plan names, and what it says of scans of the whole catalog."""
    words = [word for line in lines for word in line.split() if word.startswith("catalog_by")]
    scans = [line.strip() for line in lines if re.search(table_scan, line)]
    return ", ".join(dict.fromkeys(words + scans))


def sqlite_indexes(storage: SqliteStorage, query: CatalogQuery) -> str:
    text, parameters = sqlite_listing(query, storage.journals.count)
    with storage.journals.home.reader.use() as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters)
        return named([row[3] for row in plan], r"SCAN (catalog|page|found)(?!.*INDEX)")


def postgres_indexes(storage: PostgresStorage, query: CatalogQuery) -> str:
    text, parameters = postgres_listing(storage.journals.home.queries, query)
    with storage.journals.home.pool.use() as connection:
        rows = connection.execute(f"EXPLAIN {text}", parameters).fetchall()
    return named([row[0] for row in rows], "Seq Scan on catalog")


def measure(context: Context) -> Iterator[Part]:
    count = context.options.workflows
    part = Part(
        f"First pages of {count:,} workflows",
        ["storage", *QUERIES, "index (by EXPLAIN)"],
        before=(
            "1 % failed, 0.1 % run, 8,640 were submitted a day. Target on SQLite and PostgreSQL: "
            "under 100 ms. Shared directories and S3 have no target; from an index of names in "
            "the store, each row is one more request."
        ),
    )
    with context.storages() as found:
        for name, storage in found.items():
            fill(storage, count)
            if isinstance(storage, PostgresStorage):
                with storage.journals.home.pool.use() as connection:
                    connection.execute(f"ANALYZE {storage.journals.home.target.schema}.catalog")
            times = medians(
                [partial(storage.list_catalog, query) for query in QUERIES.values()],
                5 if isinstance(storage, PutOnceStorage) else 20,
            )
            limited = not isinstance(storage, PutOnceStorage)
            used = dict.fromkeys(indexes(storage, query) for query in QUERIES.values())
            part.rows.append(
                [
                    name,
                    *(
                        judged(t, not limited or t < TARGET_SECONDS, f"{1e3 * t:.1f} ms")
                        for t in times
                    ),
                    ", ".join(dict.fromkeys(", ".join(used).split(", "))),
                ]
            )
            print(*part.rows[-1], flush=True)
    yield part
