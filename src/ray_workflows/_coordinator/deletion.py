"""Deletes workflows through a coordinator, which knows what it drives."""

from __future__ import annotations

from typing import Any

from ray_workflows._coordinator.liveness import Liveness
from ray_workflows._coordinator.loop import SOON, Loop
from ray_workflows._coordinator.recovery import is_awaited, read_end
from ray_workflows._coordinator.requests import Reply
from ray_workflows._coordinator.workflow import answer
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._model.catalog import CatalogRow
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    WorkflowNotFoundError,
    WorkflowStillActiveError,
)
from ray_workflows.storage.base import CommitOutcome

#: The pause between two checks whether a workflow's parent knows of it, in seconds, and how many
#: checks a deletion makes.
AGAIN_SECONDS, LOOKS = 0.2, 10


class Deletion:
    """Deletes a workflow that no coordinator drives, unless its journal grows meanwhile.

    It does not read the journal's contents: a million tasks take seconds to read.

    Ray repeats a call whose coordinator died before it answered. So if the named incarnation is
    gone, the answer is that it was deleted. If another workflow has the id by then, the answer is
    an error, because the caller may take that one for the deleted one.

    Args:
        loop: the coordinator's.
        workflow_id: the workflow.
        incarnation: of the workflow that is meant; empty: any with this id.
        reply: gets None, or the error, on the loop's thread.
        until: the latest start, on `Loop.elapsed`.
    """

    def __init__(
        self,
        loop: Loop,
        workflow_id: str,
        incarnation: str,
        reply: Reply,
        until: float = float("inf"),
    ) -> None:
        self.loop = loop
        self.workflow_id = workflow_id
        self.incarnation = incarnation
        self.reply = reply
        self.until = until
        self.looks = 0

    def begin(self) -> None:
        """Delete it, or find out why not. Called on the loop's thread."""
        try:
            self.look()
        except Exception as error:
            self.loop.on_error(f"Deleting workflow '{self.workflow_id}'", error)
            answer(self.reply, error)

    def look(self) -> None:
        loop = self.loop
        if self.is_over():
            return
        workflow = loop.active.get(self.workflow_id)
        if loop.active.lives is None or (workflow is not None and workflow.busy):
            loop.after(SOON, self.begin)
            return
        if not self.incarnation and self.workflow_id in loop.active.evicted:
            answer(self.reply, self.still_active())
            return
        # The workflow in memory may be another one of the id, even one that was deleted.
        meant = workflow is not None and self.incarnation in ("", workflow.incarnation)
        if workflow is not None and meant and loop.active.drives(workflow):
            if workflow.state.status in ACTIVE:
                answer(self.reply, self.still_active())
                return
            # Forget the attempts of siblings that still run: their reports are ignored.
            workflow.flying.clear()
            loop.drop(workflow)
        loop.offloader.call(self.read, self.take)

    def is_over(self) -> bool:
        """Whether the caller no longer waits: then nothing is deleted."""
        if self.loop.elapsed() <= self.until:
            return False
        answer(self.reply, CoordinatorUnavailableError("The request came too late."))
        return True

    def still_active(self) -> Exception:
        return WorkflowStillActiveError("DELETE", self.workflow_id)

    def read(self) -> tuple[CatalogRow | None, Liveness | None, bool]:
        """Read the journal's end, the live holders if the workflow has not ended, and whether it
        would begin again. Blocks."""
        storage = self.loop.storage
        row = read_end(storage, self.workflow_id)
        if row is None:
            return None, None, False
        claims = self.loop.activation.read_claims() if row.status in ACTIVE else None
        return row, claims, is_awaited(storage, row)

    def take(self, result: Any) -> None:
        if isinstance(result, Exception):
            answer(self.reply, result)
            return
        row, claims, awaited = result
        if self.is_over():
            return
        if row is None:
            # A named incarnation existed, so it is deleted already, as wanted.
            gone = None if self.incarnation else WorkflowNotFoundError(self.workflow_id)
            answer(self.reply, gone)
        elif self.incarnation not in ("", row.incarnation):
            answer(self.reply, WorkflowNotFoundError(self.workflow_id, replaced=True))
        elif claims is not None and (
            claims.status(row) in ACTIVE or self.loop.active.may_take(row)
        ):
            answer(self.reply, self.still_active())
        elif awaited:
            self.look_again(row)
        else:
            self.incarnation = row.incarnation
            self.loop.offloader.call(
                lambda: self.loop.storage.delete(self.workflow_id, row.incarnation, row.seq),
                self.done,
            )

    def look_again(self, row: CatalogRow) -> None:
        """Check again soon: most often, the parent knows of its child within moments."""
        self.looks += 1
        if self.looks < LOOKS:
            self.loop.after(AGAIN_SECONDS, self.begin)
        else:
            error = WorkflowStillActiveError("DELETE", self.workflow_id, row.parent)
            answer(self.reply, error)

    def done(self, result: Any) -> None:
        if isinstance(result, Exception):
            answer(self.reply, result)
        elif result is CommitOutcome.OK:
            answer(self.reply, None)
        else:
            self.begin()
