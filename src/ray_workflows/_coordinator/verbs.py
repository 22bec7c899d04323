"""What users ask of a coordinator, as inputs to the loop and answers when they are durable."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from ray_workflows._coordinator.claims import Claims
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.recovery import Recovered, recover, recover_end
from ray_workflows._coordinator.requests import (
    Accepted,
    CancelRequest,
    DeleteRequest,
    Finished,
    Request,
    ResumeRequest,
    SubmitRequest,
    Watched,
    WatchRequest,
)
from ray_workflows._coordinator.workflow import Workflow, answer
from ray_workflows._engine.state import WorkflowState
from ray_workflows._environment.compare import obstacles_here
from ray_workflows._model import inputs as inp
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    EnvironmentMismatchError,
    WorkflowAlreadyExistsError,
    WorkflowAlreadyRunningError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
    WorkflowToResumeNotFoundError,
)
from ray_workflows.storage.base import CommitOutcome

ACTIVE = WorkflowStatus.non_terminating_status()

#: Pause before a request is looked at again that came too early, in seconds.
SOON = 0.02


class Verbs:
    """Takes requests. One about a workflow that is not in hand is answered after reading it."""

    def __init__(self, loop: Loop, lease: Lease) -> None:
        self.loop = loop
        self.lease = lease
        self.fetching: dict[str, list[Request]] = {}
        loop.ask_again = self.look_up
        loop.take_requests = self.take_requests

    def ask(self, request: Request) -> None:
        """Take a request; its reply is called once, on this thread."""
        self.take(request, self.try_new if isinstance(request, SubmitRequest) else self.fetch)

    def look_up(self, request: Request) -> None:
        """As `ask`, about a workflow that storage is known to have something of."""
        self.take(request, self.fetch)

    def take(self, request: Request, about_another: Callable[[Any], None]) -> None:
        workflow = self.loop.workflows.get(request.workflow_id)
        if workflow is not None:
            if isinstance(request, WatchRequest):
                workflow.watchers.append(request)
            else:
                workflow.requests.append(request)
            self.loop.touch(workflow)
        elif not self.lease.recovered or request.workflow_id in self.loop.guests:
            # Who asks about a workflow that we are about to take over must not be told that it
            # is nobody's.
            self.loop.after(SOON, lambda: self.take(request, about_another))
        elif isinstance(request, WatchRequest):
            answer(request.reply, Watched(None))
        else:
            about_another(request)

    # -- workflows in hand -----------------------------------------------------------------

    def take_requests(self, workflow: Workflow) -> None:
        """Turn requests about a workflow in hand into inputs and answers."""
        state = workflow.state
        drains = state.status is WorkflowStatus.FAILED
        while workflow.requests and (drains or not workflow.settled) and not workflow.guest:
            request = workflow.requests.popleft()
            if isinstance(request, CancelRequest):
                workflow.inputs.append(inp.Cancel())
                workflow.answers.append((request, None))
            elif isinstance(request, DeleteRequest):
                if state.status in ACTIVE:
                    answer(request.reply, WorkflowStillActiveError("DELETE", request.workflow_id))
                    continue
                # Let go of the siblings in flight, and delete what is then nobody's.
                self.loop.executor.forget(workflow.incarnation)
                workflow.flying.clear()
                workflow.requests.appendleft(request)
                return
            elif isinstance(request, (SubmitRequest, ResumeRequest)):
                self.take_again(workflow, request)

    def take_again(self, workflow: Workflow, request: SubmitRequest | ResumeRequest) -> None:
        state = workflow.state
        if isinstance(request, SubmitRequest) and state.request_id == request.request_id:
            # The same request, repeated because its answer was lost.
            workflow.answers.append((request, Accepted(state.incarnation, created=True)))
        elif is_fork(request):
            answer(request.reply, WorkflowAlreadyExistsError(request.workflow_id))
        elif state.status in ACTIVE:
            answer(request.reply, WorkflowAlreadyRunningError(workflow.workflow_id))
        else:
            self.resume(workflow, request)

    def resume(self, workflow: Workflow, request: SubmitRequest | ResumeRequest) -> None:
        start = self.loop.room.to_run()
        if not start and not self.loop.room.to_wait():
            answer(request.reply, queue.Full("Workflow queue has been full"))
            return
        change = request.change if isinstance(request, ResumeRequest) else None
        workflow.inputs.append(inp.Resume(holder=self.loop.holder_id, start=start, change=change))
        workflow.answers.append((request, accepted(request, workflow.state)))
        if not start:
            self.loop.room.waiting.append(workflow.workflow_id)

    # -- other workflows -------------------------------------------------------------------

    def try_new(self, request: SubmitRequest) -> None:
        """Submit what is most likely new without looking first: if it is not, the commit is
        stale, and the request is asked again through `look_up`.

        Not while the storage is away: who is told so must not find it created when it returns.
        """
        if request.workflow_id in self.fetching or self.loop.storage_error is not None:
            self.fetch(request)
        else:
            self.create(request)

    def fetch(self, request: Request) -> None:
        """Read a workflow that is not in hand, then answer."""
        waiting = self.fetching.setdefault(request.workflow_id, [])
        waiting.append(request)
        if len(waiting) > 1:
            return
        storage = self.loop.storage

        read = recover_end if isinstance(request, DeleteRequest) else recover

        def work() -> tuple[Recovered | None, Claims, list[str]]:
            found = read(storage, request.workflow_id)
            return found, self.lease.read_claims(), self.obstacles(request, found)

        self.loop.io.call(work, lambda result: self.fetched(request.workflow_id, result))

    def obstacles(self, request: Request, found: Recovered | None) -> list[str]:
        """What keeps a workflow that is run again from going on here. Who resumes it has looked
        at that before. Blocks: call it through `Io`."""
        if found is None or not isinstance(request, SubmitRequest) or request.fork is not None:
            return []
        state = found.state
        options = [option for frame in state.frames.values() for option in frame.plan.options]
        task_envs = [option.ray.get("runtime_env") or {} for option in options]
        return obstacles_here(self.loop.storage, state.environment, task_envs)

    def fetched(self, workflow_id: str, result: Any) -> None:
        for index, request in enumerate(self.fetching.pop(workflow_id)):
            if isinstance(result, Exception):
                answer(request.reply, result)
            elif index > 0 or workflow_id in self.loop.workflows:
                self.look_up(request)  # The first one, or a takeover, may have changed it.
            else:
                self.take_fetched(request, *result)

    def take_fetched(
        self, request: Request, found: Recovered | None, claims: Claims, obstacles: list[str]
    ) -> None:
        if found is None:
            if isinstance(request, SubmitRequest):
                self.create(request)
            elif isinstance(request, ResumeRequest):
                answer(request.reply, WorkflowToResumeNotFoundError(request.workflow_id))
            else:
                answer(request.reply, WorkflowNotFoundError(request.workflow_id))
            return
        status = claims.status(found.row)
        if isinstance(request, CancelRequest):
            # A live holder does it itself; a workflow that nobody drives is stopped here.
            input = inp.RequestCancel() if status in ACTIVE else inp.Cancel()
            workflow = Workflow(found.state, found.seq, found.row, guest=True)
            workflow.inputs.append(input)
            workflow.answers.append((request, None))
            self.loop.hold(workflow)
            self.loop.touch(workflow)
        elif isinstance(request, DeleteRequest):
            self.delete(request, found, status)
        elif isinstance(request, (SubmitRequest, ResumeRequest)):
            self.resume_fetched(request, found, status, obstacles)

    def create(self, request: SubmitRequest) -> None:
        loop = self.loop
        start = loop.room.to_run()
        if not start and not loop.room.to_wait():
            answer(request.reply, queue.Full("Workflow queue has been full"))
            return
        workflow = Workflow(WorkflowState(request.workflow_id, request.incarnation), 0, None)
        workflow.inputs.append(
            inp.Submit(
                plan=request.plan,
                metadata=request.metadata,
                holder=loop.holder_id,
                start=start,
                request_id=request.request_id,
                timeout=request.timeout,
                history=request.fork or (),
            )
        )
        workflow.answers.append((request, Accepted(request.incarnation, created=True)))
        loop.hold(workflow)
        # Decide now: the next request counts how many run.
        loop.advance(workflow)
        if not start:
            loop.room.waiting.append(workflow.workflow_id)

    def resume_fetched(
        self,
        request: SubmitRequest | ResumeRequest,
        found: Recovered,
        status: WorkflowStatus,
        obstacles: list[str],
    ) -> None:
        state = found.state
        submitted = isinstance(request, SubmitRequest)
        repeated = submitted and state.request_id == request.request_id  # type: ignore[union-attr]
        if repeated and status is not WorkflowStatus.RESUMABLE:
            answer(request.reply, Accepted(state.incarnation, created=True))
        elif not repeated and is_fork(request):
            answer(request.reply, WorkflowAlreadyExistsError(request.workflow_id))
        elif status in ACTIVE:
            answer(request.reply, WorkflowAlreadyRunningError(request.workflow_id))
        elif status is WorkflowStatus.SUCCESSFUL:
            same = not submitted or request.plan.digest == state.plan_digest  # type: ignore[union-attr]
            answer(request.reply, Finished(found.row, same_plan=same))
        elif status is WorkflowStatus.CANCELED and not getattr(request, "canceled", False):
            reason = (
                f"It was canceled. To go on nevertheless: "
                f"resume({request.workflow_id!r}, canceled=True)."
            )
            answer(request.reply, WorkflowNotResumableError(request.workflow_id, reason))
        elif state.status in ACTIVE and state.holder == self.loop.holder_id and not state.released:
            # Ours, and not in hand: a submission that took effect after it was given up, for one.
            self.lease.take(found)
            self.ask(request)
        elif obstacles:
            answer(request.reply, EnvironmentMismatchError(request.workflow_id, obstacles))
        else:
            workflow = Workflow(state, found.seq, found.row)
            self.resume(workflow, request)
            if workflow.answers:
                self.lease.lose_unstored(workflow)
                self.loop.hold(workflow)
                self.loop.advance(workflow)

    def delete(self, request: DeleteRequest, found: Recovered, status: WorkflowStatus) -> None:
        if status in ACTIVE:
            answer(request.reply, WorkflowStillActiveError("DELETE", request.workflow_id))
            return
        storage = self.loop.storage

        def work() -> CommitOutcome:
            return storage.delete(request.workflow_id, found.row.incarnation, found.seq)

        def then(result: Any) -> None:
            if isinstance(result, Exception):
                answer(request.reply, result)
            elif result is CommitOutcome.OK:
                answer(request.reply, None)
            else:
                self.ask(request)

        self.loop.io.call(work, then)


def is_fork(request: Request) -> bool:
    return isinstance(request, SubmitRequest) and request.fork is not None


def accepted(request: SubmitRequest | ResumeRequest, state: WorkflowState) -> Accepted:
    """The answer to a request by which a stored workflow goes on."""
    if isinstance(request, ResumeRequest):
        return Accepted(state.incarnation, created=False)
    return Accepted(
        state.incarnation,
        created=request.request_id == state.request_id,
        same_plan=request.plan.digest == state.plan_digest,
    )
