"""Rules for requests about a workflow as a whole, and for actions of a coordinator. Each rule is
written once, whether the workflow is new, driven here, driven elsewhere, or not driven.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import msgspec

from ray_workflows._engine.decision import ACTIVE, SETTLED, Decision, Events, Surroundings
from ray_workflows._engine.names import assign_task_ids
from ray_workflows._engine.outbox import (
    apply_delivered,
    apply_messages,
    apply_workflow_ending,
)
from ray_workflows._engine.signals import (
    has_another,
    has_been_taken,
    is_known,
    keep,
    kept_signals,
    take,
)
from ray_workflows._engine.state import Lifecycle, WorkflowState
from ray_workflows._engine.values import lose, unstored
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import (
    Accepted,
    Finished,
    OtherSignal,
    Received,
    Stopped,
    TooManySignals,
)
from ray_workflows._model.catalog import DAG, FUNCTION
from ray_workflows._model.plan import EnvironmentChange
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tags import MAX_TAGS, too_many, with_tags
from ray_workflows._model.values import ErrorInfo
from ray_workflows.exceptions import (
    SignalRefusedError,
    WorkflowAlreadyExistsError,
    WorkflowAlreadyRunningError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowToResumeNotFoundError,
)

#: Type name of the error of a workflow that ran into its timeout.
TIMED_OUT = "WorkflowTimeoutError"

#: Workflows of these statuses keep signals: they run, will run, or may be resumed without
#: ``canceled=True``.
TAKES_SIGNALS = (WorkflowStatus.PENDING, WorkflowStatus.RUNNING, WorkflowStatus.FAILED)


def is_driven(state: Lifecycle, around: Surroundings) -> bool:
    """Whether a live coordinator drives the workflow: this one or another."""
    if state.status not in ACTIVE or state.released:
        return False
    return state.holder == around.holder or around.driven_elsewhere


def has_gone_on(state: Lifecycle, around: Surroundings) -> bool:
    """Whether the workflow has gone on since a request was accepted: it is driven, or has ended."""
    return is_driven(state, around) or state.status in SETTLED


def is_there(state: Lifecycle, incarnation: str) -> bool:
    """Whether the workflow exists, and is the requested incarnation."""
    return state.status is not WorkflowStatus.NONE and incarnation in ("", state.incarnation)


def not_found(
    state: Lifecycle,
    error: type[WorkflowNotFoundError | WorkflowToResumeNotFoundError] = WorkflowNotFoundError,
) -> Exception:
    """The answer to a request about a workflow that does not exist; another one may have its id."""
    return error(state.workflow_id, replaced=state.status is not WorkflowStatus.NONE)


# -- asked ---------------------------------------------------------------------------------


def on_submit(
    state: WorkflowState, message: msg.Submit, now: float, around: Surroundings
) -> Decision:
    if state.status is not WorkflowStatus.NONE:
        return on_submit_again(state, message, now, around)
    if not around.can_run and not around.can_wait and not message.parent:
        return Decision([], no_room())
    events: Events = [
        ev.WorkflowSubmitted(
            at=now,
            plan=message.plan,
            task_ids=assign_task_ids(state.names, [spec.name for spec in message.plan.tasks]),
            metadata=message.metadata,
            holder=around.holder,
            request_id=message.request_id,
            timeout=message.timeout,
            tags=message.tags,
            parent=message.parent,
        )
    ]
    history = message.history or ()
    if around.can_run or history:
        events.append(ev.WorkflowStarted(at=now))
    events += [msgspec.structs.replace(event, at=now) for event in history]
    if history and not around.can_run:
        # A fork with results has been started already; it waits as a resumed workflow does.
        events.append(ev.WorkflowResumed(at=now, holder=around.holder))
    return Decision(events, Accepted(state.incarnation, created=True))


def on_submit_again(
    state: WorkflowState, message: msg.Submit, now: float, around: Surroundings
) -> Decision:
    """Decide on a submission of an id that is in use."""
    known = state.is_known(message.request_id)
    same_plan = message.plan.digest == state.plan_digest
    accepted = Accepted(
        state.incarnation,
        created=known and message.request_id == state.request_id,
        same_plan=same_plan,
    )
    if known and (has_gone_on(state, around) or message.parent):
        # Repeated because the answer was lost. A parent need only know that its child is there: a
        # child that was interrupted goes on when somebody resumes it, as any other workflow.
        return Decision([], accepted)
    if message.history is not None and not known:
        return Decision([], WorkflowAlreadyExistsError(state.workflow_id))
    refusal = why_not_resumed(state, around, canceled=False, same_plan=same_plan)
    if refusal is not None:
        return Decision([], refusal)
    if not known and (message.asks_first or message.changes not in ("", state.incarnation)):
        return Decision([], Stopped())
    return resumed(state, message, now, around, accepted)


def on_resume(
    state: WorkflowState, message: msg.Resume, now: float, around: Surroundings
) -> Decision:
    if not is_there(state, message.incarnation):
        return Decision([], not_found(state, WorkflowToResumeNotFoundError))
    accepted = Accepted(state.incarnation, created=False)
    if state.is_known(message.request_id) and has_gone_on(state, around):
        return Decision([], accepted)  # Repeated because the answer was lost.
    refusal = why_not_resumed(state, around, canceled=message.canceled, same_plan=True)
    if refusal is not None:
        return Decision([], refusal)
    return resumed(state, message, now, around, accepted)


def why_not_resumed(
    state: WorkflowState, around: Surroundings, *, canceled: bool, same_plan: bool
) -> Exception | Finished | None:
    """The answer if a workflow can't be resumed; None if it can."""
    if is_driven(state, around):
        return WorkflowAlreadyRunningError(state.workflow_id)
    if state.status is WorkflowStatus.SUCCESSFUL:
        return Finished(state.incarnation, same_plan=same_plan)
    if state.status is WorkflowStatus.CANCELED and not canceled:
        reason = (
            f"It was canceled. To go on nevertheless: resume({state.workflow_id!r}, canceled=True)."
        )
        return WorkflowNotResumableError(state.workflow_id, reason)
    return None


