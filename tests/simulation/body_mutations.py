"""Broken rules for bodies of durable functions, registered beside the other mutations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ray_workflows._coordinator.starting import Starter
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine import attempts as attempts_module
from ray_workflows._engine import bodies as bodies_module
from ray_workflows._engine import decide as decide_module
from ray_workflows._engine import evolve as evolve_module
from ray_workflows._engine import frames as frames_module
from ray_workflows._engine import snapshots
from ray_workflows._engine.state import Phase
from ray_workflows._executor import inline as inline_module
from ray_workflows._executor.in_order import InOrder
from ray_workflows._executor.inline import InlineExecutor
from ray_workflows._executor.scheduling import in_flight as in_flight_module
from ray_workflows._executor.worker.bodies import host as host_module
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import GiveOutcome
from ray_workflows._model.steps import History, StepRecord
from tests.simulation import monitor
from tests.simulation.mutations import breaks
from tests.support import states

#: What a wrong history of a body may show as.
WRONG = ("replay of bodies", "given", "output", "commit once", "ran again", "stuck", "unexpected")


def breaks_bodies(*kinds: str, **trouble: float) -> Any:
    return breaks(*kinds, world="bodies", **trouble)


def applied_as(patch: Any, event: type[ev.Event], apply: Any) -> None:
    patch.setitem(evolve_module.APPLIERS, event, apply)


def after_applying(event: type[ev.Event], change: Callable[[Any, Any, Any], None]) -> Any:
    """Applies an event as always, and then changes the state."""
    original = evolve_module.APPLIERS[event]

    def apply(state: Any, event: Any, deltas: Any) -> None:
        original(state, event, deltas)
        change(state, event, deltas)

    return apply


# -- what a body asks for ------------------------------------------------------------------


class AnyOrder(InOrder[Any]):
    """Lets all through, as it comes."""

    def add(self, number: int, item: Any) -> list[Any]:
        self.next = max(self.next, number + 1)
        return [item]


@breaks_bodies("commit once", "invariant", *WRONG, report_twice=0.6)
def progress_is_applied_twice(patch: Any) -> None:
    patch.setattr(inline_module, "InOrder", AnyOrder)
    patch.setattr(bodies_module, "without_known", lambda *arguments: arguments[-1])


@breaks_bodies("replay of bodies", until=30.0, worker_crash=0.4)
def progress_comes_in_any_order(patch: Any) -> None:
    patch.setattr(inline_module, "InOrder", AnyOrder)


@breaks_bodies("stale report")
def progress_of_earlier_attempts_counts(patch: Any) -> None:
    original = bodies_module.on_body_progress

    def on_body_progress(state: Any, message: msg.BodyProgress, now: float) -> Any:
        task = state.tasks.get(message.task)
        if task is not None and task.phase is Phase.ACTIVE and message.attempt <= task.attempts:
            current = msgspec.structs.replace(message, attempt=task.attempts + 1, epoch=state.epoch)
            events = original(state, current, now)
            return [msgspec.structs.replace(each, attempt=message.attempt) for each in events]
        return original(state, message, now)

    patch.setitem(decide_module.REPORTED, msg.BodyProgress, on_body_progress)
    patch.setattr(InlineExecutor, "told", told_always)


def told_always(self: Any, flight: Any, number: int, progress: Any) -> bool:
    """Also of attempts that have ended."""
    ready = flight.news.add(number, progress)
    if ready:
        self.report(flight.request.incarnation, ready)
    return True


@breaks_bodies("invariant", "snapshot", "orphan", "stuck")
def frames_of_canceled_steps_stay_open(patch: Any) -> None:
    def close_step(state: Any, body: Any, path: str, deltas: Any) -> None:
        body.frames.pop(path, None)

    patch.setattr(bodies_module, "close_step", close_step)


@breaks_bodies("replay of bodies", "commit once", *WRONG)
def marks_are_not_recorded(patch: Any) -> None:
    applied = bodies_module.apply_steps_asked

    def apply_steps_asked(state: Any, event: Any, deltas: Any) -> None:
        applied(state, msgspec.structs.replace(event, marks=()), deltas)

    applied_as(patch, ev.StepsAsked, apply_steps_asked)


@breaks_bodies("stuck", "invariant", "unexpected")
def steps_are_opened_and_not_started(patch: Any) -> None:
    patch.setattr(bodies_module, "activate", lambda state, task, at: None)


# -- what it is given ----------------------------------------------------------------------


@breaks_bodies("given", "replay of bodies")
def outcomes_are_given_in_another_order(patch: Any) -> None:
    original = Workflow.history

    def history(self: Workflow, task: Any) -> History:
        found = original(self, task)
        return msgspec.structs.replace(found, outcomes=tuple(reversed(found.outcomes)))

    patch.setattr(Workflow, "history", history)


#: Where nothing but workers has trouble: then a body that stays is given what is recorded.
QUIET: dict[str, float] = {
    "until": 20.0,
    **dict.fromkeys(
        (
            *("crash_after_step", "crash_within_step", "pause", "zombie", "commit_lost", "hang"),
            *("commit_unsaid", "commit_partial", "commit_ambiguous", "commit_late", "read_fails"),
            *("corrupt", "hang_forever", "outage", "found_corruption", "skew", "clock_step"),
            *("storage_clock_step", "report_late"),
        ),
        0.0,
    ),
}


@breaks_bodies("given", "stuck", **QUIET)
def outcomes_are_recorded_and_not_given(patch: Any) -> None:
    original = Starter.carry_out

    def carry_out(self: Starter, workflow: Any, command: Any) -> None:
        if not isinstance(command, GiveOutcome):
            original(self, workflow, command)

    patch.setattr(Starter, "carry_out", carry_out)


@breaks_bodies("given", **QUIET)
def an_attempt_that_has_not_begun_is_given_nothing(patch: Any) -> None:
    original = InlineExecutor.give

    def give(self: Any, incarnation: str, task: int, number: int, outcome: Any) -> None:
        flight = self.flights.get((incarnation, task))
        if flight is not None and flight.body is None:
            flight.given += number == flight.given
        else:
            original(self, incarnation, task, number, outcome)

    patch.setattr(InlineExecutor, "give", give)


@breaks_bodies("given", "replay of bodies", *WRONG)
def the_time_of_an_outcome_is_that_of_the_attempt(patch: Any) -> None:
    original = Workflow.history

    def history(self: Workflow, task: Any) -> History:
        found = original(self, task)
        outcomes = tuple(
            msgspec.structs.replace(each, at=each.at + task.attempts) for each in found.outcomes
        )
        return msgspec.structs.replace(found, outcomes=outcomes)

    patch.setattr(Workflow, "history", history)


@breaks_bodies("replay of bodies")
def bodies_begin_anew_each_time(patch: Any) -> None:
    original = Workflow.history

    def history(self: Workflow, task: Any) -> History:
        return msgspec.structs.replace(original(self, task), began=0.0)

    patch.setattr(Workflow, "history", history)


# -- attempts that wait --------------------------------------------------------------------


@breaks_bodies("stuck", "invariant", "start")
def a_suspension_forgets_what_came_meanwhile(patch: Any) -> None:
    def apply(state: Any, event: Any, deltas: Any) -> None:
        task = state.tasks[event.task]
        task.attempts += 1
        task.last_end = ""
        bodies_module.end_wait(state, task)
        task.phase = Phase.AWAITING_STEPS

    applied_as(patch, ev.AttemptSuspended, apply)


@breaks_bodies("stuck", "invariant")
def nothing_wakes_a_body_that_waits(patch: Any) -> None:
    original = frames_module.give_outcome

    def give_outcome(state: Any, task: Any, *arguments: Any) -> None:
        waits = task.phase is Phase.AWAITING_STEPS
        if waits:
            task.phase = Phase.WAITING
        original(state, task, *arguments)
        if waits:
            task.phase = Phase.AWAITING_STEPS

    patch.setattr(frames_module, "give_outcome", give_outcome)


@breaks_bodies("repeated", "idle", "orphan", "stale report", "start", "stuck", "invariant")
def a_suspended_attempt_keeps_its_number(patch: Any) -> None:
    def change(state: Any, event: Any, deltas: Any) -> None:
        state.tasks[event.task].attempts -= 1

    applied_as(patch, ev.AttemptSuspended, after_applying(ev.AttemptSuspended, change))


# -- errors --------------------------------------------------------------------------------


@breaks_bodies("output", "settled", "stuck", "unexpected")
def errors_of_steps_fail_the_workflow(patch: Any) -> None:
    def after_failure(state: Any, task: Any, error: Any, now: float) -> Any:
        if task.options.catch_exceptions:
            return attempts_module.caught(state, task, None, error, now)
        if state.status == "FAILED":
            return []
        for frame in state.frames_around(task.frame):
            if frame.wraps:
                return attempts_module.caught(state, task, frame, error, now)
        return [ev.WorkflowFailed(at=now, error=error, task_id=task.task_id)]

    patch.setattr(attempts_module, "after_failure", after_failure)


@breaks_bodies("output")
def errors_that_a_step_caught_are_raised_in_the_body(patch: Any) -> None:
    original = frames_module.give_outcome

    def give_outcome(
        state: Any, task: Any, path: str, outcome: Any, at: float, deltas: Any
    ) -> None:
        bare = msgspec.structs.replace(outcome, wrapped=False)
        original(state, task, path, bare, at, deltas)

    patch.setattr(frames_module, "give_outcome", give_outcome)


@breaks_bodies("stuck", "invariant", *WRONG)
def going_back_keeps_what_followed(patch: Any) -> None:
    def discard_after(state: Any, body: Any, index: int, deltas: Any) -> None:
        path = body.outcomes[index].path
        body.steps[path] = StepRecord(body.steps[path].step, again=True)
        del body.outcomes[index]

    patch.setattr(bodies_module, "discard_after", discard_after)


@breaks_bodies("stuck", "retries", *WRONG)
def a_body_never_goes_back(patch: Any) -> None:
    patch.setattr(bodies_module, "go_back", lambda state, task, deltas: None)


@breaks_bodies("invariant", *WRONG)
def what_was_canceled_and_had_ended_is_asked_for_again(patch: Any) -> None:
    """With the outcome that it has."""
    original = bodies_module.discard_after

    def discard_after(state: Any, body: Any, index: int, deltas: Any) -> None:
        canceled = {
            path
            for path, record in body.steps.items()
            if record.canceled is not None and record.canceled > index
        }
        original(state, body, index, deltas)
        for path in canceled & set(body.steps):
            body.steps[path] = StepRecord(body.steps[path].step, again=True)

    patch.setattr(bodies_module, "discard_after", discard_after)


@breaks_bodies("retries", "stuck")
def each_outcome_gives_a_new_budget(patch: Any) -> None:
    original = frames_module.give_outcome

    def give_outcome(state: Any, task: Any, *arguments: Any) -> None:
        original(state, task, *arguments)
        task.charged = task.preempted = task.setbacks = 0

    patch.setattr(frames_module, "give_outcome", give_outcome)


# -- the end -------------------------------------------------------------------------------


@breaks_bodies("invariant", "replay", "unexpected", "stuck", "orphan")
def the_end_of_a_body_leaves_its_steps(patch: Any) -> None:
    def end_body(state: Any, number: int, deltas: Any) -> None:
        state.bodies.pop(number, None)

    patch.setattr(frames_module, "end_body", end_body)
    patch.setattr(evolve_module, "end_body", end_body)


@breaks_bodies("invariant", "replay", "unexpected", "orphan", "stuck")
def a_canceled_body_leaves_its_steps(patch: Any) -> None:
    """Those of a body inside of a frame that is closed."""
    original = frames_module.close_frame

    def close_frame(state: Any, frame: Any, keep: Any, deltas: Any) -> None:
        inner = range(frame.first, frame.first + len(frame.plan.tasks))
        hidden = {number: state.bodies.pop(number) for number in inner if number in state.bodies}
        original(state, frame, keep, deltas)
        del hidden

    for module in (frames_module, bodies_module, evolve_module):
        patch.setattr(module, "close_frame", close_frame)


# -- hosts ---------------------------------------------------------------------------------

#: How a body that does not do what it did shows where its host is real.
DIFFERS = ("innocent", "stuck", "output", "commit once", "unexpected")


@breaks(*DIFFERS, world="hosts", until=30.0, call_late=0.4, worker_dies=0.2)
def the_executor_takes_progress_in_any_order(patch: Any) -> None:
    patch.setattr(in_flight_module, "InOrder", AnyOrder)


@breaks(*DIFFERS, world="hosts", until=30.0, call_late=0.4)
def hosts_take_outcomes_in_any_order(patch: Any) -> None:
    patch.setattr(host_module, "InOrder", AnyOrder)


@breaks(*DIFFERS, world="hosts", until=30.0, worker_dies=0.2)
def the_executor_sends_bodies_without_their_outcomes(patch: Any) -> None:
    original = Workflow.history

    def history(self: Workflow, task: Any) -> History:
        return msgspec.structs.replace(original(self, task), outcomes=())

    patch.setattr(Workflow, "history", history)


# -- snapshots -----------------------------------------------------------------------------


@breaks_bodies("snapshot")
def snapshots_have_no_bodies(patch: Any) -> None:
    original = snapshots.save_tasks
    patch.setattr(
        snapshots,
        "save_tasks",
        lambda state: msgspec.structs.replace(original(state), bodies={}),
    )


@breaks_bodies("snapshot")
def snapshots_forget_the_step_that_failed(patch: Any) -> None:
    original = snapshots.restore

    def restore(saved: Any) -> Any:
        state = original(saved)
        for body in state.bodies.values():
            body.failed = ""
        return state

    patch.setattr(snapshots, "restore", restore)
    patch.setattr(monitor, "restore", restore)
    patch.setattr(states, "restore", restore)
