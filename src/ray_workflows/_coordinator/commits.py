"""Group commits: sends the commits of all workflows that wait as one, and handles each outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from ray_workflows._coordinator.retrying_storage import (
    Committed,
    RetryingStorage,
    may_concern_all,
)
from ray_workflows._coordinator.workflow import Pending, Workflow
from ray_workflows.storage.base import CommitOutcome

#: Pause before a commit that the storage refused is tried again, in seconds.
REFUSED_SECONDS = 1.0


class Guard(Protocol):
    """Calls an action for a workflow. If it raises, stops this workflow, and no other."""

    def __call__(self, workflow: Workflow, action: Callable[[Workflow], None]) -> None:
        """Do it."""


class Commits:
    """Sends what was decided to the storage.

    Args:
        store: the storage.
        after: has something done after some seconds.
        guard: calls what follows for one workflow.
        applied: the workflow's pending commit is durable.
        overtaken: somebody else appended first: what was decided never happened.
    """

    def __init__(
        self,
        store: RetryingStorage,
        after: Callable[[float, Callable[[], None]], None],
        guard: Guard,
        applied: Callable[[Workflow], None],
        overtaken: Callable[[Workflow], None],
    ) -> None:
        self.store = store
        self.after = after
        self.guard = guard
        self.applied = applied
        self.overtaken = overtaken
        self.waiting: list[Workflow] = []
        self.sending = False
        #: How many writes the storage had taken when the commit under way was sent.
        self.writes = 0

    def add(self, workflow: Workflow, pending: Pending) -> None:
        """Let it go with the next ones."""
        workflow.pending = pending
        self.waiting.append(workflow)

    def flush(self) -> None:
        """Send all that wait as one; while it is away, the next ones gather."""
        if self.sending or not self.waiting:
            return
        batch, self.waiting = self.waiting, []
        self.sending = True
        self.writes = self.store.writes
        appends = [w.pending.append for w in batch if w.pending is not None]
        self.store.commit(appends, lambda outcomes: self.committed(batch, outcomes))

    def committed(self, batch: list[Workflow], outcomes: Sequence[Committed]) -> None:
        self.sending = False
        for workflow, outcome in zip(batch, outcomes, strict=True):
            if outcome is CommitOutcome.OK:
                self.guard(workflow, self.applied)
            elif outcome is CommitOutcome.STALE:
                self.guard(workflow, self.overtaken)
            elif isinstance(outcome, Exception):
                self.guard(workflow, partial(self.settle, refusal=outcome))
            else:
                self.guard(workflow, self.settle)

    def settle(self, workflow: Workflow, refusal: Exception | None = None) -> None:
        """Find out what became of an ambiguous commit, by looking for its id.

        If it takes effect even later than that, it overtakes its own repetition. ``refusal``: the
        storage refused this commit alone; if it does so again and again, the workflow is stopped.
        """
        pending = workflow.pending
        assert pending is not None
        incarnation, seq = workflow.incarnation, workflow.seq
        first = refusal is not None and pending.refused_at is None
        if first:
            pending.refused_at = self.writes

        def found(workflow: Workflow, result: Any) -> None:
            if isinstance(result, Exception):
                self.overtaken(workflow)
            elif not result and refusal is not None and self.is_refused_for_good(pending, refusal):
                raise refusal
            elif not result:
                self.waiting.append(workflow)
            elif result[0].commit_id == pending.append.commit_id:
                workflow.doubtful = workflow.doubtful or len(result) > 1
                self.applied(workflow)
            else:
                self.overtaken(workflow)

        def read() -> None:
            self.store.call(
                lambda: self.store.storage.read_journal(incarnation, seq),
                lambda result: self.guard(workflow, partial(found, result=result)),
                what="A commit",
            )

        # A client waits for the first answer to a submission.
        pauses = refusal is not None and (seq or not first)
        self.after(REFUSED_SECONDS if pauses else self.store.pause, read)

    def is_refused_for_good(self, pending: Pending, refusal: Exception) -> bool:
        """Count a refusal; whether the workflow is to be stopped.

        An error that may be about the whole storage counts only if the storage has taken another
        write since the first refusal: a commit of another workflow, or the lease, which is renewed
        every few seconds. Otherwise all workflows would be stopped by what somebody can repair
        in a minute. They wait for that, and so does this one.
        """
        if may_concern_all(refusal) and self.store.writes == pending.refused_at:
            return False
        return pending.is_refused_for_good()