def resumed(
    state: WorkflowState,
    message: msg.Submit | msg.Resume,
    now: float,
    around: Surroundings,
    accepted: Accepted,
) -> Decision:
    """Resume the workflow here."""
    if state.ending is not None:
        # Only the delivery of its messages is left before its end.
        return Decision([ev.WorkflowClaimed(at=now, holder=around.holder)], accepted)
    if not around.can_run and not around.can_wait:
        return Decision([], no_room())
    events: Events = [
        ev.WorkflowResumed(
            at=now, holder=around.holder, change=message.change, request_id=message.request_id
        )
    ]
    if state.output is not None:
        # It had its output before it was canceled: there is nothing to run.
        events.append(ev.WorkflowSucceeded(at=now, output=state.output))
    elif around.can_run:
        events.append(ev.WorkflowStarted(at=now))
    return Decision([*events, *lost_elsewhere(state, now, around)], accepted)


def on_cancel(state: Lifecycle, message: msg.Cancel, now: float, around: Surroundings) -> Decision:
    if not is_there(state, message.incarnation):
        return Decision([], not_found(state))
    if state.status is WorkflowStatus.CANCELED or isinstance(state.ending, ev.WorkflowCanceled):
        return Decision([])
    if around.driven_elsewhere and is_driven(state, around):
        # The coordinator that drives it cancels it when it reads this request.
        return Decision([] if state.cancel_requested else [ev.CancelRequested(at=now)])
    return Decision([ev.WorkflowCanceled(at=now)])


def on_signal(state: Lifecycle, message: msg.Signal, now: float, around: Surroundings) -> Decision:
    """Keep the signal. The holder assigns it to a task on its next wake, after all signals of the
    same batch are kept: one of them may end the workflow, and the rest would be refused."""
    if not is_there(state, message.incarnation):
        return Decision([], not_found(state))
    if is_known(state, message.name, message.signal_id):
        taken = (message.name, message.signal_id) in state.taken
        # Repeated because the answer was lost. The signal may have ended the workflow. If the
        # workflow has ended without taking an event, the event's sender gets that answer below.
        if taken or not message.sole or state.status in TAKES_SIGNALS:
            return Decision([], Received(taken=taken))
    elif message.sole and has_another(state, message.name):
        return Decision([], OtherSignal())
    if state.status not in TAKES_SIGNALS:
        return Decision([], SignalRefusedError(state.workflow_id, message.name, state.status))
    if message.most is not None and (kept := kept_signals(state)) >= message.most:
        return Decision([], TooManySignals(kept))
    if message.asks:
        return Decision([])
    received = ev.SignalReceived(
        at=now, name=message.name, signal_id=message.signal_id, value=message.value
    )
    return Decision([received], Received())


