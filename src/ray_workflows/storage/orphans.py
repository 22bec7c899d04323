"""Removes blobs of no workflow from a home that does not have the journals.
Uses only public methods of the parts.
"""

from __future__ import annotations

from ray_workflows._codec.journal import encode_entry
from ray_workflows._model.catalog import Append, CatalogQuery, CatalogRow
from ray_workflows._model.ids import RESERVED_PREFIX
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.parts import BlobStore, CommitOutcome, JournalStore

#: The blob that names the owner of the blobs: the URL of the home of the journals.
MARK_INCARNATION = "combined-storage"
MARK_KEY = "owner"

#: The holder of rows that stand for incarnations whose blobs are being swept.
SWEEPER = "sweep"


def sweep_blobs(
    journals: JournalStore, blobs: BlobStore, now: float, grace_seconds: float
) -> set[str]:
    """Remove old blobs that belong to no workflow. Returns their incarnations.

    Meanwhile a catalog row of its own reserves the incarnation: the conditional commit keeps a
    submission from using it.
    """
    swept = set()
    # Rows of interrupted sweeps; a canceled row is of a release before 0.2.0.
    statuses = (WorkflowStatus.NONE, WorkflowStatus.CANCELED)
    for row in journals.list_catalog(CatalogQuery(holders=(SWEEPER,), statuses=statuses)).rows:
        finish_sweep(journals, blobs, row.workflow_id, row.incarnation)
        swept.add(row.incarnation)
    for incarnation in blobs.old_blobs(grace_seconds):
        if incarnation == MARK_INCARNATION:
            continue
        if journals.commit([take(incarnation, now)]) == [CommitOutcome.OK]:
            finish_sweep(journals, blobs, sweep_id(incarnation), incarnation)
            swept.add(incarnation)
    return swept


def finish_sweep(
    journals: JournalStore, blobs: BlobStore, workflow_id: str, incarnation: str
) -> None:
    """Remove the blobs of a reserved incarnation, and then the row that reserves it."""
    blobs.delete_blobs(incarnation)
    journals.delete(workflow_id, incarnation, 1)


def sweep_id(incarnation: str) -> str:
    """The id of the row that reserves an incarnation. It exists for a moment, and is never
    listed."""
    return f"{RESERVED_PREFIX}swept-blobs/{incarnation}"


def take(incarnation: str, now: float) -> Append:
    """An append that reserves an incarnation: it succeeds only if no workflow has it."""
    row = CatalogRow(
        workflow_id=sweep_id(incarnation),
        incarnation=incarnation,
        seq=1,
        status=WorkflowStatus.NONE,
        holder=SWEEPER,
        submitted_at=now,
        ended_at=now,
    )
    return Append(
        workflow_id=row.workflow_id,
        incarnation=incarnation,
        expected_seq=0,
        commit_id=f"sweep-{incarnation}",
        entry=encode_entry([], row.workflow_id, incarnation, 1),
        catalog=row,
    )
