"""`decide`: inputs become events. It judges and changes nothing; `evolve` does the reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_workflows._engine import attempts, lifecycle, outbox, waits
from ray_workflows._engine.decision import Decision, Events, Surroundings
from ray_workflows._engine.state import Lifecycle, WorkflowState
from ray_workflows._model import messages as inp

#: A coordinator that nobody shares the storage with, and that has room.
ALONE = Surroundings()


def decide(
    state: WorkflowState, input: inp.Input, now: float, around: Surroundings = ALONE
) -> Decision:
    """The events that follow from an input, and the answer to it.

    Stale and duplicate reports change nothing. ``now`` is in seconds since 1970.
    """
    handler = REPORTED.get(type(input))
    if handler is not None:
        decision = Decision(handler(state, input, now))
    else:
        decision = ASKED[type(input)](state, input, now, around)
    return outbox.keep_end(state, decision, now, around) if decision.events else decision


#: What is asked, and depends on no task of the workflow.
ASKED_OF_LIFECYCLE: dict[
    type[inp.Input], Callable[[Lifecycle, Any, float, Surroundings], Decision]
] = {
    inp.Cancel: lifecycle.on_cancel,
    inp.Signal: lifecycle.on_signal,
    inp.FindSignal: lifecycle.on_find_signal,
    inp.SetTags: lifecycle.on_set_tags,
    inp.AcknowledgeSignals: lifecycle.on_acknowledge_signals,
}

#: What is asked, or done by a coordinator: depends on what is around the workflow.
ASKED: dict[type[inp.Input], Callable[[WorkflowState, Any, float, Surroundings], Decision]] = {
    **ASKED_OF_LIFECYCLE,
    inp.Submit: lifecycle.on_submit,
    inp.Resume: lifecycle.on_resume,
    inp.Claim: lifecycle.on_claim,
    inp.Start: lifecycle.on_start,
    inp.Release: lifecycle.on_release,
}

#: What is heard of attempts and of time.
REPORTED: dict[type[inp.Input], Callable[[WorkflowState, Any, float], Events]] = {
    inp.Wake: waits.on_wake,
    inp.Delivered: outbox.on_delivered,
    inp.AttemptRuns: attempts.on_attempt_runs,
    inp.FoundUnplaceable: attempts.on_found_unplaceable,
    inp.AttemptReturned: attempts.on_attempt_returned,
    inp.AttemptReturnedPlan: attempts.on_attempt_returned_plan,
    inp.AttemptRaised: attempts.on_attempt_raised,
    inp.AttemptCrashed: attempts.on_attempt_crashed,
    inp.AttemptLostInput: attempts.on_attempt_lost_input,
    inp.AttemptLostStorage: attempts.on_attempt_lost_storage,
    inp.AttemptFoundCorruption: attempts.on_attempt_found_corruption,
}
