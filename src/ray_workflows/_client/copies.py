"""Copies workflows to another storage, without a cluster, and without unpickling.

A copy has the same incarnation, entries and commit ids, so that it is the same workflow there: it
goes on with the same idempotency keys. Values are copied first, then the journal, then the true
row. Until then the copy has the status CANCELED, so that nothing resumes it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import msgspec
import ray

from ray_workflows._client import connection
from ray_workflows._client.blob_copies import copy_blobs, write_copy
from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._client.removal import by_lease_alone
from ray_workflows._codec.journal import Chain, decode_plan
from ray_workflows._codec.references import blobs_in
from ray_workflows._coordinator.liveness import this_holder
from ray_workflows._coordinator.outbox import SUBMISSION
from ray_workflows._environment import shared_items
from ray_workflows._environment.code.packages import item_name
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import Append, CatalogRow, JournalEntry
from ray_workflows._model.events import Event
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import Environment
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
    WorkflowCopyError,
    WorkflowNotFoundError,
    WorkflowStillActiveError,
)
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.histories import History, unless_deleted
from ray_workflows.storage.orphans import SWEEPER

#: The forms of a user's ``storage=``.
StorageSpec = str | os.PathLike[str] | Storage | None

#: The prefix of holder ids of half copies.
COPIER = "copy-"
#: The lease of such a holder, in seconds. With it, object stores need fewer requests per entry.
COPIER_LEASE = 60.0

#: The most entries of a commit, and its most bytes if it has more than one entry.
BATCH_ENTRIES = 500
BATCH_BYTES = 16 * 1024 * 1024

#: Errors that concern one workflow only: others are still copied.
REFUSALS = (WorkflowStillActiveError, WorkflowCopyError, StorageCorruptError)


class Copying:
    """Copies workflows from one storage to another."""

    def __init__(self, source: Storage, target: Storage) -> None:
        # Without the place of blobs: a storage has its journals only once.
        if source.url.partition("#")[0] == target.url.partition("#")[0]:
            raise StorageConfigError(
                f"{target.url} is the storage that is copied from. Name another one to copy to."
            )
        self.source = Reader(source)
        self.target = Reader(target)
        self.me = msgspec.structs.replace(
            this_holder(COPIER + uuid.uuid4().hex), holder_id=COPIER + uuid.uuid4().hex
        )

    def open(self, workflow_id: str | None) -> None:
        """Create the target, unless there is nothing to copy.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            StorageConfigError: the target can't be used.
        """
        if workflow_id is not None:
            read_row(self.source.storage, workflow_id)
        self.target.storage.open()

    def copy(self, workflow_id: str) -> bool:
        """Copy a workflow, or complete an interrupted copy; False if it is complete already.

        Raises:
            WorkflowNotFoundError: there is none.
            WorkflowStillActiveError: it is running or pending, here or there.
            WorkflowCopyError: the target has another workflow with this id.
            StorageCorruptError: a blob or entry of it is damaged.
            StorageUnavailableError: one of the storages does not answer.
        """
        row = read_row(self.source.storage, workflow_id)
        self.check_source(row)
        entries: list[JournalEntry] = []
        outbox: dict[str, OutboxMessage] = {}
        for entry, events in History(self.source.storage, row).read():
            if entry.seq <= row.seq:
                entries.append(entry)
                keep_messages(outbox, events)
        done = self.check_target(row, entries)
        if done == row.seq:
            return False
        # The values of earlier entries are there already.
        new = entries[done:]
        chain = Chain(workflow_id, row.incarnation, done)
        with unless_deleted(self.source.storage, row):
            for entry in new:
                self.copy_values(row, chain.decode(entry))
            for message in outbox.values():
                self.copy_submission(row, message)
        try:
            self.append(row, new)
        finally:
            self.target.storage.remove_holder(self.me.holder_id)
        return True

    def copy_values(self, row: CatalogRow, events: Sequence[Event]) -> None:
        """Copy the packages, documents and blobs that events name."""
        user = (row.workflow_id, row.incarnation)
        self.copy_environments(user, environments_in(events))
        # Large messages are submissions as they travel, and no values.
        plain = {blob for message in messages_in(events) for blob in blobs_in(message)}
        self.copy_blobs(row.incarnation, (each for each in blobs_in(events) if each not in plain))
        for blob in plain:
            pieces = self.source.storage.stream_blob(row.incarnation, blob)
            write_copy(self.target.storage, row.incarnation, blob, pieces)

    def copy_submission(self, row: CatalogRow, message: OutboxMessage) -> None:
        """Copy what belongs to a workflow that is not handed over yet: where the copy goes on, it
        starts that workflow."""
        body = message.body.data
        if isinstance(body, Blob):
            body = bytes(self.source.storage.read_blob(row.incarnation, body))
        submission = SUBMISSION.decode(body)
        plan = decode_plan(submission.plan)
        user = (submission.workflow_id, submission.incarnation)
        self.copy_environments(user, [plan.environment])
        self.copy_blobs(submission.incarnation, blobs_in(plan))

    def copy_blobs(self, incarnation: str, blobs: Iterable[Blob]) -> None:
        """Copy blobs of a workflow."""
        copy_blobs(self.source.storage, incarnation, self.target.storage, incarnation, blobs)

    def copy_environments(self, user: tuple[str, str], environments: Iterable[Environment]) -> None:
        """Copy the packages and the documents of environments. ``user``: id and incarnation of the
        workflow that needs them."""
        source, target = self.source.storage, self.target.storage
        for environment in environments:
            for package in environment.packages:
                item = shared_items.Item(item_name(package), package.incarnation, package.blob)
                shared_items.copy_item(source, target, item, user)
            name = f"{shared_items.DOCUMENT}/{environment.record}"
            document = shared_items.find(source, name) if environment.record else None
            if document is not None:
                data = source.read_blob(document.incarnation, document.blob)
                shared_items.keep(target, name, partial(list, [data]), document.mentions, user)

    def check_source(self, row: CatalogRow) -> None:
        """Raise unless the workflow is at rest."""
        if self.source.claims(by_lease_alone).status(row) in ACTIVE:
            raise WorkflowStillActiveError("COPY", row.workflow_id)
        if is_half(row):
            raise WorkflowCopyError(
                [row.workflow_id],
                f"Workflow '{row.workflow_id}' is half a copy itself. Complete it first "
                f"({row.error}), or delete it.",
            )

    def check_target(self, row: CatalogRow, entries: list[JournalEntry]) -> int:
        """How many of the entries are in the target; raises if other entries are."""
        there = self.target.storage.read_catalog(row.workflow_id)
        if there is None:
            return 0
        if there.incarnation != row.incarnation:
            raise refused(
                row,
                f"another workflow of this id is in {self.target.storage.url}. Delete one of them",
            )
        stored = self.target.storage.read_journal(row.incarnation)
        if stored != entries[: len(stored)]:
            raise refused(
                row,
                f"its copy in {self.target.storage.url} went on by itself, or is damaged: their "
                f"journals differ. Delete one of them",
            )
        if len(stored) < row.seq and self.target.claims(by_lease_alone).status(there) in ACTIVE:
            raise WorkflowStillActiveError("COPY", row.workflow_id)
        return len(stored)

    def append(self, row: CatalogRow, entries: list[JournalEntry]) -> None:
        """Append the entries that the target lacks."""
        half = msgspec.structs.replace(
            row,
            status=WorkflowStatus.CANCELED,
            holder=self.me.holder_id,
            ended_at=self.target.storage.now(),
            error=f"half a copy from {self.source.storage.url}: copy it again to complete it",
            released=False,
            snapshot=0,
        )
        appends = [
            Append(
                workflow_id=row.workflow_id,
                incarnation=row.incarnation,
                expected_seq=entry.seq - 1,
                commit_id=entry.commit_id,
                entry=entry.entry,
                catalog=row
                if entry.seq == row.seq
                else msgspec.structs.replace(half, seq=entry.seq),
            )
            for entry in entries
        ]
        for batch in batches(appends):
            self.target.storage.renew_holder(self.me, COPIER_LEASE)
            if batch[-1] is appends[-1] and read_row(self.source.storage, row.workflow_id) != row:
                raise changed(row.workflow_id)
            outcomes = self.target.storage.commit(batch)
            if CommitOutcome.STALE in outcomes:
                raise refused(
                    row,
                    f"it can't be written to {self.target.storage.url}: somebody else writes it at "
                    f"the same time, or it was deleted there. Copy it again; where it was deleted "
                    f"from an object store or shared directory, some hours later",
                )
            if CommitOutcome.AMBIGUOUS in outcomes:
                raise StorageUnavailableError(
                    f"{self.target.storage.url} did not say whether all of workflow "
                    f"'{row.workflow_id}' arrived. Copy it again."
                )

    def copy_all(self) -> Iterator[tuple[str, Exception | None]]:
        """Copy all workflows, oldest first. Yields the id and None for each new copy, and the id
        and the error for each that failed. Unreadable rows come last, without their ids.

        Raises:
            StorageUnavailableError: one of the storages does not answer.
        """
        everything = set(WorkflowStatus) - {WorkflowStatus.NONE}
        damaged: list[str] = []
        claims = self.source.claims(by_lease_alone)
        for row, _ in self.source.rows(everything, claims=claims, damaged=damaged):
            if row.holder == SWEEPER:
                continue
            try:
                if self.copy(row.workflow_id):
                    yield row.workflow_id, None
            except WorkflowNotFoundError:
                continue  # Deleted meanwhile.
            except REFUSALS as error:
                yield row.workflow_id, error
        for number, message in enumerate(damaged, 1):
            yield f"(unreadable row {number})", StorageCorruptError(message)


def is_half(row: CatalogRow) -> bool:
    """Whether a workflow is an incomplete copy."""
    return row.holder.startswith(COPIER)


def batches(appends: Sequence[Append]) -> Iterator[list[Append]]:
    """Split appends into commits of limited size."""
    batch: list[Append] = []
    size = 0
    for append in appends:
        if batch and (len(batch) == BATCH_ENTRIES or size + len(append.entry) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(append)
        size += len(append.entry)
    yield batch


def refused(row: CatalogRow, reason: str) -> WorkflowCopyError:
    """The error for a workflow that can't be copied."""
    return WorkflowCopyError(
        [row.workflow_id], f"Workflow '{row.workflow_id}' was not copied: {reason}."
    )