def on_set_tags(
    state: Lifecycle, message: msg.SetTags, now: float, around: Surroundings
) -> Decision:
    """Set tags, also of a workflow that has ended."""
    if not is_there(state, message.incarnation):
        return Decision([], not_found(state))
    tags = with_tags(state.tags, message.tags)
    if len(tags) > MAX_TAGS:
        return Decision([], ValueError(too_many(len(tags))))
    return Decision([] if tags == state.tags else [ev.TagsSet(at=now, tags=tags)])


def on_find_signal(
    state: Lifecycle, message: msg.FindSignal, now: float, around: Surroundings
) -> Decision:
    if not is_there(state, message.incarnation):
        return Decision([], not_found(state))
    for value in state.signals.get(message.name, {}).values():
        return Decision([], Received(value=value))
    return Decision([], Received(taken=True) if has_been_taken(state, message.name) else None)


def on_acknowledge_signals(
    state: Lifecycle, message: msg.AcknowledgeSignals, now: float, around: Surroundings
) -> Decision:
    if not is_there(state, message.incarnation):
        return Decision([], not_found(state))
    if state.status not in TAKES_SIGNALS:
        # A workflow that has ended needs no acknowledgement.
        return Decision([])
    return Decision(
        [
            ev.SignalAcknowledged(at=now, name=message.name, signal_id=signal_id)
            for signal_id in state.signals.get(message.name, ())
        ]
    )


def no_room() -> Exception:
    """The answer if no more workflows may run or be pending."""
    return queue.Full("Workflow queue has been full")


# -- done by the coordinator ---------------------------------------------------------------


def on_claim(
    state: WorkflowState, message: msg.Claim, now: float, around: Surroundings
) -> Decision:
    if state.status not in ACTIVE:
        return Decision([])
    events: Events = []
    if state.holder != around.holder or state.released:
        waits = state.status is WorkflowStatus.RUNNING and not around.can_run
        goes_on = state.ending is None and not state.cancel_requested
        if message.may_wait and waits and goes_on:
            events.append(ev.WorkflowResumed(at=now, holder=around.holder))
        else:
            events.append(ev.WorkflowClaimed(at=now, holder=around.holder))
    return Decision([*events, *lost_elsewhere(state, now, around)])


def lost_elsewhere(state: WorkflowState, now: float, around: Surroundings) -> Events:
    """The event for unstored values that were lost with another coordinator's cluster, or an
    earlier life of this one."""
    return [] if around.live else lose(state, unstored(state), now)


def on_start(
    state: WorkflowState, message: msg.Start, now: float, around: Surroundings
) -> Decision:
    if state.status is not WorkflowStatus.PENDING:
        return Decision([])
    return Decision([ev.WorkflowStarted(at=now)])


def on_release(
    state: WorkflowState, message: msg.Release, now: float, around: Surroundings
) -> Decision:
    if state.status not in ACTIVE or state.released:
        return Decision([])
    return Decision([ev.WorkflowReleased(at=now, error=message.error)])


# -- applied -------------------------------------------------------------------------------


def evolve_lifecycle(state: Lifecycle, event: ev.Event) -> None:
    """Apply one event to the lifecycle, in place. `evolve` does this and more; callers without the
    tasks use this alone."""
    applier = APPLIERS.get(type(event))
    if applier is not None:
        applier(state, event)


def apply_workflow_submitted(state: Lifecycle, event: ev.WorkflowSubmitted) -> None:
    state.status = WorkflowStatus.PENDING
    state.holder = event.holder
    state.submitted_at = event.at
    state.metadata = event.metadata
    state.request_id = event.request_id
    state.name = event.plan.name
    state.kind = FUNCTION if event.plan.runs_body else DAG
    state.tags = event.tags
    state.parent = event.parent
    state.plan_digest = event.plan.digest
    state.environment = event.plan.environment
    state.timeout = event.timeout


def apply_workflow_claimed(state: Lifecycle, event: ev.WorkflowClaimed) -> None:
    change_holder(state, event.holder)


