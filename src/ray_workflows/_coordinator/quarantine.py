"""Quarantine: releases workflows that can't be driven, by an event in their journal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from ray_workflows._codec.journal import encode_entry
from ray_workflows._coordinator.commits import Commits, Guard
from ray_workflows._coordinator.observers import Commit
from ray_workflows._coordinator.retrying_storage import RetryingStorage
from ray_workflows._coordinator.workflow import Pending, Workflow
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import NEVER, Append, CatalogRow
from ray_workflows._model.errors import error_info, name_of, text_of
from ray_workflows._model.status import WorkflowStatus

#: The pause before a workflow is read again whose release was refused, in seconds.
AGAIN_SECONDS = 60.0


class Quarantine:
    """Appends `WorkflowReleased` to journals without `decide`, because there may be no valid state.

    Args:
        store: the storage.
        commits: takes the appends.
        clock: seconds since 1970.
        elapsed: a monotonic clock, in seconds.
        new_id: makes ids of commits.
        guard: calls a function for one workflow, and handles its errors.
        drop: removes a workflow from memory.
    """

    def __init__(
        self,
        store: RetryingStorage,
        commits: Commits,
        clock: Callable[[], float],
        elapsed: Callable[[], float],
        new_id: Callable[[], str],
        guard: Guard,
        drop: Callable[[Workflow], None],
    ) -> None:
        self.store = store
        self.commits = commits
        self.clock = clock
        self.elapsed = elapsed
        self.new_id = new_id
        self.guard = guard
        self.drop = drop
        #: Until when workflows are left alone whose release was refused, by incarnation.
        self.given_up: dict[str, float] = {}

    def release(self, workflow: Workflow, row: CatalogRow, error: Exception) -> None:
        """Append the reason to the journal. Until that is durable, nothing is decided about the
        workflow."""
        workflow.broken = error
        workflow.row, workflow.seq = row, row.seq
        append, event = end_of_our_part(row, error, at=self.clock(), commit_id=self.new_id())
        commit = Commit(append.catalog, (event,), {}, len(append.entry))
        self.commits.add(workflow, Pending(append, [], [], [], commit))

    def give_up(self, workflow: Workflow) -> None:
        """The storage refuses even the release, as object stores do after a damaged last entry. The
        workflow still names us; leave it alone for a while, so that it costs next to nothing."""
        now = self.elapsed()
        self.given_up = {name: until for name, until in self.given_up.items() if until > now}
        self.given_up[workflow.incarnation] = now + AGAIN_SECONDS

    def is_given_up(self, incarnation: str) -> bool:
        """Whether a workflow is left alone now."""
        return self.elapsed() < self.given_up.get(incarnation, float("-inf"))

    def release_again(self, workflow: Workflow) -> None:
        """Release a workflow whose journal has grown meanwhile."""
        error = workflow.broken
        assert error is not None
        ours = workflow.row
        workflow.reading = True

        def found(workflow: Workflow, row: CatalogRow | None) -> None:
            workflow.reading = False
            if (
                isinstance(row, CatalogRow)
                and ours is not None
                and row.incarnation == workflow.incarnation
                and row.holder == ours.holder
                and row.status in WorkflowStatus.non_terminating_status()
                and not row.released
            ):
                self.release(workflow, row, error)
            else:
                self.drop(workflow)

        self.store.call(
            lambda: self.store.storage.read_catalog(workflow.workflow_id),
            lambda row: self.guard(workflow, partial(found, row=row)),
            what=f"Workflow '{workflow.workflow_id}'",
        )


def end_of_our_part(
    row: CatalogRow, error: Exception, *, at: float, commit_id: str
) -> tuple[Append, ev.WorkflowReleased]:
    """The append that releases a workflow with an error, made without knowing its state."""
    info = error_info(name_of(error), text_of(error))
    event = ev.WorkflowReleased(at=at, error=info)
    append = Append(
        workflow_id=row.workflow_id,
        incarnation=row.incarnation,
        expected_seq=row.seq,
        commit_id=commit_id,
        # No link to the entry before it, which may be unreadable.
        entry=encode_entry([event], row.workflow_id, row.incarnation, row.seq + 1),
        catalog=msgspec.structs.replace(
            row,
            seq=row.seq + 1,
            released=True,
            error=f"{info.type_name}: {info.message}",
            due_at=NEVER,
        ),
    )
    return append, event
