"""What users ask of a coordinator, as inputs to the loop and answers when they are durable."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

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
    RunRequest,
    SignalRequest,
    Stopped,
    SubmitRequest,
    Watched,
    WatchRequest,
)
from ray_workflows._coordinator.workflow import Workflow, answer
from ray_workflows._engine.decide import TAKES_SIGNALS
from ray_workflows._engine.signals import is_known
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model import inputs as inp
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    SignalRefusedError,
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
        try:
            self.pass_on(request, about_another)
        except Exception as error:
            self.failed(request, error)

    def failed(self, request: Request, error: Exception) -> None:
        """A bug of ours: whoever asked knows at once, and nobody else has to wait."""
        self.loop.on_error(f"A request about workflow '{request.workflow_id}'", error)
        answer(request.reply, error)

    def is_over(self, request: Request) -> bool:
        """Whether nobody waits for the answer any more: such a request is not done."""
        if self.loop.elapsed() <= request.until:
            return False
        answer(request.reply, CoordinatorUnavailableError("The request came too late."))
        return True

    def pass_on(self, request: Request, about_another: Callable[[Any], None]) -> None:
        if self.is_over(request):
            return
        workflow = self.loop.workflows.get(request.workflow_id)
        guest = self.loop.guests.get(request.workflow_id)
        if workflow is None and guest is not None and guest.broken is None:
            # Signals may go with those that are being left there, so that not each has to read the
            # journal; all others have their turn, in order, when it is let go.
            workflow = guest if not isinstance(request, WatchRequest) else None
        if workflow is not None:
            if isinstance(request, WatchRequest):
                workflow.watchers.append(request)
            else:
                workflow.requests.append(request)
            self.loop.touch(workflow)
        elif guest is not None or self.lease.may_be_left(request.workflow_id):
            # Who asks about a workflow that we are about to take over must not be told that it
            # is nobody's.
            self.loop.after(SOON, lambda: self.take(request, about_another))
        elif isinstance(request, WatchRequest):
            answer(request.reply, Watched(None))
        else:
            about_another(request)

    def withdraw(self, request: WatchRequest) -> None:
        """Nobody waits any more for what a watch sees."""
        workflow = self.loop.workflows.get(request.workflow_id)
        if workflow is not None and request in workflow.watchers:
            workflow.watchers.remove(request)

    # -- workflows in hand -----------------------------------------------------------------

    def take_requests(self, workflow: Workflow) -> None:
        """Turn requests about a workflow in hand into inputs and answers."""
        self.take_signals(workflow)
        state = workflow.state
        drains = state.status is WorkflowStatus.FAILED
        while workflow.requests and (drains or not workflow.settled) and not workflow.guest:
            request = workflow.requests.popleft()
            if self.is_over(request):
                continue
            if is_for_another(request, workflow.incarnation):
                answer(request.reply, not_there(request))
            elif isinstance(request, CancelRequest):
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

    def take_signals(self, workflow: Workflow) -> None:
        """Turn the signals among the requests into inputs, unless the workflow takes none: then it
        is let go, and they are answered after reading it.

        They are decided on before all else. Otherwise the workflow could end in the same step,
        and a signal be acknowledged that is not kept.
        """
        if workflow.state.status not in TAKES_SIGNALS:
            return
        signals: list[SignalRequest] = []
        others: deque[Request] = deque()
        for request in workflow.requests:
            # A stream of signals keeps nobody waiting who is to be answered after it is let go.
            if isinstance(request, SignalRequest) and not (workflow.guest and others):
                signals.append(request)
            else:
                others.append(request)
        workflow.requests = others
        inputs: list[inp.Input] = []
        for request in signals:
            if self.is_over(request):
                continue
            if is_for_another(request, workflow.incarnation):
                answer(request.reply, not_there(request))
                continue
            inputs.append(inp.Signal(request.name, request.signal_id, request.value))
            workflow.answers.append((request, None))
        workflow.inputs.extendleft(reversed(inputs))

    def take_again(self, workflow: Workflow, request: SubmitRequest | ResumeRequest) -> None:
        state = workflow.state
        if state.is_known(request.request_id):
            # The same request, repeated because its answer was lost.
            workflow.answers.append((request, accepted(request, state)))
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
        workflow.inputs.append(
            inp.Resume(self.loop.holder_id, start, request.change, request.request_id)
        )
        workflow.answers.append((request, accepted(request, workflow.state)))
        if not start:
            self.loop.room.wait(workflow)

    # -- other workflows -------------------------------------------------------------------

    def try_new(self, request: SubmitRequest) -> None:
        """Submit what is most likely new without looking first: if it is not, the commit is
        stale, and the request is asked again through `look_up`.

        Not while the storage is away: who is told so must not find it created when it returns.
        """
        if request.workflow_id in self.fetching or self.loop.store.error is not None:
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

        def work() -> tuple[Recovered | None, Claims]:
            return read(storage, request.workflow_id), self.lease.read_claims()

        self.loop.io.call(work, lambda result: self.fetched(request.workflow_id, result))

    def fetched(self, workflow_id: str, result: Any) -> None:
        for index, request in enumerate(self.fetching.pop(workflow_id)):
            if isinstance(result, Exception):
                answer(request.reply, result)
            elif index > 0 or workflow_id in self.loop.workflows:
                self.look_up(request)  # The first one, or a takeover, may have changed it.
            else:
                try:
                    self.take_fetched(request, *result)
                except Exception as error:
                    self.failed(request, error)

    def take_fetched(self, request: Request, found: Recovered | None, claims: Claims) -> None:
        if self.is_over(request):
            return
        if found is None and isinstance(request, SubmitRequest):
            self.create(request)
            return
        if found is None or is_for_another(request, found.row.incarnation):
            answer(request.reply, not_there(request))
            return
        status = claims.status(found.row)
        if isinstance(request, CancelRequest):
            # A live holder does it itself; a workflow that nobody drives is stopped here.
            input = inp.RequestCancel() if status in ACTIVE else inp.Cancel()
            workflow = Workflow(found.state, found.seq, found.row, link=found.link, guest=True)
            workflow.inputs.append(input)
            workflow.answers.append((request, None))
            self.loop.hold(workflow)
            self.loop.touch(workflow)
        elif isinstance(request, SignalRequest):
            self.leave_signal(request, found, status)
        elif isinstance(request, DeleteRequest):
            self.delete(request, found, status)
        elif isinstance(request, (SubmitRequest, ResumeRequest)):
            self.resume_fetched(request, found, status)

    def leave_signal(
        self, request: SignalRequest, found: Recovered, status: WorkflowStatus
    ) -> None:
        """Leave a signal in the journal of a workflow that is not in hand."""
        if is_known(found.state, request.name, request.signal_id):
            # The same signal, sent again because its answer was lost. The workflow may have ended
            # by it.
            answer(request.reply, None)
        elif found.state.status not in TAKES_SIGNALS:
            error = SignalRefusedError(request.workflow_id, request.name, status)
            answer(request.reply, error)
        else:
            workflow = Workflow(found.state, found.seq, found.row, link=found.link, guest=True)
            workflow.requests.append(request)
            self.loop.hold(workflow)
            self.loop.touch(workflow)

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
        if not start:
            loop.room.wait(workflow)
        # Decide now: the next request counts how many run.
        loop.advance(workflow)

    def resume_fetched(
        self,
        request: SubmitRequest | ResumeRequest,
        found: Recovered,
        status: WorkflowStatus,
    ) -> None:
        state = found.state
        submitted = isinstance(request, SubmitRequest)
        repeated = state.is_known(request.request_id)
        if repeated and status is not WorkflowStatus.RESUMABLE:
            answer(request.reply, accepted(request, state))
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
        elif submitted and not repeated and looks_first(request, state):  # type: ignore[arg-type]
            answer(request.reply, Stopped())
        else:
            workflow = Workflow(state, found.seq, found.row, link=found.link)
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
                self.ask(msgspec.structs.replace(request, incarnation=found.row.incarnation))

        self.loop.io.call(work, then)


def is_for_another(request: Request, incarnation: str) -> bool:
    """Whether it is about another workflow that had, or has, the id."""
    return isinstance(request, RunRequest) and request.incarnation not in ("", incarnation)


def not_there(request: Request) -> Exception | None:
    """The answer to a request about a workflow that is not there, or not any more."""
    if isinstance(request, ResumeRequest):
        return WorkflowToResumeNotFoundError(request.workflow_id)
    if isinstance(request, DeleteRequest) and request.incarnation:
        return None  # It was there once, and somebody has deleted it, as was wanted.
    return WorkflowNotFoundError(request.workflow_id)


def looks_first(request: SubmitRequest, state: WorkflowState) -> bool:
    """Whether the driver has to look at what is there, before it goes on."""
    return request.asks_first or request.changes not in ("", state.incarnation)


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