def changed(workflow_id: str) -> WorkflowCopyError:
    """The error for a workflow that went on meanwhile."""
    return WorkflowCopyError(
        [workflow_id],
        f"Workflow '{workflow_id}' changed while it was copied. Copy it again when it has ended.",
    )


def copy(workflow_id: str | None, source: StorageSpec, target: StorageSpec) -> list[str]:
    """Copy one workflow, or all. Returns the ids of new copies.

    Raises:
        WorkflowCopyError: some of them can't be copied; all others are.
    """
    if workflow_id is not None:
        workflow_id = validate_workflow_id(workflow_id)
    if target is None:
        raise TypeError("target=None names no storage to copy to. Give a path, a URL or a Storage.")
    connected = source is None and ray.is_initialized()
    here = connection.connect().storage if connected else named(source)
    there = named(target)
    mine = [each for each, given in ((here, source), (there, target)) if each is not given]
    if connected:
        mine.remove(here)
    try:
        here.open_existing()
        copying = Copying(here, there)
        copying.open(workflow_id)
        if workflow_id is not None:
            return [workflow_id] if copying.copy(workflow_id) else []
        found = list(copying.copy_all())
    finally:
        for storage in mine:
            storage.close()
    failed = {name: error for name, error in found if error is not None}
    if failed:
        raise not_copied(failed)
    return [name for name, _ in found]


