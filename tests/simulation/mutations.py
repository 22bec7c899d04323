"""Broken engines, loops and storages: each breaks one promise, and the simulation has to see it.

A mutation is a function that patches, given pytest's `MonkeyPatch` or anything that has its
``setattr`` and ``setitem``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

from ray_workflows._codec.journal import NO_LINK
from ray_workflows._coordinator import activation as activation_module
from ray_workflows._coordinator import active as active_module
from ray_workflows._coordinator import loop as loop_module
from ray_workflows._coordinator.activation import Activation
from ray_workflows._coordinator.admission import Admission
from ray_workflows._coordinator.clock import SteadyClock
from ray_workflows._coordinator.commits import Commits
from ray_workflows._coordinator.eviction import Eviction
from ray_workflows._coordinator.failover import Failover
from ray_workflows._coordinator.holdings import Holdings
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.requests import Asked
from ray_workflows._coordinator.starting import Starter
from ray_workflows._coordinator.workflow import Workflow, answer
from ray_workflows._engine import attempts as attempts_module
from ray_workflows._engine import commands as commands_module
from ray_workflows._engine import decide as decide_module
from ray_workflows._engine import evolve as evolve_module
from ray_workflows._engine import frames as frames_module
from ray_workflows._engine import lifecycle as lifecycle_module
from ray_workflows._engine import signals as signals_module
from ray_workflows._engine import waits as waits_module
from ray_workflows._engine.state import Phase, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted
from ray_workflows._model.catalog import JournalEntry
from ray_workflows._model.commands import CancelAttempt, ReleaseValue, StartAttempt, WakeAt
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.base import CommitOutcome
from ray_workflows.storage.memory import MemoryJournals

Patch = Callable[[Any], None]


class Mutation(msgspec.Struct):
    """``kinds``: the violations it may show as. ``trouble`` and ``crowded``: as for `World`.
    ``world``: in which kind of world it shows."""

    patch: Patch
    kinds: tuple[str, ...]
    trouble: dict[str, float]
    crowded: bool
    world: str = "engine"


MUTATIONS: dict[str, Mutation] = {}


def breaks(
    *kinds: str, crowded: bool = False, world: str = "engine", **trouble: float
) -> Callable[[Patch], Patch]:
    """Register a mutation, with the kinds of violation it may show as and where to look. What
    would be stuck in the end may show sooner as idle."""
    if "stuck" in kinds:
        kinds = (*kinds, "idle")

    def register(patch: Patch) -> Patch:
        MUTATIONS[patch.__name__] = Mutation(patch, kinds, trouble, crowded, world)
        return patch

    return register


def resumed_in(steps: Any, scope: Callable[[], AbstractContextManager[None]]) -> Any:
    """A run of a job whose part after each piece of blocking work is done in a scope."""
    work = next(steps)
    while True:
        try:
            value = yield work
        except Exception as error:
            move, value = steps.throw, error
        else:
            move = steps.send
        with scope():
            try:
                work = move(value)
            except StopIteration as end:
                return end.value


# -- the engine ----------------------------------------------------------------------------


@breaks("stale report")
def reports_of_earlier_attempts_count(patch: Any) -> None:
    def reported_task(state: Any, report: msg.AttemptReport) -> Any:
        task = state.tasks.get(report.task)
        if task is None or task.phase is not Phase.ACTIVE or report.epoch != state.epoch:
            return None
        if state.status is WorkflowStatus.CANCELED or state.released:
            return None
        return task

    patch.setattr(attempts_module, "reported_task", reported_task)


class Altered:
    """A state that says something else in some of its attributes."""

    def __init__(self, state: Any, **says: Any) -> None:
        self.__dict__.update(state=state, **says)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)


@breaks("stale report", until=30.0, found_corruption=0.2, report_twice=0.6, slowness=1.0)
def reports_of_earlier_epochs_count(patch: Any) -> None:
    original = attempts_module.reported_task

    patch.setattr(
        attempts_module,
        "reported_task",
        lambda state, report: original(Altered(state, epoch=report.epoch), report),
    )


@breaks("commit once", report_twice=0.5)
def results_are_committed_twice(patch: Any) -> None:
    """A task that has its result takes another one."""

    def on_attempt_returned(state: Any, input: msg.AttemptReturned, now: float) -> Any:
        task = state.tasks.get(input.task)
        if task is None or task.phase is not Phase.SUCCEEDED:
            return original(state, input, now)
        return [
            ev.TaskSucceeded(at=now, task=task.number, attempt=input.attempt, value=input.value)
        ]

    original = attempts_module.on_attempt_returned
    patch.setitem(decide_module.REPORTED, msg.AttemptReturned, on_attempt_returned)


@breaks("start")
def recovery_starts_what_has_succeeded(patch: Any) -> None:
    def attempt_request(self: Workflow, command: StartAttempt) -> Any:
        made = original(self, command)
        for number in made.upstream if made is not None else ():
            if self.state.tasks[number].phase is Phase.SUCCEEDED:
                return msgspec.structs.replace(made, task=number)
        return made

    original = Workflow.attempt_request
    patch.setattr(Workflow, "attempt_request", attempt_request)


@breaks("retries")
def charged_failures_are_forgotten(patch: Any) -> None:
    def apply_attempt_failed(state: Any, event: ev.AttemptFailed, deltas: Any) -> None:
        original(state, event, deltas)
        state.tasks[event.task].charged = 0

    original = evolve_module.apply_attempt_failed
    patch.setitem(evolve_module.APPLIERS, ev.AttemptFailed, apply_attempt_failed)


@breaks("names")
def names_are_not_determined_by_the_journal(patch: Any) -> None:
    numbers = itertools.count()
    for module in (lifecycle_module, attempts_module):
        patch.setattr(
            module,
            "assign_task_ids",
            lambda counters, bases: tuple(f"{base}_{next(numbers)}" for base in bases),
        )


@breaks("released")
def values_are_released_after_their_first_consumer(patch: Any) -> None:
    def forget_inputs(state: Any, task: Any, deltas: Any) -> None:
        for number in task.upstream:
            outcome = state.tasks[number].outcome
            if outcome is not None and outcome.value is not None:
                deltas.append(ReleaseValue(outcome.value))
        original(state, task, deltas)

    original = frames_module.forget_inputs
    patch.setattr(frames_module, "forget_inputs", forget_inputs)


@breaks("stuck")
def only_the_first_timer_goes_off(patch: Any) -> None:
    """A workflow has one alarm, and nothing sets it again."""
    for module in (loop_module, activation_module):
        patch.setattr(module, "next_wake", lambda state: None)


@breaks("stuck")
def recovery_wakes_for_no_timer(patch: Any) -> None:
    def commands(state: Any) -> Any:
        return [command for command in original(state) if not isinstance(command, WakeAt)]

    original = commands_module.commands
    patch.setattr(activation_module, "commands", commands)
    for module in (loop_module, activation_module):
        patch.setattr(module, "next_wake", lambda state: None)


@breaks("invariant", "snapshot", "unexpected", until=20.0, value_lost=0.5, worker_crash=0.4)
def resume_forgets_that_inputs_were_lost(patch: Any) -> None:
    def apply_workflow_resumed(state: Any, event: ev.WorkflowResumed, deltas: Any) -> None:
        failed = [task for task in state.tasks.values() if task.phase is Phase.FAILED]
        original(state, event, deltas)
        for task in failed:
            task.phase = Phase.ACTIVE
            state.active[task.number] = None

    original = evolve_module.apply_workflow_resumed
    patch.setitem(evolve_module.APPLIERS, ev.WorkflowResumed, apply_workflow_resumed)


@breaks("invariant", "stuck", crowded=True, until=30.0, worker_crash=0.5)
def pending_workflows_do_not_fail(patch: Any) -> None:
    def uncaught(state: Any, task: Any, error: Any, now: float) -> Any:
        if not state.running:
            return []
        return original(state, task, error, now)

    original = attempts_module.uncaught
    patch.setattr(attempts_module, "uncaught", uncaught)


@breaks("settled")
def errors_in_failed_workflows_are_judged_as_in_running_ones(patch: Any) -> None:
    def on_attempt_raised(state: Any, input: msg.AttemptRaised, now: float) -> Any:
        says = {} if state.status is not WorkflowStatus.FAILED else {"status": "RUNNING"}
        return original(Altered(state, **says), input, now)

    original = attempts_module.on_attempt_raised
    patch.setitem(decide_module.REPORTED, msg.AttemptRaised, on_attempt_raised)


@breaks("signals")
def taken_signals_are_kept(patch: Any) -> None:
    def take(state: Any, name: str, signal_id: str) -> Any:
        return state.signals[name][signal_id]

    patch.setattr(evolve_module, "take", take)
    patch.setattr(lifecycle_module, "take", take)


@breaks("signals", "replies")
def repeated_signals_are_others(patch: Any) -> None:
    patch.setattr(lifecycle_module, "is_known", lambda state, name, signal_id: False)


@breaks("signals")
def the_newest_signal_is_taken_first(patch: Any) -> None:
    def deliveries(state: Any) -> Any:
        found = list(original(state))
        for task, name, signal_id, value in found:
            kept = list(state.signals.get(name, {}).items())
            newest = kept[-1] if len(found) == 1 and kept else (signal_id, value)
            yield task, name, *newest

    original = waits_module.deliveries
    patch.setattr(waits_module, "deliveries", deliveries)


@breaks("stuck")
def signals_that_came_too_early_are_not_looked_at(patch: Any) -> None:
    patch.setattr(commands_module, "can_deliver", lambda state: False)
    patch.setattr(signals_module, "can_deliver", lambda state: False)


@breaks("stuck")
def what_took_a_signal_is_made_again(patch: Any) -> None:
    """The result of a continuation is not stored, if it need not, and the signal is gone."""

    def checkpoints(self: WorkflowState, task: Any) -> bool:
        return task.checkpoint or (task.is_output and task.frame.parent is None)

    patch.setattr(WorkflowState, "checkpoints", checkpoints)


# -- the loop ------------------------------------------------------------------------------


@breaks("start", "replies")
def attempts_start_before_the_commit(patch: Any) -> None:
    def decide_on(self: Loop, workflow: Workflow, inputs: Any) -> None:
        original(self, workflow, inputs)
        if workflow.pending is not None:
            for delta in workflow.pending.deltas:
                self.starter.carry_out(workflow, delta)

    original = Loop.decide_on
    patch.setattr(Loop, "decide_on", decide_on)


@breaks("start", "durable", "one truth", "stuck", "fence", "observers")
def stale_is_taken_for_success(patch: Any) -> None:
    patch.setattr(Loop, "overtaken", Loop.applied)


@breaks("start", "durable", "one truth", "stuck", "observers")
def ambiguous_is_taken_for_success(patch: Any) -> None:
    patch.setattr(Commits, "settle", lambda self, workflow: self.applied(workflow))


@breaks("durable", "replies", "one truth", "start", "stuck", commit_unsaid=0.2, commit_lost=0.2)
def ambiguous_is_taken_for_failure(patch: Any) -> None:
    """The inputs are decided on again, by a new commit, on the state they had led to."""

    def init(self: Loop, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)

        def settle(workflow: Workflow) -> None:
            pending, workflow.pending = workflow.pending, None
            assert pending is not None
            workflow.inbox.extendleft(reversed(pending.messages))
            workflow.covered += len(pending.messages)
            self.touch(workflow)

        self.commits.settle = settle  # type: ignore[method-assign, assignment]

    original = Loop.__init__
    patch.setattr(Loop, "__init__", init)


@breaks("orphan", commit_late=0.5, worker_crash=0.3, value_lost=0.8, slowness=2.0, until=30.0)
def a_late_commit_leaves_attempts_that_nobody_wants(patch: Any) -> None:
    """What is read again is started, and what is over is not stopped."""

    def add(self: Starter, workflow: Workflow, deltas: Any) -> None:
        if reading:
            deltas = [delta for delta in deltas if not isinstance(delta, CancelAttempt)]
        original(self, workflow, deltas)

    def continue_with(self: Activation, workflow: Workflow, recovered: Any) -> None:
        reading.append(True)
        try:
            go_on(self, workflow, recovered)
        finally:
            reading.pop()

    reading: list[bool] = []
    original, go_on = Starter.add, Activation.continue_with

    patch.setattr(Starter, "add", add)
    patch.setattr(Activation, "continue_with", continue_with)


@breaks("durable")
def submit_is_acknowledged_before_the_commit(patch: Any) -> None:
    patch.setattr(Commits, "add", answering_first(lambda asked, value: isinstance(value, Accepted)))


def answering_first(which: Callable[[Asked, Any], bool]) -> Any:
    """`Commits.add`, by which some answers go out before the commit is durable."""

    def add(self: Commits, workflow: Workflow, pending: Any) -> None:
        for asked, value in pending.answers:
            if which(asked, value):
                answer(asked.reply, value)
        pending.answers = [pair for pair in pending.answers if not which(*pair)]
        original(self, workflow, pending)

    original = Commits.add
    return add


@breaks("stuck")
def what_is_left_to_start_is_forgotten(patch: Any) -> None:
    def start(self: Starter) -> None:
        original(self)
        self.waiting.clear()

    original = Starter.start
    patch.setattr(Starter, "start", start)


@breaks("start", until=30.0, commit_unsaid=0.3, pause=0.02, zombie=0.8, slowness=1.0)
def what_is_doubtful_starts_all_the_same(patch: Any) -> None:
    """A commit found by reading starts what followed, whatever else was read."""

    def applied(self: Loop, workflow: Workflow) -> None:
        assert workflow.pending is not None
        deltas = workflow.pending.deltas
        original(self, workflow)
        for delta in deltas:
            self.starter.carry_out(workflow, delta)

    original = Loop.applied
    patch.setattr(Loop, "applied", applied)


@breaks("repeated", "start")
def reports_are_lost_when_the_journal_had_moved_on(patch: Any) -> None:
    def overtaken(self: Loop, workflow: Workflow) -> None:
        assert workflow.pending is not None
        inputs = workflow.pending.messages
        inputs[:] = [each for each in inputs if isinstance(each, Asked)]
        original(self, workflow)

    original = Loop.overtaken
    patch.setattr(Loop, "overtaken", overtaken)


@breaks("repeated", until=30.0, pause=0.02, outage=0.1, read_fails=0.1)
def attempts_that_ended_start_again(patch: Any) -> None:
    def report(self: Loop, incarnation: str, reports: list[msg.AttemptReport]) -> None:
        workflow = self.active.by_incarnation.get(incarnation)
        if workflow is not None:
            for report in reports:
                workflow.flying.pop(report.task, None)
        original(self, incarnation, reports)

    original = Loop.report
    patch.setattr(Loop, "report", report)


@breaks("lease", until=30.0, pause=0.01, outage=0.2, read_fails=0.1, slowness=4.0)
def attempts_start_without_a_lease(patch: Any) -> None:
    patch.setattr(Loop, "may_start", lambda self, workflow: self.active.drives(workflow))


@breaks("stuck", crowded=True, until=60.0, hang=0.5, slowness=4.0)
def what_a_lapsed_lease_held_back_is_forgotten(patch: Any) -> None:
    """Whether it had lapsed is judged by when the renewal began."""

    def renew(self: Lease) -> Any:
        loop = self.loop
        lapsed_then = loop.elapsed() > loop.lease_until
        verify = loop.activation.verify

        @contextmanager
        def judged() -> Iterator[None]:
            if not lapsed_then:
                loop.activation.verify = lambda workflow: None  # type: ignore[method-assign]
            try:
                yield
            finally:
                loop.activation.verify = verify  # type: ignore[method-assign]

        return resumed_in(original(self), judged)

    original = Lease.renew
    patch.setattr(Lease, "renew", renew)


@breaks("durable", commit_lost=0.3, crash_after_step=0.02, until=20.0)
def signals_are_acknowledged_before_the_commit(patch: Any) -> None:
    patch.setattr(
        Commits, "add", answering_first(lambda asked, value: isinstance(asked.message, msg.Signal))
    )


@breaks("idle", worker_crash=0.4, until=20.0)
def attempts_that_wait_for_their_time_are_forgotten(patch: Any) -> None:
    patch.setattr(Starter, "delay", lambda self, workflow, command, seconds: None)


@breaks("room", "stuck", crowded=True)
def those_that_leave_are_still_counted(patch: Any) -> None:
    def change(self: Admission, workflow_id: str, before: Any, after: Any) -> None:
        if after is not None:
            original(self, workflow_id, before, after)

    original = Admission.change
    patch.setattr(Admission, "change", change)


# -- time ----------------------------------------------------------------------------------


@breaks("clock", clock_step=0.01)
def the_wall_clock_is_believed(patch: Any) -> None:
    patch.setattr(SteadyClock, "__call__", lambda self: self.wall())


@breaks("lease", "stuck", clock_step=0.05, until=30.0, pause=0.01, outage=0.2, read_fails=0.1)
def the_lease_is_on_the_wall_clock(patch: Any) -> None:
    """As all that waits: `elapsed` is a clock that somebody sets."""

    def init(self: Loop, *arguments: Any, elapsed: Any, clock: Any, **named: Any) -> None:
        original(self, *arguments, elapsed=clock.wall, clock=clock, **named)

    original = Loop.__init__
    patch.setattr(Loop, "__init__", init)


# -- taking over ---------------------------------------------------------------------------


@breaks("replies", crash_after_step=0.03, until=25.0, slowness=1.0, worker_crash=0.3)
def a_repeated_resumption_is_taken_for_another(patch: Any) -> None:
    def is_known(state: WorkflowState, request_id: str) -> bool:
        return request_id == state.request_id

    patch.setattr(WorkflowState, "is_known", is_known)


@breaks("chain")
def entries_after_a_takeover_are_not_linked(patch: Any) -> None:
    def take(self: Activation, recovered: Any, claim: msg.Claim) -> None:
        recovered.link = NO_LINK
        original(self, recovered, claim)

    original = Activation.take
    patch.setattr(Activation, "take", take)


@breaks("start", "one owner", "one truth")
def takeover_without_a_fence(patch: Any) -> None:
    def take(self: Activation, recovered: Any, claim: msg.Claim) -> None:
        workflow = Workflow(recovered.state, recovered.seq, recovered.row, link=recovered.link)
        loop = self.loop
        workflow.state.holder = loop.holder_id
        loop.active.hold(workflow)
        loop.starter.add(workflow, commands_module.commands(workflow.state))
        loop.touch(workflow)

    patch.setattr(Activation, "take", take)


@breaks(
    "replies",
    "stuck",
    "orphan",
    "repeated",
    "unexpected",
    "room",
    until=25.0,
    commit_lost=0.3,
    crash_after_step=0.02,
)
def takeovers_overlap(patch: Any) -> None:
    """A second takeover, begun before the first has ended, forgets the workflows of the first."""

    def replacing(self: Holdings) -> Any:
        @contextmanager
        def nothing_in_hand() -> Iterator[None]:
            held = self.loop.active.workflows
            self.loop.active.workflows = {}
            try:
                yield
            finally:
                self.loop.active.workflows = {**held, **self.loop.active.workflows}

        return (yield from resumed_in(original(self), nothing_in_hand))

    def once(self: Holdings) -> Any:
        yield from replacing(self)

    def steps(self: Holdings) -> Any:
        self.loop.job("overlap", lambda: once(self)).start(0.005)
        return (yield from replacing(self))

    original = Holdings.steps
    patch.setattr(Holdings, "steps", steps)


@breaks("lease")
def earlier_lives_are_forgotten_while_workflows_name_them(patch: Any) -> None:
    """Their leases are not renewed any more, and their rows go, whatever is not claimed yet."""

    def end(self: Holdings, look: Any) -> None:
        look.named.clear()
        original(self, look)

    original = Holdings.end
    patch.setattr(Holdings, "end", end)


@breaks("stuck", "idle", "replies")
def what_an_earlier_life_left_at_rest_is_not_claimed(patch: Any) -> None:
    def put_first(self: Workflow, input: Any) -> None:
        if not isinstance(input, msg.Claim) or self.state.holder == "":
            original(self, input)

    original = Workflow.put_first
    patch.setattr(Workflow, "put_first", put_first)


@breaks("stuck", "idle")
def when_what_an_earlier_life_left_is_due_is_forgotten(patch: Any) -> None:
    def leave(self: Any, row: Any, due_at: float) -> None:
        original(self, row, float("inf"))

    original = active_module.ActiveWorkflows.leave
    patch.setattr(active_module.ActiveWorkflows, "leave", leave)


@breaks("lease")
def leases_of_earlier_lives_lapse(patch: Any) -> None:
    def keep(self: Lease, holder_ids: Any) -> None:
        original(self, [each for each in holder_ids if each == self.holder.holder_id])

    original = Lease.keep
    patch.setattr(Lease, "keep", keep)


@breaks("stuck")
def requests_to_cancel_are_not_looked_for(patch: Any) -> None:
    patch.setattr(Holdings, "is_quiet", lambda self, workflow: False)


@breaks("idle", "stuck")
def what_left_memory_is_not_woken(patch: Any) -> None:
    patch.setattr(Eviction, "wake_in_time", lambda self: None)


@breaks("idle", "stuck")
def when_what_left_memory_is_due_is_forgotten(patch: Any) -> None:
    patch.setattr(active_module, "due_at", lambda state: float("inf"))


@breaks("stuck", "replies", "room")
def who_asks_about_what_left_memory_finds_it_new(patch: Any) -> None:
    """A workflow that is brought back is taken for one that nobody has read."""

    def activated(self: Activation, workflow: Workflow, found: Any, claims: Any) -> None:
        original(self, workflow, None if found and not claims else found, claims)

    original = Activation.activated
    patch.setattr(Activation, "activated", activated)


@breaks("stuck", auto_resume=1.0, until=25.0, crash_after_step=0.03, zombie=0.5, pause=0.005)
def orphans_are_left_alone(patch: Any) -> None:
    patch.setattr(Failover, "look", lambda self: None)


# -- the storage ---------------------------------------------------------------------------


@breaks("fence")
def storage_appends_anywhere(patch: Any) -> None:
    def append(self: MemoryJournals, append: Any) -> CommitOutcome:
        journal = self.home.journals.get(append.incarnation)
        if append.expected_seq == 0 or journal is None:
            return original(self, append)
        self.home.rows[append.workflow_id] = append.catalog
        journal.append(JournalEntry(append.catalog.seq, append.commit_id, append.entry))
        return CommitOutcome.OK

    original = MemoryJournals.append
    patch.setattr(MemoryJournals, "append", append)


@breaks("one truth")
def catalog_rows_lag(patch: Any) -> None:
    def catalog_row(*about: Any) -> Any:
        row = original(*about)
        return msgspec.structs.replace(row, status=WorkflowStatus.RUNNING)

    original = loop_module.catalog_row
    patch.setattr(loop_module, "catalog_row", catalog_row)