def apply_workflow_started(state: Lifecycle, event: ev.WorkflowStarted) -> None:
    state.status = WorkflowStatus.RUNNING
    state.deadline = None if state.timeout is None else event.at + state.timeout
    if state.started_at is None:
        state.started_at = event.at


def apply_workflow_resumed(state: Lifecycle, event: ev.WorkflowResumed) -> None:
    if state.holder != event.holder or state.released:
        change_holder(state, event.holder)
    if event.change is not None:
        change_environment(state, event.change)
    if event.request_id:
        state.resume_id = event.request_id
    state.status = WorkflowStatus.PENDING
    state.ended_at = None
    state.error = None
    state.failed_task = None
    state.deadline = None
    state.cancel_requested = False


def change_environment(state: Lifecycle, change: EnvironmentChange) -> None:
    if change.environment is not None:
        state.environment = change.environment
    # A new dict: attempts in flight share the old one.
    state.functions = {**state.functions, **change.functions}
    given = {
        task_id: {**state.ray_options.get(task_id, {}), **options}
        for task_id, options in change.ray_options.items()
    }
    state.ray_options = {**state.ray_options, **given}


def change_holder(state: Lifecycle, holder: str) -> None:
    state.holder = holder
    state.epoch += 1
    state.released = False
    state.error = None


def apply_workflow_canceled(state: Lifecycle, event: ev.WorkflowCanceled) -> None:
    settle(state, WorkflowStatus.CANCELED, event.at)


def apply_cancel_requested(state: Lifecycle, event: ev.CancelRequested) -> None:
    state.cancel_requested = True


def apply_workflow_succeeded(state: Lifecycle, event: ev.WorkflowSucceeded) -> None:
    state.output = event.output
    settle(state, WorkflowStatus.SUCCESSFUL, event.at)


def apply_workflow_failed(state: Lifecycle, event: ev.WorkflowFailed) -> None:
    state.error = event.error
    state.failed_task = event.task_id
    settle(state, WorkflowStatus.FAILED, event.at)


def apply_workflow_timed_out(state: Lifecycle, event: ev.WorkflowTimedOut) -> None:
    state.error = ErrorInfo(
        type_name=TIMED_OUT, message=f"it ran for more than its timeout of {state.timeout} s"
    )
    settle(state, WorkflowStatus.FAILED, event.at)


def apply_workflow_released(state: Lifecycle, event: ev.WorkflowReleased) -> None:
    state.released = True
    state.error = event.error


def settle(state: Lifecycle, status: WorkflowStatus, at: float) -> None:
    state.status = status
    state.ended_at = at
    state.deadline = None
    state.ending = None


def apply_tags_set(state: Lifecycle, event: ev.TagsSet) -> None:
    state.tags = event.tags


def apply_signal_received(state: Lifecycle, event: ev.SignalReceived) -> None:
    keep(state, event.name, event.signal_id, event.value)


def apply_signal_taken(state: Lifecycle, event: ev.SignalTaken) -> None:
    take(state, event.name, event.signal_id)


def apply_signal_acknowledged(state: Lifecycle, event: ev.SignalAcknowledged) -> None:
    take(state, event.name, event.signal_id)


APPLIERS: dict[type[ev.Event], Callable[[Lifecycle, Any], None]] = {
    ev.WorkflowSubmitted: apply_workflow_submitted,
    ev.WorkflowClaimed: apply_workflow_claimed,
    ev.WorkflowStarted: apply_workflow_started,
    ev.WorkflowResumed: apply_workflow_resumed,
    ev.WorkflowCanceled: apply_workflow_canceled,
    ev.CancelRequested: apply_cancel_requested,
    ev.WorkflowSucceeded: apply_workflow_succeeded,
    ev.WorkflowFailed: apply_workflow_failed,
    ev.WorkflowTimedOut: apply_workflow_timed_out,
    ev.WorkflowReleased: apply_workflow_released,
    ev.TagsSet: apply_tags_set,
    ev.SignalReceived: apply_signal_received,
    ev.SignalTaken: apply_signal_taken,
    ev.SignalAcknowledged: apply_signal_acknowledged,
    ev.TaskSucceeded: apply_messages,
    ev.TaskContinued: apply_messages,
    ev.StepsAsked: apply_messages,
    ev.StepsEnded: apply_messages,
    ev.Delivered: apply_delivered,
    ev.WorkflowEnding: apply_workflow_ending,
}