def named(spec: StorageSpec) -> Storage:
    """The named storage, in a form that this process can use."""
    storage = connection.wanted_storage(spec, None)
    return connection.reachable(storage) if ray.is_initialized() else storage


def not_copied(failed: dict[str, Exception]) -> WorkflowCopyError:
    """The error if some workflows of all were not copied."""
    reasons = "\n".join(str(error) for error in failed.values())
    return WorkflowCopyError(
        list(failed), f"{len(failed)} of the workflows were not copied, all others are:\n{reasons}"
    )


def keep_messages(outbox: dict[str, OutboxMessage], events: Sequence[Event]) -> None:
    """Keep what is sent, by its id, until it is delivered."""
    outbox.update((message.message_id, message) for message in messages_in(events))
    for event in events:
        if isinstance(event, ev.Delivered):
            outbox.pop(event.message_id, None)


def messages_in(events: Iterable[Event]) -> Iterator[OutboxMessage]:
    """What tasks have sent by these events."""
    for event in events:
        if isinstance(event, ev.Sending):
            yield from event.messages


def environments_in(events: Sequence[Event]) -> Iterator[Environment]:
    """The environments that events name."""
    for event in events:
        if isinstance(event, ev.Opening):
            yield event.plan.environment
        elif isinstance(event, ev.WorkflowResumed):
            change = event.change
            if change is not None and change.environment is not None:
                yield change.environment
