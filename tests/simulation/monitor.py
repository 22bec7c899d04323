"""Watches the journals: checks every append as it is stored, against the promises, not the code.

For each incarnation it keeps a fold of the journal (the shadow), and what the journal looked like
at each of its entries, so that it can be told what a coordinator may have known.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray_workflows._codec.journal import HEADER_SIZE, LINK_SIZE, NO_LINK, Chain
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.invariants import check
from ray_workflows._engine.lifecycle import evolve_lifecycle
from ray_workflows._engine.names import assign_task_ids
from ray_workflows._engine.replay import replay
from ray_workflows._engine.snapshots import restore, restore_lifecycle
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row, due_at_of
from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import Append, JournalEntry
from ray_workflows._model.plan import TIMER, Plan
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Outcome
from ray_workflows.exceptions import StorageCorruptError
from tests.simulation import scripts
from tests.simulation.violations import Violation
from tests.support.states import (
    check_same,
    check_same_lifecycle,
    check_saved_lifecycle,
    check_snapshot,
)

#: Which statuses may follow each other within one entry's event, other than by Resumed.
SETTLED = (WorkflowStatus.SUCCESSFUL, WorkflowStatus.FAILED, WorkflowStatus.CANCELED)

#: The events that a coordinator may append to a workflow that it does not hold.
GUEST_EVENTS = (
    ev.CancelRequested,
    ev.WorkflowCanceled,
    ev.WorkflowReleased,
    ev.SignalReceived,
    ev.SignalAcknowledged,
)

#: The prefix of the names of signals that are events by HTTP: each name has one signal.
EVENT = "event-"


class View:
    """A journal after one of its entries: which attempts may run, and with which inputs."""

    __slots__ = ("active", "epoch", "holder", "running")

    def __init__(self, state: WorkflowState, before: View | None) -> None:
        self.epoch = state.epoch
        self.holder = state.holder
        self.running = state.running
        self.active: dict[int, tuple[int, tuple[Outcome | None, ...]]] = {}
        for number in state.active:
            task = state.tasks[number]
            inputs = tuple(state.tasks[upstream].outcome for upstream in task.upstream)
            self.active[number] = (task.attempts + 1, inputs)


class Journal:
    """One incarnation's journal as it was watched."""

    def __init__(self, workflow_id: str, incarnation: str) -> None:
        self.state = WorkflowState(workflow_id, incarnation)
        #: What was restored from snapshots after the entry before.
        self.restored = check_snapshot(self.state)
        self.lifecycle = check_saved_lifecycle(self.state)
        self.chain = Chain(workflow_id, incarnation)
        self.seq = 0
        self.snapshot = 0
        self.views: list[View | None] = [None]
        self.events: list[ev.Event] = []
        #: By the numbers of entries: how many events there are up to its end, and whose it is.
        self.ends = [0]
        self.writers = [""]
        #: Ids of tasks, by their numbers.
        self.names: dict[int, str] = {}
        self.deleted = False
        #: Tasks with their one committed result, and the entry it is in.
        self.done: dict[int, int] = {}
        #: Charged failures since the last resume, per task.
        self.charged: dict[int, int] = {}
        self.task_ids: set[str] = set()
        self.cancel_noted = False
        #: What it was after one of its entries.
        self.statuses: set[WorkflowStatus] = set()
        #: Ids of signals by name, in the order they were received; how many of them are taken.
        self.received: dict[str, list[str]] = {}
        self.taken: dict[str, int] = {}

    def decode(self, append: Append, where: str) -> list[ev.AnyEvent]:
        """The events of the next entry, which has to be linked to the one before it; unless its
        writer could not read that."""
        entry = JournalEntry(append.catalog.seq, append.commit_id, append.entry)
        try:
            events = self.chain.decode(entry)
        except StorageCorruptError as error:
            raise Violation("chain", f"{where}: {error}") from error
        linked = append.entry[HEADER_SIZE - 2 * LINK_SIZE : HEADER_SIZE - LINK_SIZE] != NO_LINK
        if not linked and self.seq and not isinstance(events[-1], ev.WorkflowReleased):
            raise Violation("chain", f"{where} is not linked to the entry before it")
        return events


