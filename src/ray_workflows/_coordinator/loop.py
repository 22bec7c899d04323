"""The loop: decides on the messages of each workflow, commits the events, then carries them out.

One thread runs it, and nothing in this module blocks. `Offloader` takes blocking work and brings
back its results; it makes small commits to a local disk on the loop's thread. All requests about a
workflow take the same path: it is in memory or is read from storage, the engine decides, and the
answers go out when the events are durable.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from ray_workflows._codec.journal import encode_entry, link_of
from ray_workflows._coordinator.activation import Activation
from ray_workflows._coordinator.active import ActiveWorkflows
from ray_workflows._coordinator.admission import Admission, Limits
from ray_workflows._coordinator.commits import Commits
from ray_workflows._coordinator.eviction import EVICT_SECONDS, Eviction
from ray_workflows._coordinator.jobs import Job, Steps
from ray_workflows._coordinator.liveness import ProcessProbe, probe_process
from ray_workflows._coordinator.observers import NOBODY, Commit, Observers, TaskName, name_tasks
from ray_workflows._coordinator.offload import Offloader
from ray_workflows._coordinator.outbox import Deliveries
from ray_workflows._coordinator.quarantine import Quarantine
from ray_workflows._coordinator.requests import Asked, Reply
from ray_workflows._coordinator.retrying_storage import RetryingStorage
from ray_workflows._coordinator.snapshots import RULE, SnapshotRule, next_snapshot, size_of
from ray_workflows._coordinator.starting import STARTS, Starter
from ray_workflows._coordinator.watchers import Watchers
from ray_workflows._coordinator.workflow import Answer, Pending, Workflow, answer
from ray_workflows._engine.commands import next_wake
from ray_workflows._engine.decide import decide
from ray_workflows._engine.decision import ACTIVE, Surroundings
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row, due_at_of
from ray_workflows._executor.protocol import Executor, News
from ray_workflows._executor.timers import TimerQueue, log_failure
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append, CatalogRow, Holder
from ray_workflows._model.commands import Command, StartAttempt, WakeAt
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import CoordinatorUnavailableError
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: Pause before a request is tried again that came before the coordinator was ready, in seconds.
SOON = 0.02

#: How many pending workflows are read before they can start.
NEXT = 32


class Loop:
    """Drives the workflows of one holder.

    All time comes from ``clock`` (seconds since 1970 that pass evenly) and ``elapsed`` (seconds of
    a monotonic clock), and all ids from ``new_id``, so that a simulation can run the loop
    deterministically.

    Args:
        storage: of the workflows.
        executor: runs attempts.
        offloader: runs blocking work.
        holder: this coordinator.
        probe: says whether the processes of other coordinators exist.
        limits: how many workflows may run and wait.
        starts: how many commands are started in one step.
        snapshots: when the states of workflows are saved.
        evicts_after: how long a workflow is at rest before it leaves memory, in seconds.
        observers: get durable commits.
        on_error: gets errors in this package after which the loop goes on.
    """

    def __init__(
        self,
        storage: Storage,
        executor: Executor,
        offloader: Offloader,
        holder: Holder,
        *,
        clock: Callable[[], float],
        elapsed: Callable[[], float],
        new_id: Callable[[], str],
        limits: Limits,
        probe: ProcessProbe = probe_process,
        starts: int = STARTS,
        snapshots: SnapshotRule = RULE,
        evicts_after: float = EVICT_SECONDS,
        observers: Observers = NOBODY,
        on_error: Callable[[str, Exception], None] = log_failure,
    ) -> None:
        self.storage = storage
        self.executor = executor
        self.offloader = offloader
        self.holder = holder
        self.holder_id = holder.holder_id
        self.probe = probe
        self.clock = clock
        self.elapsed = elapsed
        self.on_error = on_error
        self.new_id = new_id
        self.snapshots = snapshots
        self.observers = observers
        self.timers = TimerQueue(elapsed, on_error)
        self.store = RetryingStorage(storage, offloader, self.after, elapsed)
        self.admission = Admission(limits)
        self.active = ActiveWorkflows(self.holder_id, self.admission)
        self.activation = Activation(self)
        self.watchers = Watchers(self.active, executor, self.touch, self.activation.find)
        #: Workflows with new messages.
        self.dirty: dict[int, Workflow] = {}
        self.commits = Commits(self.store, self.after, self.guard, self.applied, self.overtaken)
        self.deliveries = Deliveries(
            self.store, self.after, elapsed, self.ask, self.report, self.active.drives_incarnation
        )
        self.starter = Starter(
            executor,
            self.timers,
            clock,
            self.guard,
            self.may_start,
            self.touch,
            self.wake,
            self.deliveries.deliver,
            starts,
        )
        self.quarantine = Quarantine(
            self.store, self.commits, clock, elapsed, new_id, self.guard, self.drop
        )
        self.eviction = Eviction(
            self.active, self.timers, clock, self.evict, self.activation.bring_back, evicts_after
        )
        #: End of the lease, by `elapsed`. Afterwards no attempts are started.
        self.lease_until = float("-inf")

    # -- time -------------------------------------------------------------------------------

    def step(self) -> float:
        """Do everything that can be done now. Returns the seconds until the next timer."""
        self.timers.run()
        self.starter.start()
        while self.dirty:
            self.advance(self.dirty.pop(next(iter(self.dirty))))
        self.commits.flush()
        self.executor.flush()
        return 0.0 if self.starter.waiting else self.timers.sleep_seconds()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` on this thread after some seconds."""
        self.timers.after(seconds, action)

    def job(self, name: str, steps: Callable[[], Steps]) -> Job:
        """A job that repeats its steps on this thread, once it is started."""
        return Job(name, steps, self.timers, self.offloader)

    # -- messages --------------------------------------------------------------------------

    def ask(
        self, workflow_id: str, message: msg.Asked, reply: Reply, until: float = float("inf")
    ) -> None:
        """Decide on a request about a workflow, driven by this coordinator or not.

        ``reply`` gets the answer, once, on this thread. ``until``: the latest start, by `elapsed`.
        A later start would be wrong, because the caller was told that the request failed.
        """
        asked = Asked(message, reply, until)
        try:
            self.put(workflow_id, asked)
        except Exception as error:
            # A bug in this package: tell the caller at once, and go on with other requests.
            self.on_error(f"A request about workflow '{workflow_id}'", error)
            answer(reply, error)

    def put(self, workflow_id: str, asked: Asked) -> None:
        if self.is_over(asked):
            return
        if self.active.lives is None:
            # It is not yet known which workflows are ours.
            self.after(SOON, lambda: self.ask(workflow_id, *asked))
            return
        workflow = self.active.get(workflow_id)
        if workflow is None and workflow_id in self.active.evicted:
            self.activation.bring_back(workflow_id, asked)
            return
        if workflow is None:
            workflow = self.open(workflow_id, asked.message)
        workflow.inbox.append(asked)
        self.touch(workflow)

    def is_over(self, asked: Asked) -> bool:
        """Whether the caller no longer waits for the answer: then the request is refused."""
        if self.elapsed() <= asked.until:
            return False
        answer(asked.reply, CoordinatorUnavailableError("The request came too late."))
        return True

    def report(self, incarnation: str, reports: Iterable[News | msg.Delivered]) -> None:
        """Add reports about attempts and deliveries to the inbox of a workflow."""
        workflow = self.active.by_incarnation.get(incarnation)
        if workflow is not None:
            workflow.inbox.extend(reports)
            self.touch(workflow)

    def wake(self, workflow: Workflow) -> None:
        """Let a workflow decide on what is due by now. Its alarm calls this."""
        workflow.alarm = None
        if self.active.drives(workflow):
            workflow.inbox.append(msg.Wake())
            self.touch(workflow)

    def touch(self, workflow: Workflow) -> None:
        """Decide on the inbox of a workflow in this step."""
        self.dirty[id(workflow)] = workflow

    # -- workflows in memory ---------------------------------------------------------------

    def open(self, workflow_id: str, message: msg.Asked) -> Workflow:
        """Add a workflow to memory that was not read yet."""
        workflow = Workflow(WorkflowState(workflow_id, ""), 0, None)
        self.active.hold(workflow)
        # A submitted workflow is most likely new, so it is not read first: if it exists, the commit
        # is stale, and then it is read. Not while the storage is away: the caller gets an error
        # then, and the workflow must not be created when the storage returns.
        if isinstance(message, msg.Submit) and self.store.error is None:
            workflow.covered = 1
        return workflow

    def evict(self, workflow: Workflow) -> None:
        """Remove a workflow at rest from memory."""
        self.forget(workflow)
        self.executor.forget(workflow.incarnation)
        self.active.evict(workflow)

    def drop(self, workflow: Workflow) -> None:
        """Remove a workflow from memory. Requests in its inbox begin anew."""
        if self.active.remove(workflow):
            # Before the executor forgets the live copy of the output: watchers get it here.
            self.watchers.notify(workflow, settled=True)
            self.executor.forget(workflow.incarnation)
        self.forget(workflow)
        asked = [each for each in workflow.inbox if isinstance(each, Asked)]
        workflow.inbox.clear()
        for each in asked:
            self.ask(workflow.workflow_id, *each)
        self.admit()

    def forget(self, workflow: Workflow) -> None:
        """Cancel all that is scheduled for a workflow in memory."""
        self.dirty.pop(id(workflow), None)
        self.starter.forget(workflow)
        self.eviction.forget(workflow)

    # -- deciding and committing -----------------------------------------------------------

    def advance(self, workflow: Workflow) -> None:
        """Decide on the inbox, unless a commit or a read of this workflow is under way."""
        if not workflow.busy and self.active.holds(workflow):
            self.guard(workflow, self.decide)

    def guard(self, workflow: Workflow, action: Callable[[Workflow], None]) -> None:
        """Call ``action``. If it raises, stop this workflow, and no other."""
        try:
            action(workflow)
        except Exception as error:
            self.on_error(f"Workflow '{workflow.workflow_id}'", error)
            # The state may be ahead of the journal, so it can't be used any more.
            pending, workflow.pending = workflow.pending, None
            if pending is not None:
                for asked, _ in pending.answers:
                    answer(asked.reply, error)
                # The commit may be durable: then the entry that releases the workflow follows it.
                workflow.row = pending.append.catalog
            self.stop(workflow, error)

    def stop(self, workflow: Workflow, error: Exception) -> None:
        """A workflow can't be driven: say so in its journal, if it is ours, and let go of it."""
        row = workflow.row
        if workflow.broken is not None:
            self.quarantine.give_up(workflow)
        if (
            workflow.broken is not None
            or row is None
            or row.released
            or row.status not in ACTIVE
            or row.holder != self.holder_id
        ):
            self.activation.refuse_all(workflow, error)
            return
        self.executor.forget(workflow.incarnation)
        workflow.flying.clear()
        # No decision can be made without a usable state.
        workflow.covered = 0
        workflow.inbox = deque(each for each in workflow.inbox if isinstance(each, Asked))
        self.starter.forget(workflow)
        self.active.count_as(workflow, None)
        self.quarantine.release(workflow, row, error)

    def let_go(self, row: CatalogRow, error: Exception) -> None:
        """Write into the journal of a workflow that nobody drives why we don't take it over."""
        workflow = Workflow(WorkflowState(row.workflow_id, row.incarnation), row.seq, row)
        self.active.hold(workflow)
        self.quarantine.release(workflow, row, error)

    def decide(self, workflow: Workflow) -> None:
        covered, workflow.covered = workflow.covered, 0
        driven = self.active.drives(workflow)
        if driven and (workflow.state.status in ACTIVE or not workflow.is_asked):
            covered = len(workflow.inbox)
        elif not covered:
            # Another process may have changed or deleted it since it was read, if it was.
            if driven:
                self.activation.reload(workflow)
            elif workflow.is_asked and workflow.seq == 0 and workflow.broken is None:
                self.activation.activate(workflow)
            else:
                self.drop(workflow)
            return
        taken = [workflow.inbox.popleft() for _ in range(covered)]
        messages = [each for each in taken if not self.is_late(each)]
        try:
            self.decide_on(workflow, messages)
        except Exception as error:
            # Tell the callers whose requests led to the error at once.
            for each in messages:
                if isinstance(each, Asked):
                    answer(each.reply, error)
            raise

    def is_late(self, each: msg.Message | Asked) -> bool:
        return isinstance(each, Asked) and self.is_over(each)

    def decide_on(self, workflow: Workflow, messages: list[msg.Message | Asked]) -> None:
        # Grows during the iteration.
        undecided = messages.copy()
        around = self.around(workflow)
        events: list[ev.Event] = []
        deltas: list[Command] = []
        answers: list[Answer] = []
        names: dict[int, TaskName] | None = {} if self.observers else None
        now = self.clock()
        for each in undecided:
            if isinstance(each, Asked):
                message: msg.Message = each.message
                if isinstance(message, msg.Submit) and workflow.state.status is WorkflowStatus.NONE:
                    self.active.name(workflow, message.incarnation)
            else:
                message = each
                if isinstance(message, msg.AttemptReport):
                    workflow.land(message)
            due = False
            decision = decide(workflow.state, message, now, around)
            for event in decision.events:
                if names is not None:
                    name_tasks(names, workflow.state, event)
                for delta in evolve(workflow.state, event):
                    if (
                        isinstance(delta, WakeAt)
                        and delta.at <= now
                        and self.active.drives(workflow)
                    ):
                        due = True
                    else:
                        deltas.append(delta)
                events.append(event)
            if isinstance(each, Asked):
                answers.append((each, decision.answer))
            if due:
                # Decide on it now, in the same commit.
                undecided.append(msg.Wake())
        self.active.count(workflow)
        if events:
            pending = self.pending(workflow, events, deltas, messages, answers, names)
            self.commits.add(workflow, pending)
            return
        if self.active.drives(workflow):
            workflow.is_ours()
        for asked, value in answers:
            answer(asked.reply, value)
        self.rest(workflow)

    def around(self, workflow: Workflow) -> Surroundings:
        """The facts outside of its state that decisions about a workflow depend on."""
        return Surroundings(
            self.holder_id,
            workflow.driven_elsewhere,
            workflow.live,
            self.admission.can_run(),
            self.admission.can_queue(),
        )

    def pending(
        self,
        workflow: Workflow,
        events: list[ev.Event],
        deltas: list[Command],
        messages: list[msg.Message | Asked],
        answers: list[Answer],
        names: dict[int, TaskName] | None,
    ) -> Pending:
        """The commit of decided events, with a snapshot if one is due. ``names``: of the tasks in
        the events, if there are observers."""
        state, seq = workflow.state, workflow.seq + 1
        saved = None
        if self.active.drives(workflow):
            saved = next_snapshot(self.snapshots, workflow.unsaved, state, self.clock())
        said = events if saved is None else [*events, saved]
        entry = encode_entry(said, workflow.workflow_id, workflow.incarnation, seq, workflow.link)
        unsaved = workflow.unsaved.after(seq, len(entry), saved)
        append = Append(
            workflow_id=workflow.workflow_id,
            incarnation=workflow.incarnation,
            expected_seq=workflow.seq,
            commit_id=self.new_id(),
            entry=entry,
            catalog=catalog_row(
                state, seq, unsaved.snapshot, due_at_of(state) if workflow.whole else None
            ),
        )
        commit = None
        if names is not None:
            size = len(entry) - (0 if saved is None else size_of(saved))
            commit = Commit(append.catalog, tuple(events), names, size)
        return Pending(append, deltas, messages, answers, commit, unsaved)

    def applied(self, workflow: Workflow) -> None:
        """Go on after a durable commit: answer callers, and start the commands."""
        pending, workflow.pending = workflow.pending, None
        assert pending is not None
        workflow.seq += 1
        workflow.link = link_of(pending.append.entry)
        workflow.unsaved = pending.unsaved
        workflow.row = pending.append.catalog
        if pending.commit is not None:
            self.observers.committed(pending.commit)
        for asked, value in pending.answers:
            answer(asked.reply, value)
        if self.active.drives(workflow):
            workflow.is_ours()
            deltas = pending.deltas
            if workflow.doubtful:
                # The journal has to be read again first, to know which attempts should run.
                deltas = [delta for delta in deltas if not isinstance(delta, StartAttempt)]
            self.starter.add(workflow, deltas)
        self.watchers.notify(workflow, settled=False)
        if workflow.doubtful and self.active.drives(workflow):
            self.activation.reload(workflow)
        else:
            self.touch(workflow)

    def overtaken(self, workflow: Workflow) -> None:
        """Drop the working state and read the journal again, because another process appended
        first."""
        pending, workflow.pending = workflow.pending, None
        assert pending is not None
        if workflow.broken is not None:
            self.quarantine.release_again(workflow)
            return
        # What was asked is decided again from scratch; what was reported only we know.
        for each in reversed(pending.messages):
            # Time and claims are looked at anew once the journal was read.
            if not isinstance(each, (msg.Wake, msg.Claim)):
                workflow.inbox.appendleft(each)
            if isinstance(each, msg.AttemptReport):
                workflow.flying.setdefault(each.task, (each.epoch, each.attempt))
        if workflow.row is not None and workflow.row.holder == self.holder_id:
            self.activation.reload(workflow, anew=True)
        else:
            self.activation.activate(workflow)

    # -- commands --------------------------------------------------------------------------

    def may_start(self, workflow: Workflow) -> bool:
        """Whether attempts of a workflow may be started. After the end of the lease (this process
        was paused, or the storage was away) another coordinator may drive it. The next renewal
        reads it again, and starts all its commands if it is still ours."""
        return self.elapsed() <= self.lease_until and self.active.drives(workflow)

    # -- after a commit --------------------------------------------------------------------

    def rest(self, workflow: Workflow) -> None:
        """Called when nothing is left to decide: drop a workflow that has ended or is not ours."""
        if not self.active.drives(workflow):
            self.drop(workflow)
            return
        if workflow.inbox:
            # Messages that came after the last read.
            self.touch(workflow)
        at = next_wake(workflow.state)
        if at is not None:
            self.starter.set_alarm(workflow, at)
        # Siblings of a failed task may still commit results, which a resume need not compute again.
        self.watchers.notify(workflow, settled=workflow.settled)
        self.eviction.rests(workflow)
        self.admit()

    def admit(self) -> None:
        """Start pending workflows while there is room."""
        waiting = self.admission.waiting
        while waiting and self.admission.can_run():
            self.bring_back_next()
            workflow = self.active.get(next(iter(waiting)))
            if workflow is not None and workflow.busy:
                # Its submission is being committed, or it is being read: `rest` comes here again.
                return
            del waiting[next(iter(waiting))]
            if workflow is not None:
                workflow.inbox.append(msg.Start())
                # Decide now: admission counts statuses, so the next workflow sees the slot taken.
                self.advance(workflow)

    def bring_back_next(self) -> None:
        """Read the workflows that start next, if they are not in memory."""
        for workflow_id in list(islice(self.admission.waiting, NEXT)):
            if workflow_id in self.active.evicted:
                self.activation.bring_back(workflow_id)
