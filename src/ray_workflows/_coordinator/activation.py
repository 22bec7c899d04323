"""Reads workflows into memory: because of a request, because they are due, because nobody drives
them any more, or because others have appended to their journals.

This module decides nothing: the loop decides on what was read. Blocking reads run in threads of the
`Offloader`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ray_workflows._coordinator.active import ActiveWorkflows
from ray_workflows._coordinator.liveness import Liveness, ProcessProbe
from ray_workflows._coordinator.offload import Offloader
from ray_workflows._coordinator.recovery import More, Recovered, read_more, recover
from ray_workflows._coordinator.requests import Asked
from ray_workflows._coordinator.retrying_storage import RetryingStorage
from ray_workflows._coordinator.starting import Starter
from ray_workflows._coordinator.watchers import Watchers
from ray_workflows._coordinator.workflow import Workflow, answer
from ray_workflows._engine.commands import commands, given, next_wake
from ray_workflows._engine.decide import ASKED_OF_LIFECYCLE
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import CatalogRow, Holder
from ray_workflows._model.commands import CancelAttempt
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)


class Driver(Protocol):
    """The part of the loop that `Activation` uses."""

    active: ActiveWorkflows
    storage: Storage
    store: RetryingStorage
    offloader: Offloader
    watchers: Watchers
    starter: Starter
    holder: Holder
    holder_id: str
    probe: ProcessProbe
    clock: Callable[[], float]

    def guard(self, workflow: Workflow, action: Callable[[Workflow], None]) -> None:
        """Call ``action``. An error in it stops this workflow alone."""

    def touch(self, workflow: Workflow) -> None:
        """Decide on the inbox of a workflow in this step."""

    def advance(self, workflow: Workflow) -> None:
        """Decide on the inbox of a workflow now."""

    def stop(self, workflow: Workflow, error: Exception) -> None:
        """Stop driving a workflow, because of an error."""

    def drop(self, workflow: Workflow) -> None:
        """Remove a workflow from memory."""


class Activation:
    """Reads workflows into the memory of ``loop``, and reads them again after a conflict."""

    def __init__(self, loop: Driver) -> None:
        self.loop = loop

    def bring_back(self, workflow_id: str, *messages: msg.Message | Asked) -> None:
        """Read a workflow of ours that is not in memory, and decide on the messages."""
        loop = self.loop
        if workflow_id in loop.active:
            return
        workflow = Workflow(WorkflowState(workflow_id, ""), 0, None)
        # Until it is read, it counts with the status that it had.
        workflow.reading = True
        loop.active.hold(workflow)
        workflow.inbox.extend(messages)
        # While the storage is away, the read is retried: the workflow is ours.
        call = partial(loop.store.call, what=f"Workflow '{workflow_id}'")
        self.read(workflow, call, whole=True)

    def find(self, workflow_id: str) -> None:
        """Read a workflow if the catalog says that it is ours; otherwise turn its watchers away."""
        loop = self.loop

        def found(row: CatalogRow | Exception | None) -> None:
            if workflow_id in loop.active:
                loop.touch(loop.active[workflow_id])
            elif isinstance(row, CatalogRow) and loop.active.may_take(row):
                self.bring_back(workflow_id)
            else:
                loop.watchers.turn_away(workflow_id)

        loop.offloader.call(lambda: loop.storage.read_catalog(workflow_id), found)

    def take(self, recovered: Recovered, claim: msg.Claim) -> None:
        """Start to drive a workflow that nobody drives."""
        loop = self.loop
        workflow = Workflow(
            recovered.state,
            recovered.seq,
            recovered.row,
            link=recovered.link,
            unsaved=recovered.unsaved,
        )
        loop.active.hold(workflow)
        if recovered.state.holder == loop.holder_id:
            # The journal may have entries of ours that are newer than what was read. The claim
            # below would fail then, but none is appended here.
            self.reload(workflow)
        else:
            workflow.inbox.append(claim)
            workflow.covered = 1
            # Decide now: the next `take` counts how many workflows run and wait.
            loop.advance(workflow)

    def activate(self, workflow: Workflow, *, whole: bool = False) -> None:
        """Read a workflow that is not driven here, and the leases that say who drives it.
        ``whole``: read its tasks even if no request needs them."""
        loop = self.loop
        self.read(workflow, loop.offloader.call, whole=whole)

    def read(
        self,
        workflow: Workflow,
        call: Callable[[Callable[[], Any], Callable[[Any], None]], None],
        *,
        whole: bool,
    ) -> None:
        loop = self.loop
        workflow.reading = True
        loop.active.become(workflow, None)
        workflow.live = False
        workflow.covered = len(workflow.inbox)
        inbox = workflow.inbox
        whole = whole or not inbox or not all(map(is_about_lifecycle, inbox))

        def work() -> tuple[Recovered | None, Liveness | None]:
            found = recover(loop.storage, workflow.workflow_id, whole=whole)
            if found is not None and loop.active.may_take(found.state):
                return found, None
            return found, self.read_claims()

        def then(result: tuple[Recovered | None, Liveness | None] | Exception) -> None:
            workflow.reading = False
            if isinstance(result, Exception):
                self.refuse_all(workflow, result)
            else:
                self.activated(workflow, *result)

        call(work, lambda result: loop.guard(workflow, lambda _: then(result)))

    def read_claims(self) -> Liveness:
        """Read the leases of all coordinators. Blocks: call it through `Offloader`."""
        loop = self.loop
        storage = loop.storage
        return Liveness(storage.read_holders(), storage.now(), me=loop.holder, probe=loop.probe)

    def refuse_all(self, workflow: Workflow, error: Exception) -> None:
        """Answer all requests about a workflow with the error, and drop the workflow."""
        loop = self.loop
        asked = [each for each in workflow.inbox if isinstance(each, Asked)]
        workflow.inbox.clear()
        for each in asked:
            answer(each.reply, error)
        loop.drop(workflow)

    def activated(
        self, workflow: Workflow, found: Recovered | None, claims: Liveness | None
    ) -> None:
        """Go on with a workflow that was read. ``claims`` is None if the workflow is ours."""
        loop = self.loop
        loop.active.become(workflow, found)
        workflow.driven_elsewhere = (
            found is not None and claims is not None and claims.status(found.row) in ACTIVE
        )
        if loop.active.may_take(workflow.state):
            if not workflow.whole:
                self.activate(workflow, whole=True)
                return
            # It was not in memory, or is new to us, or its commit took effect after we had given
            # the commit up.
            workflow.driven_elsewhere = False
            workflow.put_first(msg.Claim())
            if loop.active.drives(workflow):
                loop.starter.add(workflow, commands(workflow.state))
        else:
            loop.watchers.turn_away(workflow.workflow_id)
            if workflow.state.outbox and not workflow.whole:
                # We may take it over to deliver its messages.
                self.activate(workflow, whole=True)
                return
        loop.touch(workflow)

    def verify(self, workflow: Workflow) -> None:
        """Check that a workflow is still ours before more of its attempts start."""
        if workflow.busy:
            workflow.doubtful = True
        else:
            self.reload(workflow)

    def reload(self, workflow: Workflow, *, anew: bool = False) -> None:
        """Read what others appended to the journal of a workflow of ours. Go on if it is still
        ours; otherwise drop it. ``anew``: read the whole journal, because the state in memory may
        differ from it."""
        loop = self.loop
        workflow.reading = True
        workflow.covered = len(workflow.inbox)
        workflow.doubtful = False
        state, seq, link = workflow.state, workflow.seq, workflow.link

        def work() -> Recovered | More | None:
            if anew:
                return recover(loop.storage, workflow.workflow_id)
            return read_more(loop.storage, state, seq, link)

        def found(workflow: Workflow, result: Recovered | More | Exception | None) -> None:
            if isinstance(result, More):
                try:
                    result = result.added_to(state, workflow.unsaved)
                except StorageCorruptError as error:
                    result = error
            workflow.reading = False
            if isinstance(result, Exception):
                loop.stop(workflow, result)
            elif result is None or result.row.incarnation != workflow.incarnation:
                logger.warning("Workflow '%s' was deleted.", workflow.workflow_id)
                loop.drop(workflow)
            elif result.state.holder != loop.holder_id:
                # A workflow that we were only claiming was never ours.
                lost = workflow.row is not None and workflow.row.holder == loop.holder_id
                logger.log(
                    logging.WARNING if lost else logging.INFO,
                    "Workflow '%s' was taken over by coordinator %s; its attempts here stop.",
                    workflow.workflow_id,
                    result.state.holder,
                )
                loop.drop(workflow)
            else:
                self.continue_with(workflow, result)

        loop.store.call(
            work,
            lambda result: loop.guard(workflow, partial(found, result=result)),
            what=f"Workflow '{workflow.workflow_id}'",
        )

    def continue_with(self, workflow: Workflow, recovered: Recovered) -> None:
        """Go on with a workflow that is still ours, from its journal."""
        loop = self.loop
        loop.active.become(workflow, recovered)
        at = next_wake(workflow.state)
        if at is not None and at <= loop.clock():
            # Before the reports: a cancellation counts from the moment that it was acknowledged.
            workflow.put_first(msg.Wake())
        if not workflow.live:
            workflow.put_first(msg.Claim())
        # Ask the executor again for every attempt that should run: for one that is in flight, the
        # second request changes nothing. A body in flight may lack an outcome, if the commit with
        # it took effect after we had given the commit up.
        workflow.forget_starts()
        loop.starter.forget_timers(workflow)
        active = workflow.state.active
        over = [CancelAttempt(number) for number in workflow.flying if number not in active]
        loop.starter.add(workflow, [*over, *commands(workflow.state), *given(workflow.state)])
        loop.watchers.notify(workflow, settled=False)
        loop.touch(workflow)


def is_about_lifecycle(each: msg.Message | Asked) -> bool:
    """Whether the decision on a message depends on no task."""
    return isinstance(each, Asked) and type(each.message) in ASKED_OF_LIFECYCLE
