"""The one imperative loop: inputs are decided, events committed, commands started.

It alone knows engine, storage and executor together. It runs on one thread, and what blocks goes
through `Io`, which makes small commits to a local disk right there. What users ask comes in through
`verbs`, what time brings through `lease`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ray_workflows._codec.journal import encode_entry, link_of
from ray_workflows._coordinator.io import Io
from ray_workflows._coordinator.jobs import Job, Steps
from ray_workflows._coordinator.quarantine import end_of_our_part
from ray_workflows._coordinator.recovery import Recovered, recover
from ray_workflows._coordinator.requests import Request
from ray_workflows._coordinator.room import Limits, Room
from ray_workflows._coordinator.store import Committed, Store
from ray_workflows._coordinator.workflow import Pending, Workflow, answer
from ray_workflows._engine.commands import commands, next_wake
from ray_workflows._engine.decide import decide
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.summary import catalog_row
from ray_workflows._executor.protocol import Executor, News
from ray_workflows._executor.timers import TimerQueue, log_failure
from ray_workflows._model import events as ev
from ray_workflows._model import inputs as inp
from ray_workflows._model.catalog import Append, CatalogRow
from ray_workflows._model.commands import (
    CancelAttempt,
    Command,
    ReleaseValue,
    StartAttempt,
    WakeAt,
)
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.base import CommitOutcome, Storage

logger = logging.getLogger(__name__)

#: Commands that are started in one step: that takes less than a tenth of a second. Of fewer at a
#: time smaller batches would be made.
STARTS = 5_000

#: Pause before a commit is tried again that the storage refused, in seconds.
REFUSED_SECONDS = 1.0


class Loop:
    """Drives the workflows of one holder.

    All time comes from ``clock`` (seconds since 1970 that pass evenly) and ``elapsed`` (seconds of
    a clock that nobody sets), and all ids from ``new_id``, so that a simulation can run it
    deterministically.
    ``starts``: commands that are started in one step. ``on_error`` takes errors of ours that were
    survived.
    """

    def __init__(
        self,
        storage: Storage,
        executor: Executor,
        io: Io,
        holder_id: str,
        *,
        clock: Callable[[], float],
        elapsed: Callable[[], float],
        new_id: Callable[[], str],
        limits: Limits,
        starts: int = STARTS,
        on_error: Callable[[str, Exception], None] = log_failure,
    ) -> None:
        self.storage = storage
        self.executor = executor
        self.io = io
        self.timers = TimerQueue(elapsed, on_error)
        self.store = Store(storage, io, self.after, elapsed)
        self.holder_id = holder_id
        self.clock = clock
        self.elapsed = elapsed
        self.on_error = on_error
        self.new_id = new_id
        self.starts = starts
        self.workflows: dict[str, Workflow] = {}
        self.room = Room(limits)
        self.by_incarnation: dict[str, Workflow] = {}
        self.guests: dict[str, Workflow] = {}
        self.dirty: dict[int, Workflow] = {}
        #: Those with commands to start.
        self.starting: dict[int, Workflow] = {}
        self.outbox: list[Workflow] = []
        self.committing = False
        #: Until when the lease holds, by `elapsed`: only then attempts are dispatched.
        self.lease_until = float("-inf")
        #: Set by `verbs`: turns a workflow's requests into inputs and answers; takes requests
        #: whose workflow left this loop before they were answered.
        self.take_requests: Callable[[Workflow], None] = lambda workflow: None
        self.ask_again: Callable[[Request], None] = lambda request: None

    # -- time -------------------------------------------------------------------------------

    def step(self) -> float:
        """Do all that can be done now; seconds until there is more by the clock alone."""
        self.timers.run()
        self.start_commands()
        while self.dirty:
            self.advance(self.dirty.pop(next(iter(self.dirty))))
        self.flush()
        self.executor.flush()
        return 0.0 if self.starting else self.timers.sleep_seconds()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something on this thread after a while."""
        self.timers.after(seconds, action)

    def job(self, name: str, steps: Callable[[], Steps]) -> Job:
        """Something that is done on this thread again and again, once it is started."""
        return Job(name, steps, self.timers, self.io)

    def set_alarm(self, workflow: Workflow, at: float) -> None:
        """Wake a workflow at a time of the wall clock, if it has no earlier alarm: one is enough,
        because `rest` asks for the next one."""
        if workflow.alarm is None or at < workflow.alarm_at:
            self.timers.cancel(workflow.alarm)
            workflow.alarm_at = at
            workflow.alarm = self.timers.after(at - self.clock(), lambda: self.wake(workflow))

    def forget_timers(self, workflow: Workflow) -> None:
        """Nothing is to happen later on account of a workflow's state."""
        self.timers.cancel(workflow.alarm)
        workflow.alarm = None
        for timer in workflow.delayed.values():
            self.timers.cancel(timer)
        workflow.delayed.clear()

    # -- workflows in hand -----------------------------------------------------------------

    def hold(self, workflow: Workflow) -> None:
        """Drive a workflow from now on, or, as a guest, until it rests."""
        if workflow.guest:
            self.guests[workflow.workflow_id] = workflow
        else:
            self.workflows[workflow.workflow_id] = workflow
            self.by_incarnation[workflow.incarnation] = workflow
            self.room.count(workflow, workflow.state.status)

    def let_out(self, workflow: Workflow) -> None:
        """It is not driven here any more."""
        del self.workflows[workflow.workflow_id]
        del self.by_incarnation[workflow.incarnation]
        self.room.forget(workflow)

    def holds(self, workflow: Workflow) -> bool:
        return self.workflows.get(workflow.state.workflow_id) is workflow

    def drop(self, workflow: Workflow) -> None:
        """Let go; whoever still waits asks again and finds it in storage."""
        if self.guests.get(workflow.workflow_id) is workflow:
            del self.guests[workflow.workflow_id]
        held = self.holds(workflow)
        if held:
            self.let_out(workflow)
        self.dirty.pop(id(workflow), None)
        self.starting.pop(id(workflow), None)
        workflow.commands.clear()
        self.forget_timers(workflow)
        self.notify(workflow, settled=True)
        if held:
            # Who waits for the output was given the live copy of it.
            self.executor.forget(workflow.incarnation)
        requests = [request for request, _ in workflow.answers] + list(workflow.requests)
        workflow.answers.clear()
        workflow.requests.clear()
        for request in requests:
            self.ask_again(request)
        self.admit()

    def touch(self, workflow: Workflow) -> None:
        """Look at it in this step."""
        self.dirty[id(workflow)] = workflow

    def report(self, incarnation: str, reports: Iterable[News]) -> None:
        """Take what is heard of attempts."""
        workflow = self.by_incarnation.get(incarnation)
        if workflow is not None:
            workflow.inputs.extend(reports)
            self.touch(workflow)

    # -- deciding and committing -----------------------------------------------------------

    def advance(self, workflow: Workflow) -> None:
        """Decide on all that came in, unless a commit of this workflow is on its way."""
        if not workflow.busy:
            self.guard(workflow, self.decide)

    def guard(self, workflow: Workflow, action: Callable[[Workflow], None]) -> None:
        """Do something with a workflow; if that raises, stop this workflow, and no other."""
        try:
            action(workflow)
        except Exception as error:
            self.on_error(f"Workflow '{workflow.workflow_id}'", error)
            # Its state may be ahead of its journal: nothing of it is of use any more.
            pending, workflow.pending = workflow.pending, None
            answers, workflow.answers = workflow.answers, []
            if pending is not None:
                answers += pending.answers
                # If the commit is durable after all, what ends our part comes after it.
                workflow.row = pending.append.catalog
            for request, _ in answers:
                answer(request.reply, error)
            if workflow.broken is None:
                self.quarantine(workflow, error)
            else:
                self.drop(workflow)

    def decide(self, workflow: Workflow) -> None:
        if workflow.broken is not None:
            # It is released. Its state was never durable: requests are answered after reading it.
            self.drop(workflow)
            return
        self.take_requests(workflow)
        # Grows while it is gone through.
        undecided = list(workflow.inputs)
        inputs = undecided.copy()
        workflow.inputs.clear()
        events: list[ev.Event] = []
        deltas: list[Command] = []
        now = self.clock()
        for input in undecided:
            if isinstance(input, inp.AttemptReport):
                workflow.land(input)
            due = False
            for event in decide(workflow.state, input, now):
                for delta in evolve(workflow.state, event):
                    if isinstance(delta, WakeAt) and delta.at <= now and not workflow.guest:
                        due = True
                    else:
                        deltas.append(delta)
                events.append(event)
            if due:
                # It need not wait for a commit of its own.
                undecided.append(inp.Wake())
        if self.holds(workflow):
            self.room.count(workflow, workflow.state.status)
        append = self.append(workflow, events) if events else None
        answers, workflow.answers = workflow.answers, []
        if append is not None:
            self.propose(workflow, Pending(append, deltas, inputs, answers))
            return
        for request, value in answers:
            answer(request.reply, value)
        self.rest(workflow)

    def append(self, workflow: Workflow, events: list[ev.Event]) -> Append:
        return Append(
            workflow_id=workflow.workflow_id,
            incarnation=workflow.incarnation,
            expected_seq=workflow.seq,
            commit_id=self.new_id(),
            entry=encode_entry(
                events, workflow.workflow_id, workflow.incarnation, workflow.seq + 1, workflow.link
            ),
            catalog=catalog_row(workflow.state, workflow.seq + 1),
        )

    def propose(self, workflow: Workflow, pending: Pending) -> None:
        workflow.pending = pending
        self.outbox.append(workflow)

    def flush(self) -> None:
        """Send all waiting commits as one; while it is away, the next ones gather."""
        if self.committing or not self.outbox:
            return
        batch, self.outbox = self.outbox, []
        self.committing = True
        appends = [w.pending.append for w in batch if w.pending is not None]
        self.store.commit(appends, lambda outcomes: self.committed(batch, outcomes))

    def committed(self, batch: list[Workflow], outcomes: Sequence[Committed]) -> None:
        self.committing = False
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

        def found(workflow: Workflow, result: Any) -> None:
            if isinstance(result, Exception):
                self.overtaken(workflow)
            elif not result and refusal is not None and pending.is_refused_for_good():
                raise refusal
            elif not result:
                self.outbox.append(workflow)
            elif result[0].commit_id == pending.append.commit_id:
                workflow.doubtful = workflow.doubtful or len(result) > 1
                self.applied(workflow)
            else:
                self.overtaken(workflow)

        def read() -> None:
            self.store.call(
                lambda: self.storage.read_journal(incarnation, seq),
                lambda result: self.guard(workflow, partial(found, result=result)),
                what="A commit",
            )

        pause = REFUSED_SECONDS if refusal is not None and seq else self.store.pause
        self.after(pause, read)

    def applied(self, workflow: Workflow) -> None:
        """The commit is durable: start what follows from it."""
        pending, workflow.pending = workflow.pending, None
        assert pending is not None
        workflow.seq += 1
        workflow.link = link_of(pending.append.entry)
        workflow.row = pending.append.catalog
        for request, value in pending.answers:
            answer(request.reply, value)
        deltas = pending.deltas
        if workflow.doubtful:
            # What should run is known when the journal was read again.
            deltas = [delta for delta in deltas if not isinstance(delta, StartAttempt)]
        if not workflow.guest:
            self.dispatch(workflow, deltas)
        self.notify(workflow, settled=False)
        if workflow.doubtful:
            self.reload(workflow)
        else:
            self.touch(workflow)

    def overtaken(self, workflow: Workflow) -> None:
        """Somebody else appended first: the working state is thrown away and read anew."""
        pending, workflow.pending = workflow.pending, None
        assert pending is not None
        for request, _ in reversed(pending.answers):
            workflow.requests.appendleft(request)
        if workflow.broken is not None:
            self.release_again(workflow, workflow.broken)
            return
        if workflow.seq == 0 or workflow.guest:
            self.drop(workflow)
            return
        # Requests are decided again from scratch; what was reported only we know.
        known = (inp.AttemptReport, inp.LoseValues, inp.Start)
        for input in reversed(pending.inputs):
            if isinstance(input, known):
                workflow.inputs.appendleft(input)
            if isinstance(input, inp.AttemptReport):
                workflow.flying.setdefault(input.task, (input.epoch, input.attempt))
        self.reload(workflow)

    def verify(self, workflow: Workflow) -> None:
        """Make sure that it is still ours before anything more is started."""
        if workflow.busy:
            workflow.doubtful = True
        else:
            self.reload(workflow)

    def reload(self, workflow: Workflow) -> None:
        """Read the journal again; go on if it is still ours, yield if it is not."""
        workflow.reading = True
        workflow.doubtful = False

        def found(workflow: Workflow, result: Recovered | Exception | None) -> None:
            workflow.reading = False
            if isinstance(result, Exception):
                self.quarantine(workflow, result)
            elif result is None or result.row.incarnation != workflow.incarnation:
                logger.warning("Workflow '%s' was deleted.", workflow.workflow_id)
                self.drop(workflow)
            elif result.state.holder != self.holder_id:
                # One that we were just claiming was never ours.
                lost = workflow.row is not None and workflow.row.holder == self.holder_id
                logger.log(
                    logging.WARNING if lost else logging.INFO,
                    "Workflow '%s' was taken over by coordinator %s; its attempts here stop.",
                    workflow.workflow_id,
                    result.state.holder,
                )
                self.drop(workflow)
            else:
                self.continue_with(workflow, result)

        self.store.call(
            lambda: recover(self.storage, workflow.workflow_id),
            lambda result: self.guard(workflow, partial(found, result=result)),
            what=f"Workflow '{workflow.workflow_id}'",
        )

    def continue_with(self, workflow: Workflow, recovered: Recovered) -> None:
        workflow.state, workflow.seq, workflow.row = recovered.state, recovered.seq, recovered.row
        workflow.link = recovered.link
        self.room.count(workflow, workflow.state.status)
        if workflow.state.cancel_requested:
            workflow.inputs.append(inp.Cancel())
        # All that should run is asked for again. Starting twice is starting once: what is in flight
        # stays there, if it still should.
        workflow.forget_starts()
        self.forget_timers(workflow)
        active = workflow.state.active
        over = [CancelAttempt(number) for number in workflow.flying if number not in active]
        self.dispatch(workflow, [*over, *commands(workflow.state)])
        self.notify(workflow, settled=False)
        self.touch(workflow)

    def quarantine(self, workflow: Workflow, error: Exception) -> None:
        """It can't be driven: stop it, say so in the journal, and let go."""
        self.executor.forget(workflow.incarnation)
        if workflow.row is None:
            self.drop(workflow)
            return
        if self.holds(workflow):
            self.let_out(workflow)
        workflow.guest = True
        workflow.broken = error
        # There is no state to decide on.
        workflow.inputs.clear()
        workflow.commands.clear()
        self.forget_timers(workflow)
        self.hold(workflow)
        self.release(workflow, workflow.row, error)

    def release(self, workflow: Workflow, row: CatalogRow, error: Exception) -> None:
        """Append the end of our part, without knowing the state that it ends."""
        workflow.row, workflow.seq = row, row.seq
        append = end_of_our_part(row, error, at=self.clock(), commit_id=self.new_id())
        self.propose(workflow, Pending(append, [], [], []))

    def release_again(self, workflow: Workflow, error: Exception) -> None:
        """The journal has grown since it was readable: release it as it is now."""
        workflow.reading = True

        def found(workflow: Workflow, row: CatalogRow | None) -> None:
            workflow.reading = False
            if (
                isinstance(row, CatalogRow)
                and row.incarnation == workflow.incarnation
                and row.holder == self.holder_id
                and row.status in WorkflowStatus.non_terminating_status()
                and not row.released
            ):
                self.release(workflow, row, error)
            else:
                self.drop(workflow)

        self.store.call(
            lambda: self.storage.read_catalog(workflow.workflow_id),
            lambda row: self.guard(workflow, partial(found, row=row)),
            what=f"Workflow '{workflow.workflow_id}'",
        )

    # -- commands --------------------------------------------------------------------------

    def dispatch(self, workflow: Workflow, deltas: Iterable[Command]) -> None:
        """Let commands be started that a durable state asks for."""
        workflow.commands.extend(deltas)
        if workflow.commands:
            self.starting[id(workflow)] = workflow

    def start_commands(self) -> None:
        """Start commands, but no more than others can wait for: a workflow may have a million."""
        left = self.starts
        while self.starting and left:
            workflow = self.starting.pop(next(iter(self.starting)))
            if workflow.busy:
                continue  # What is in hand is not durable. When it is, it comes back here.
            some = workflow.commands[:left]
            del workflow.commands[:left]
            left -= len(some)
            if workflow.commands:
                self.starting[id(workflow)] = workflow
            self.guard(workflow, partial(self.start_all, started=some))

    def start_all(self, workflow: Workflow, started: Iterable[Command]) -> None:
        for command in started:
            self.carry_out(workflow, command)

    def carry_out(self, workflow: Workflow, command: Command) -> None:
        if isinstance(command, StartAttempt):
            pause = command.not_before - self.clock() if command.not_before else 0.0
            if pause > 0.0:
                self.delay(workflow, command, pause)
            else:
                self.start_attempt(workflow, command)
        elif isinstance(command, CancelAttempt):
            workflow.flying.pop(command.task, None)
            self.timers.cancel(workflow.delayed.pop(command.task, None))
            self.executor.cancel(workflow.incarnation, command.task)
        elif isinstance(command, ReleaseValue):
            self.executor.release(workflow.incarnation, command.value)
        elif isinstance(command, WakeAt):
            self.set_alarm(workflow, command.at)

    def delay(self, workflow: Workflow, command: StartAttempt, seconds: float) -> None:
        """Start an attempt after a while, as the last one of its task that was asked for."""

        def start() -> None:
            del workflow.delayed[command.task]
            self.dispatch(workflow, [command])

        self.timers.cancel(workflow.delayed.pop(command.task, None))
        workflow.delayed[command.task] = self.timers.after(seconds, start)

    def start_attempt(self, workflow: Workflow, command: StartAttempt) -> None:
        # Without a lease (we were paused, or the storage was away) it may be somebody else's by
        # now: the renewal reads it again and asks for all its commands.
        if self.elapsed() > self.lease_until or not self.holds(workflow):
            return
        task, flying = command.task, workflow.flying
        attempt = (command.epoch, command.attempt)
        if flying.get(task) == attempt:
            return
        request = workflow.attempt_request(command)
        if request is not None:
            flying[task] = attempt
            # What is stored is waited for.
            followers = () if request.checkpoint else workflow.followers(request)
            self.executor.start(request, followers)

    def wake(self, workflow: Workflow) -> None:
        workflow.alarm = None
        if self.holds(workflow):
            workflow.inputs.append(inp.Wake())
            self.touch(workflow)

    # -- after a commit --------------------------------------------------------------------

    def rest(self, workflow: Workflow) -> None:
        """Nothing is left to decide: let go of what is over."""
        drains = workflow.state.status is WorkflowStatus.FAILED and workflow.flying
        if workflow.guest or (workflow.settled and not drains):
            self.drop(workflow)
            return
        at = next_wake(workflow.state)
        if at is not None:
            self.set_alarm(workflow, at)
        # Siblings of a failed task may still commit what a resume need not run again.
        self.notify(workflow, settled=workflow.settled)
        self.admit()

    def notify(self, workflow: Workflow, *, settled: bool) -> None:
        """Answer those who watch, if there is what they watch for."""
        kept = []
        for watcher in workflow.watchers:
            grown = watcher.after is not None and workflow.seq > watcher.after
            if settled or grown:
                answer(watcher.reply, workflow.seen(self.executor))
            else:
                kept.append(watcher)
        workflow.watchers = kept

    def admit(self) -> None:
        """Start pending workflows while there is room."""
        waiting = self.room.waiting
        while waiting and self.room.to_run():
            workflow = self.workflows.get(next(iter(waiting)))
            if workflow is not None and workflow.busy:
                return  # Its submission is on its way: it asks again when that is durable.
            del waiting[next(iter(waiting))]
            if workflow is not None:
                workflow.inputs.append(inp.Start())
                # Room is counted by status: decide now, so that the next one sees it taken.
                self.advance(workflow)
