"""Helpers that make records for storage tests, and run threads against each other.
No test is here, and nothing that a backend needs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ray_workflows._model.catalog import Append, CatalogQuery, CatalogRow, Holder, JournalEntry
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.parts import CommitOutcome, JournalStore

T = TypeVar("T")

OK, STALE = CommitOutcome.OK, CommitOutcome.STALE

#: A thread that runs for longer than this, in seconds, counts as hanging.
HANG_SECONDS = 60.0


def make_row(workflow_id: str, incarnation: str, seq: int, **fields: Any) -> CatalogRow:
    """A catalog row of a running workflow; ``fields`` replace its defaults."""
    fields = {"status": WorkflowStatus.RUNNING, "holder": "h1", "submitted_at": 1000.0, **fields}
    return CatalogRow(workflow_id=workflow_id, incarnation=incarnation, seq=seq, **fields)


def make_append(
    workflow_id: str,
    expected_seq: int,
    *,
    incarnation: str = "",
    commit_id: str = "",
    entry: bytes = b"",
    **fields: Any,
) -> Append:
    """An append with a fitting catalog row. The default incarnation is `incarnation_of` the id."""
    incarnation = incarnation or incarnation_of(workflow_id)
    seq = expected_seq + 1
    return Append(
        workflow_id=workflow_id,
        incarnation=incarnation,
        expected_seq=expected_seq,
        commit_id=commit_id or f"commit-{seq}",
        entry=entry or f"entry {seq}".encode(),
        catalog=make_row(workflow_id, incarnation, seq, **fields),
    )


def incarnation_of(workflow_id: str) -> str:
    """A name for the first incarnation of a workflow: the id in hex, because an incarnation may not
    have all characters that an id may have."""
    return "i-" + workflow_id.encode().hex()[-180:]


def fill(journals: JournalStore, workflow_id: str, entries: int = 1, **fields: Any) -> CatalogRow:
    """Create a workflow with this many journal entries. Returns its catalog row."""
    appends = [make_append(workflow_id, seq, **fields) for seq in range(entries)]
    assert journals.commit(appends) == [OK] * entries
    return appends[-1].catalog


def state(journals: JournalStore, workflow_id: str) -> tuple[CatalogRow | None, list[JournalEntry]]:
    """The row and the journal of a workflow, after a check that they fit each other."""
    row = journals.read_catalog(workflow_id)
    if row is None:
        return None, journals.read_journal(incarnation_of(workflow_id))
    journal = journals.read_journal(row.incarnation)
    assert [entry.seq for entry in journal] == list(range(1, row.seq + 1))
    return row, journal


def list_ids(journals: JournalStore, **query: Any) -> list[str]:
    """The ids of all rows of a query, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = journals.list_catalog(CatalogQuery(cursor=cursor, **query))
        assert len(page.rows) <= query.get("limit", 1000)
        found += [row.workflow_id for row in page.rows]
        if page.cursor is None:
            return found
        assert page.cursor != cursor, "the listing does not advance"
        cursor = page.cursor


def make_holder(holder_id: str, **fields: Any) -> Holder:
    """A holder; ``fields`` replace its defaults."""
    fields = {"coordinator": "c1", "host": "boot/ns", "pid": 17, "started_ticks": 4242, **fields}
    return Holder(holder_id=holder_id, **fields)


def in_threads(functions: Sequence[Callable[[], T]]) -> list[T]:
    """Run all functions at once, one thread each, and return what they returned.

    The first error raised in a thread is raised here.
    """
    barrier = threading.Barrier(len(functions))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(number: int, function: Callable[[], T]) -> None:
        try:
            barrier.wait(HANG_SECONDS)
            results[number] = function()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(number, function), daemon=True)
        for number, function in enumerate(functions)
    ]
    interval = sys.getswitchinterval()
    # So threads are switched nearly everywhere, and not only where one waits.
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_SECONDS)
            assert not thread.is_alive(), "a storage call hangs"
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(functions))]
