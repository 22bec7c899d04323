"""The laws, held against what is left of a run: the log, the journals, the rows.

They are computed from events and lines alone. Nothing here folds a journal as the engine does: a
fault of the engine's folds must not hide itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ray_workflows._model import events as ev
from ray_workflows._model.values import Outcome, Value
from tests.chaos import log as kinds
from tests.chaos.log import Line
from tests.chaos.stories import CANCELED, FAILED, SUCCESSFUL, Story, nested_id, steps_of
from tests.chaos.tasks import Made

#: What ends a workflow, and the status that it then has.
ENDS: dict[type[ev.Event], str] = {
    ev.WorkflowSucceeded: SUCCESSFUL,
    ev.WorkflowFailed: FAILED,
    ev.WorkflowTimedOut: FAILED,
    ev.WorkflowCanceled: CANCELED,
}

#: By what a coordinator becomes the one whose attempts count: an epoch begins. The first is 0.
TAKINGS = (ev.WorkflowSubmitted, ev.WorkflowClaimed, ev.WorkflowResumed)

#: What gives a task its one result.
RESULTS = (ev.TaskSucceeded, ev.TaskContinued, ev.SignalTaken)


class Violation(NamedTuple):
    law: str
    workflow: str
    message: str

    def __str__(self) -> str:
        return f"[{self.law}] {self.workflow}: {self.message}"


class Journal(NamedTuple):
    """A workflow as it is stored. ``status``: what its row says."""

    status: str
    events: list[ev.Event]


class History(NamedTuple):
    """What is left of a run. ``made`` reads a stored value."""

    lines: list[Line]
    stories: list[Story]
    journals: dict[str, Journal]
    made: Callable[[str, Value], Any]


class Commit(NamedTuple):
    """A result in a journal: from the event of this number on, until the event ``until``."""

    since: int
    until: float
    epoch: int
    attempt: int
    at: float
    #: None: it is not stored, or it is a continuation.
    made: Made | None
    stored: bool


class Workflow:
    """A journal, read for the laws."""

    def __init__(self, workflow_id: str, journal: Journal, history: History) -> None:
        self.workflow_id = workflow_id
        self.status = journal.status
        self.events = journal.events
        self.numbers: dict[str, int] = {}
        self.commits: dict[int, list[Commit]] = defaultdict(list)
        self.twice: list[str] = []
        #: For each epoch, the numbers of its first event and of the first one after it.
        self.epochs: dict[int, tuple[int, float]] = {}
        self.signals: set[str] = set()
        self.ends: list[tuple[int, str]] = []
        self.output: Outcome | None = None
        self.read(history)

    def read(self, history: History) -> None:
        epoch = -1
        for number, event in enumerate(self.events):
            if isinstance(event, TAKINGS):
                if epoch >= 0:
                    self.epochs[epoch] = (self.epochs[epoch][0], number)
                epoch += 1
                self.epochs[epoch] = (number, float("inf"))
            if isinstance(event, ev.WorkflowSubmitted):
                self.numbers.update((name, task) for task, name in enumerate(event.task_ids))
            elif isinstance(event, ev.TaskContinued):
                self.numbers.update(
                    (name, event.first + task) for task, name in enumerate(event.task_ids)
                )
            elif isinstance(event, ev.SignalReceived):
                self.signals.add(event.signal_id)
            elif isinstance(event, ev.ValuesLost):
                self.lose(event, number)
            elif type(event) in ENDS:
                self.ends.append((number, ENDS[type(event)]))
            if isinstance(event, ev.WorkflowSucceeded):
                self.output = event.output
            if isinstance(event, RESULTS):
                self.commit(event, number, epoch, history)

    def commit(self, event: Any, number: int, epoch: int, history: History) -> None:
        commits = self.commits[event.task]
        if commits and commits[-1].until > number:
            self.twice.append(
                f"task {event.task} has results in events {commits[-1].since}, {number}"
            )
        value = event.value if isinstance(event, ev.TaskSucceeded) else None
        stored = value is None or value.stored
        made = history.made(self.workflow_id, value) if value is not None and stored else None
        attempt = getattr(event, "attempt", 0)
        made = made if isinstance(made, Made) else None
        commits.append(Commit(number, float("inf"), epoch, attempt, event.at, made, stored))

    def lose(self, event: ev.ValuesLost, number: int) -> None:
        for task in event.tasks:
            commits = self.commits[task]
            if not commits or commits[-1].stored:
                self.twice.append(f"the result of task {task}, which is stored, was given up")
            else:
                commits[-1] = commits[-1]._replace(until=number)


def check(history: History) -> list[Violation]:
    """All that is wrong."""
    workflows = {
        name: Workflow(name, journal, history) for name, journal in history.journals.items()
    }
    found: list[Violation] = []
    for law in (
        acknowledged_is_durable,
        ended_as_it_should,
        committed_once,
        consumers_saw_what_was_committed,
        outputs_are_what_is_stored,
        nothing_committed_began_again,
        ended_stays_ended,
        deleted_is_gone,
        keys_name_tasks,
        values_are_whole,
    ):
        found += law(history, workflows)
    return found


Workflows = dict[str, Workflow]


def expected(history: History) -> Iterator[tuple[str, Story]]:
    """The workflows that drivers tried to start, with the stories that they are of."""
    tried = {(line.workflow, line.verb) for line in history.lines if line.kind == kinds.TRY}
    for story in history.stories:
        if (story.workflow_id, "submit") in tried:
            yield story.workflow_id, story
        if (story.workflow_id, "fork") in tried:
            yield story.fork_id, story


def acknowledgements(history: History, verb: str) -> set[str]:
    return {
        line.workflow
        for line in history.lines
        if line.kind == kinds.ACK and line.verb.partition(" ")[0] == verb
    }


def may_be_gone(history: History) -> set[str]:
    """The workflows that somebody has tried to delete."""
    return {
        line.workflow for line in history.lines if line.kind == kinds.TRY and line.verb == "delete"
    }


def acknowledged_is_durable(history: History, workflows: Workflows) -> Iterator[Violation]:
    """What a verb returned for is in the storage."""
    law, gone = "acknowledged means durable", may_be_gone(history)
    forks = {story.workflow_id: story.fork_id for story in history.stories}
    started = acknowledgements(history, "submit")
    started |= {forks[name] for name in acknowledgements(history, "fork")}
    for name in sorted(started - gone - workflows.keys()):
        yield Violation(law, name, "it was acknowledged, and is not there")
    for line in history.lines:
        workflow = workflows.get(line.workflow)
        if line.kind != kinds.ACK or workflow is None:
            continue
        verb, _, what = line.verb.partition(" ")
        if verb == "signal" and f"{what} of {line.workflow}" not in workflow.signals:
            yield Violation(law, line.workflow, f"the acknowledged signal {what} is not there")
        if verb == "cancel" and workflow.status != CANCELED:
            yield Violation(law, line.workflow, f"it was canceled, and is {workflow.status}")


def ended_as_it_should(history: History, workflows: Workflows) -> Iterator[Violation]:
    """After the healing all have ended, each with the status that its story asks for."""
    known = set()
    for name, story in expected(history):
        known.add(name)
        known |= {nested_id(name, step.name) for step in steps_of(story.step) if step.nested}
        if name in workflows and workflows[name].status != story.status:
            status = workflows[name].status
            yield Violation("right end", name, f"it is {status} instead of {story.status}")
    for name in sorted(workflows.keys() - known):
        yield Violation("right end", name, "nobody has started it")
    for name in sorted(workflows.keys() & known):
        workflow = workflows[name]
        if not workflow.ends or workflow.ends[-1][1] != workflow.status:
            yield Violation(
                "one truth", name, f"the row says {workflow.status}, the journal {workflow.ends}"
            )


def committed_once(history: History, workflows: Workflows) -> Iterator[Violation]:
    for name, workflow in workflows.items():
        for message in workflow.twice:
            yield Violation("commit once", name, message)


def consumers_saw_what_was_committed(history: History, workflows: Workflows) -> Iterator[Violation]:
    law = "consumers see the committed result"
    ended = {
        (line.workflow, line.task, line.nonce) for line in history.lines if line.kind == kinds.END
    }
    committed: dict[tuple[str, str], set[str]] = defaultdict(set)
    for line in history.lines:
        workflow = workflows.get(line.workflow)
        if line.kind != kinds.BEGIN or workflow is None:
            continue
        for task, nonce in line.saw:
            commits = workflow.commits.get(workflow.numbers.get(task, -1), [])
            stored = [commit for commit in commits if commit.stored]
            if not stored:
                # Of a result that is not stored, the journal knows only that it was there.
                if (line.workflow, task, nonce) not in ended:
                    yield Violation(law, line.workflow, f"{line} saw what {task} never returned")
                if len(commits) == 1 and is_committed(workflow, line):
                    committed[line.workflow, task].add(nonce)
            elif all(commit.made is None or commit.made.nonce != nonce for commit in stored):
                yield Violation(law, line.workflow, f"{line} saw another result of {task}")
    for (name, task), nonces in committed.items():
        if len(nonces) > 1:
            yield Violation(law, name, f"consumers saw {len(nonces)} results of {task}: {nonces}")


def is_committed(workflow: Workflow, line: Line) -> bool:
    """Whether an execution made a result that is stored."""
    commits = workflow.commits.get(workflow.numbers.get(line.task, -1), [])
    return any(commit.made is not None and commit.made.nonce == line.nonce for commit in commits)


def outputs_are_what_is_stored(history: History, workflows: Workflows) -> Iterator[Violation]:
    law = "the output is the stored one"
    stories = dict(expected(history))
    nonces: dict[str, set[str]] = defaultdict(set)
    for line in history.lines:
        if line.kind != kinds.READ:
            continue
        story = stories.get(line.workflow)
        if story is None or story.status != SUCCESSFUL:
            yield Violation(law, line.workflow, f"{line}: it has no output")
            continue
        nonces[line.workflow].add(line.nonce)
        if line.value != story.value:
            yield Violation(law, line.workflow, f"{line}, but it should be {story.value}")
    for name, story in stories.items():
        workflow = workflows.get(name)
        if workflow is not None and workflow.output is not None:
            value = workflow.output.value
            made = None if value is None else history.made(name, value)
            if not isinstance(made, Made) or made.value != story.value:
                yield Violation(law, name, f"{made} is stored, but it should be {story.value}")
            else:
                nonces[name].add(made.nonce)
        if len(nonces[name]) > 1:
            yield Violation(law, name, f"different outputs were read and stored: {nonces[name]}")


def nothing_committed_began_again(history: History, workflows: Workflows) -> Iterator[Violation]:
    """An execution belongs to an epoch, in which the task was without a result for a while.

    A coordinator that was stopped may start what another one has committed meanwhile: it does
    so in its own, older epoch. When a task has its result in an epoch, nothing of it begins in that
    epoch any more.
    """
    for line in history.lines:
        workflow = workflows.get(line.workflow)
        if line.kind != kinds.BEGIN or workflow is None:
            continue
        message = began_wrongly(workflow, line)
        if message:
            yield Violation(
                "what is committed never runs again", line.workflow, f"{line}: {message}"
            )


def began_wrongly(workflow: Workflow, line: Line) -> str:
    """What is wrong with the beginning of an execution, or nothing."""
    task = workflow.numbers.get(line.task)
    if task is None:
        return "the journal has no such task"
    if line.epoch not in workflow.epochs:
        return f"the journal has no such epoch, only {sorted(workflow.epochs)}"
    first, last = workflow.epochs[line.epoch]
    for commit in workflow.commits.get(task, []):
        if commit.since < first and commit.until >= last:
            return f"event {commit.since}, of epoch {commit.epoch}, has its result"
        if commit.epoch != line.epoch or commit.until != float("inf"):
            continue
        if line.attempt > commit.attempt or line.at > commit.at:
            return f"event {commit.since}, of attempt {commit.attempt} at {commit.at:.3f}, has it"
    return ""


def ended_stays_ended(history: History, workflows: Workflows) -> Iterator[Violation]:
    law = "an end is an end"
    for name, workflow in workflows.items():
        if len(workflow.ends) > 1:
            yield Violation(law, name, f"it ended several times: {workflow.ends}")
        after = workflow.events[workflow.ends[0][0] + 1 :] if workflow.ends else []
        for event in after:
            # Attempts of a workflow that failed go on, and their results are kept.
            if isinstance(event, (*TAKINGS, ev.WorkflowStarted)):
                yield Violation(law, name, f"{type(event).__name__} after its end")
    for line in history.lines:
        workflow = workflows.get(line.workflow)
        ended = line.kind == kinds.STATUS and line.text in ENDS.values()
        if workflow is not None and ended and workflow.status != line.text:
            yield Violation(law, line.workflow, f"{line}, but now it is {workflow.status}")


def deleted_is_gone(history: History, workflows: Workflows) -> Iterator[Violation]:
    for name in sorted(acknowledgements(history, "delete") & workflows.keys()):
        yield Violation("deleted means gone", name, f"it is there, {workflows[name].status}")


def keys_name_tasks(history: History, workflows: Workflows) -> Iterator[Violation]:
    """An idempotency key is that of one task, and a task has one, unless it was deleted."""
    gone = may_be_gone(history)
    of_key: dict[str, tuple[str, str]] = {}
    of_task: dict[tuple[str, str], str] = {}
    for line in history.lines:
        if line.kind != kinds.BEGIN or line.workflow in gone:
            continue
        task = (line.workflow, line.task)
        known = of_key.setdefault(line.key, task), of_task.setdefault(task, line.key)
        if known != (task, line.key):
            yield Violation("keys name tasks", line.workflow, f"{line}, but known is {known}")


def values_are_whole(history: History, workflows: Workflows) -> Iterator[Violation]:
    for line in history.lines:
        if line.kind == kinds.DAMAGED:
            yield Violation("values are whole", line.workflow, str(line))