class Monitor:
    """All journals of one storage, and the rules they have to obey."""

    def __init__(self) -> None:
        self.journals: dict[str, Journal] = {}
        self.deletable: set[str] = set()
        self.acknowledged: set[str] = set()
        #: How many entries each holder has written.
        self.written: Counter[str] = Counter()
        #: How often tasks failed, by the incarnation and the message of the error.
        self.failed: Counter[tuple[str, str]] = Counter()

    def failures_of(self, incarnation: str, message: str) -> int:
        """How many tasks of a workflow have failed with this message."""
        return self.failed[incarnation, message]

    # -- appends ---------------------------------------------------------------------------

    def appended(self, holder_id: str, append: Append) -> None:
        """An append took effect; ``holder_id`` is who asked for it."""
        journal = self.journals.get(append.incarnation)
        if journal is None:
            journal = Journal(append.workflow_id, append.incarnation)
            self.journals[append.incarnation] = journal
        state = journal.state
        where = f"{append.workflow_id}/{append.incarnation} entry {journal.seq + 1} by {holder_id}"
        if append.expected_seq != journal.seq or journal.deleted:
            raise Violation("fence", f"{where}: written over entry {append.expected_seq + 1}")
        events = journal.decode(append, where)
        self.judge_holder(state, events, holder_id, where)
        for event in events:
            self.judge(journal, event, holder_id, f"{where} {type(event).__name__}")
            try:
                evolve(state, event)
            except Exception as error:
                raise Violation("replay", f"{where}: {event} raised {error!r}") from error
        self.judge_snapshot(journal, events, where)
        journal.seq += 1
        if isinstance(events[-1], ev.StateSaved):
            journal.snapshot = journal.seq
        journal.events += events
        journal.ends.append(len(journal.events))
        journal.writers.append(holder_id)
        self.written[holder_id] += 1
        journal.statuses.add(state.status)
        try:
            check(state)
        except AssertionError as error:
            names = [type(event).__name__ for event in events]
            raise Violation("invariant", f"{where} {names}: {error}") from error
        # A coordinator that has not read its tasks does not know when it is due.
        due_at = None if append.catalog.due_at is None else due_at_of(state)
        row = catalog_row(state, journal.seq, journal.snapshot, due_at)
        if append.catalog != row:
            raise Violation(
                "one truth", f"{where}: row {append.catalog} but the journal says {row}"
            )
        journal.views.append(View(state, journal.views[-1]))

    def deleted(self, incarnation: str) -> None:
        journal = self.journals[incarnation]
        if journal.state.workflow_id not in self.deletable:
            raise Violation("durable", f"{incarnation} was deleted, and nobody asked for it")
        journal.deleted = True

    def judge_holder(
        self, state: WorkflowState, events: list[Any], holder_id: str, where: str
    ) -> None:
        """One owner: only the present holder appends, except for `GUEST_EVENTS`."""
        holder = state.holder
        for event in events:
            if isinstance(event, (ev.WorkflowSubmitted, ev.WorkflowClaimed, ev.WorkflowResumed)):
                holder = event.holder
        if holder == holder_id or all(isinstance(event, GUEST_EVENTS) for event in events):
            return
        names = [type(event).__name__ for event in events]
        raise Violation("one owner", f"{where}: {names}, but {holder} holds it")

    def judge_snapshot(self, journal: Journal, events: list[Any], where: str) -> None:
        """A snapshot equals the state, and later events change both alike."""
        try:
            for event in events:
                evolve(journal.restored, event)
                evolve_lifecycle(journal.lifecycle, event)
                if isinstance(event, ev.StateSaved):
                    check_same_lifecycle(restore_lifecycle(event), journal.state)
                    if event.tasks is not None:
                        check_same(restore(event), journal.state)
            check_same(journal.restored, journal.state)
            check_same_lifecycle(journal.lifecycle, journal.state)
            journal.restored = check_snapshot(journal.state)
            journal.lifecycle = check_saved_lifecycle(journal.state)
        except Exception as error:
            raise Violation("snapshot", f"{where}: {error!r}") from error

    # -- events ----------------------------------------------------------------------------

    def judge(self, journal: Journal, event: Any, holder_id: str, where: str) -> None:
        state = journal.state
        if isinstance(event, (ev.WorkflowSubmitted, ev.TaskContinued)):
            self.judge_names(journal, event.plan, event.task_ids, where)
            first = event.first if isinstance(event, ev.TaskContinued) else 0
            journal.names.update(enumerate(event.task_ids, first))
        if isinstance(event, ev.WorkflowResumed):
            journal.charged.clear()
            if state.status is WorkflowStatus.SUCCESSFUL:
                raise Violation("settled", f"{where}: it had succeeded")
        elif isinstance(event, (ev.WorkflowSucceeded, ev.WorkflowFailed, ev.WorkflowStarted)):
            if state.status in SETTLED:
                raise Violation("settled", f"{where}: it was {state.status}")
        elif isinstance(event, (ev.WorkflowCanceled, ev.CancelRequested)):
            journal.cancel_noted = True
        elif isinstance(event, ev.WorkflowEnding):
            self.judge(journal, event.end, holder_id, where)
        elif isinstance(event, ev.WorkflowReleased):
            # Coordinators die often here: a workflow may look like what they died of.
            if event.error.type_name not in ("StorageCorruptError", "WorkflowNotResumableError"):
                raise Violation("unexpected", f"{where}: {event.error}")
        elif isinstance(event, ev.ValuesLost):
            for number in event.tasks:
                outcome = state.tasks[number].outcome
                if outcome is None or outcome.stored:
                    raise Violation("commit once", f"{where}: task {number} is stored")
                journal.done.pop(number, None)
        elif isinstance(event, ev.ErrorCaught) and event.frame is None:
            self.judge_once(journal, event.task, where)
        elif isinstance(event, (ev.SignalReceived, ev.SignalTaken, ev.SignalAcknowledged)):
            self.judge_signal(journal, event, where)
        if isinstance(event, (ev.TaskSucceeded, ev.TaskContinued)):
            self.judge_once(journal, event.task, where)
            if state.tasks[event.task].options.kind != TIMER:
                self.judge_maker(state, event, self.maker_of(state, event), holder_id, where)
        elif isinstance(event, (ev.AttemptFailed, ev.TaskFailed)):
            if event.task in journal.done:
                raise Violation("commit once", f"{where}: task {event.task} had its result")
            self.judge_charge(journal, event, where)
            self.judge_maker(state, event, self.raiser_of(event), holder_id, where)
            if isinstance(event, ev.TaskFailed):
                self.failed[state.incarnation, event.error.message] += 1

    def judge_names(
        self, journal: Journal, plan: Plan, task_ids: tuple[str, ...], where: str
    ) -> None:
        expected = assign_task_ids(journal.state.names, (spec.name for spec in plan.tasks))
        if task_ids != expected or journal.task_ids & set(task_ids):
            raise Violation("names", f"{where}: {task_ids} instead of {expected}")
        journal.task_ids.update(task_ids)

    def judge_signal(
        self,
        journal: Journal,
        event: ev.SignalReceived | ev.SignalTaken | ev.SignalAcknowledged,
        where: str,
    ) -> None:
        """Each signal is received once and taken once, first come, first served."""
        received = journal.received.setdefault(event.name, [])
        if isinstance(event, ev.SignalReceived):
            if journal.state.status in (WorkflowStatus.SUCCESSFUL, WorkflowStatus.CANCELED):
                raise Violation("signals", f"{where}: it is {journal.state.status}")
            if event.signal_id in received:
                raise Violation("signals", f"{where}: {event.signal_id} was received before")
            if event.name.startswith(EVENT) and received:
                raise Violation("signals", f"{where}: {received} was received before")
            received.append(event.signal_id)
            return
        count = journal.taken.get(event.name, 0)
        journal.taken[event.name] = count + 1
        if received[count : count + 1] != [event.signal_id]:
            raise Violation("signals", f"{where}: {event.signal_id} is not the next of {received}")
        if isinstance(event, ev.SignalAcknowledged):
            return
        if not journal.state.running:
            raise Violation("signals", f"{where}: nothing runs")
        self.judge_once(journal, event.task, where)

    def judge_once(self, journal: Journal, number: int, where: str) -> None:
        if number in journal.done:
            raise Violation(
                "commit once",
                f"{where}: task {number} had its result in entry {journal.done[number]}",
            )
        journal.done[number] = journal.seq + 1

    def judge_maker(
        self, state: WorkflowState, event: Any, made_by: str, holder_id: str, where: str
    ) -> None:
        """A committed result comes from the current attempt, started by the same holder."""
        expected = f"{state.incarnation}-task-{event.task}-{state.epoch}-{event.attempt}."
        expected += f"{holder_id}."
        attempt = state.tasks[event.task].attempts + 1
        # A lost input is found by the executor, before anything runs.
        right = not made_by or made_by.startswith(expected)
        if not right or event.attempt != attempt:
            raise Violation(
                "stale report", f"{where}: made by {made_by}, but {expected} (of {attempt}) counts"
            )

    def judge_charge(
        self, journal: Journal, event: ev.AttemptFailed | ev.TaskFailed, where: str
    ) -> None:
        if isinstance(event, ev.AttemptFailed) and event.charged:
            limit = journal.state.tasks[event.task].options.max_retries
            charged = journal.charged.get(event.task, 0) + 1
            journal.charged[event.task] = charged
            if limit != -1 and charged > limit:
                raise Violation("retries", f"{where}: {charged} charged, {limit} allowed")

    def maker_of(self, state: WorkflowState, event: ev.TaskSucceeded | ev.TaskContinued) -> str:
        """The attempt that made what is committed."""
        if isinstance(event, ev.TaskContinued):
            return event.plan.digest
        data = event.value.data
        return data.key if isinstance(data, Blob) else scripts.maker(data)

    def raiser_of(self, event: ev.AttemptFailed | ev.TaskFailed) -> str:
        """The attempt that failed."""
        return event.error.traceback

    # -- starts ----------------------------------------------------------------------------

    def started(self, holder_id: str, known: int, request: AttemptRequest) -> None:
        """An attempt starts, by a holder that has read or committed ``known`` entries."""
        journal = self.journals.get(request.incarnation)
        where = f"{request.where} attempt {request.epoch}/{request.attempt} by {holder_id}"
        if journal is None or known == 0:
            raise Violation("start", f"{where}: started before anything was committed")
        view = journal.views[known]
        assert view is not None
        entry = view.active.get(request.task)
        if entry is None or entry[0] != request.attempt or view.epoch != request.epoch:
            raise Violation(
                "start",
                f"{where}: it knew {known} entries, which ask for {sorted(view.active)} "
                f"in epoch {view.epoch} (attempt {entry and entry[0]})",
            )
        if view.holder != holder_id or not view.running:
            raise Violation("start", f"{where}: {view.holder} held it, running={view.running}")
        if tuple(request.inputs) != entry[1]:
            raise Violation("inputs", f"{where}: {request.inputs} instead of {entry[1]}")

    # -- the end ---------------------------------------------------------------------------

    def check_replay(self, journal: Journal) -> None:
        """Folding the journal from the beginning gives the state that was folded step by step."""
        state = journal.state
        again = replay(state.workflow_id, state.incarnation, journal.events)
        try:
            check_same(again, state)
        except AssertionError as error:
            raise Violation("replay", f"{state.workflow_id}: {error}") from error
