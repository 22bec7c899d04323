"""`decide` turns messages into events, and changes nothing. `evolve` applies events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_workflows._engine import attempts, bodies, lifecycle, outbox, waits
from ray_workflows._engine.decision import Decision, Events, Surroundings
from ray_workflows._engine.state import Lifecycle, WorkflowState
from ray_workflows._model import messages as msg

#: The surroundings of a sole coordinator on its storage, below its limits.
ALONE = Surroundings()


def decide(
    state: WorkflowState, message: msg.Message, now: float, around: Surroundings = ALONE
) -> Decision:
    """The events that follow from a message, and the answer to it.

    Stale and duplicate reports change nothing. ``now`` is in seconds since 1970.
    """
    handler = REPORTED.get(type(message))
    if handler is not None:
        decision = Decision(handler(state, message, now))
    else:
        decision = ASKED[type(message)](state, message, now, around)
    return outbox.keep_end(state, decision, now, around) if decision.events else decision


#: Rules for requests that depend on no task of the workflow.
ASKED_OF_LIFECYCLE: dict[
    type[msg.Message], Callable[[Lifecycle, Any, float, Surroundings], Decision]
] = {
    msg.Cancel: lifecycle.on_cancel,
    msg.Signal: lifecycle.on_signal,
    msg.FindSignal: lifecycle.on_find_signal,
    msg.SetTags: lifecycle.on_set_tags,
    msg.AcknowledgeSignals: lifecycle.on_acknowledge_signals,
}

#: Rules for requests, and for actions of a coordinator. They depend on the surroundings.
ASKED: dict[type[msg.Message], Callable[[WorkflowState, Any, float, Surroundings], Decision]] = {
    **ASKED_OF_LIFECYCLE,
    msg.Submit: lifecycle.on_submit,
    msg.Resume: lifecycle.on_resume,
    msg.Claim: lifecycle.on_claim,
    msg.Start: lifecycle.on_start,
    msg.Release: lifecycle.on_release,
}

#: Rules for reports of attempts, and for time.
REPORTED: dict[type[msg.Message], Callable[[WorkflowState, Any, float], Events]] = {
    msg.Wake: waits.on_wake,
    msg.Delivered: outbox.on_delivered,
    msg.AttemptRuns: attempts.on_attempt_runs,
    msg.FoundUnplaceable: attempts.on_found_unplaceable,
    msg.BodyProgress: bodies.on_body_progress,
    msg.AttemptSuspended: bodies.on_attempt_suspended,
    msg.AttemptReturned: attempts.on_attempt_returned,
    msg.AttemptReturnedPlan: attempts.on_attempt_returned_plan,
    msg.AttemptRaised: attempts.on_attempt_raised,
    msg.AttemptCrashed: attempts.on_attempt_crashed,
    msg.AttemptLostInput: attempts.on_attempt_lost_input,
    msg.AttemptLostStorage: attempts.on_attempt_lost_storage,
    msg.AttemptFoundCorruption: attempts.on_attempt_found_corruption,
}
