"""The places at which a crash makes a difference: before and after each commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from ray_workflows._codec.journal import Chain
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import Append, JournalEntry
from ray_workflows._testing.local_cluster import ClusterCrashed

BEFORE, AFTER = "before", "after"


class CrashPoint(msgspec.Struct, frozen=True):
    """A moment at which the cluster crashes.

    Attributes:
        commit: the number of the commit, from 1 on.
        when: ``"before"`` the commit, so that it is lost, or ``"after"``, so that it is durable but
            the cluster has not acted on it.
        what: the events of the commit, for people.
    """

    commit: int
    when: str
    what: str

    def __str__(self) -> str:
        return f"{self.when} commit {self.commit} ({self.what})"


class CrashPoints:
    """Follows the commits of a storage, and crashes its cluster at some of them."""

    def __init__(self) -> None:
        #: Descriptions of all commits so far.
        self.commits: list[str] = []
        #: Conditions for a crash, and the crashes that have happened.
        self.wanted: list[Callable[[str, int, Sequence[str]], bool]] = []
        self.crashed: list[CrashPoint] = []
        #: Ids of the tasks at which a crash is wanted and has not happened yet.
        self.tasks: list[str] = []
        #: Ids of tasks, by incarnation and number.
        self.task_ids: dict[tuple[str, int], str] = {}

    def before(self, appends: Sequence[Append]) -> None:
        """Note a commit that is about to begin; crash if that is wanted."""
        self.ended: list[str] = []
        self.commits.append(", ".join(self.describe(appends)))
        self.crash_if_wanted(BEFORE)

    def after(self, appends: Sequence[Append]) -> None:
        """Crash after the commit if that is wanted."""
        self.crash_if_wanted(AFTER)

    def crash_if_wanted(self, when: str) -> None:
        """Crash if a crash is wanted here."""
        number = len(self.commits)
        for wanted in self.wanted:
            if wanted(when, number, self.ended):
                self.wanted.remove(wanted)
                self.crashed.append(CrashPoint(number, when, self.commits[-1]))
                raise ClusterCrashed

    def at_commit(self, commit: int, when: str) -> None:
        """Crash before or after the commit of this number."""
        self.wanted.append(lambda at, number, ended: at == when and number == commit)

    def at_task(self, task_id: str, when: str) -> None:
        """Crash before or after the commit that has the result of a task."""
        self.tasks.append(task_id)

        def wanted(at: str, number: int, ended: Sequence[str]) -> bool:
            if at != when or task_id not in ended:
                return False
            self.tasks.remove(task_id)
            return True

        self.wanted.append(wanted)

    def describe(self, appends: Sequence[Append]) -> Iterator[str]:
        """The events of a commit, for people."""
        for append in appends:
            chain = Chain(append.workflow_id, append.incarnation, append.expected_seq)
            entry = JournalEntry(append.expected_seq + 1, append.commit_id, append.entry)
            for event in chain.decode(entry):
                yield self.describe_event(append, event)

    def describe_event(self, append: Append, event: ev.Event) -> str:
        """An event, for people."""
        name = type(event).__name__
        if isinstance(event, ev.Opening):
            first = 0 if isinstance(event, ev.WorkflowSubmitted) else event.first
            for number, task_id in enumerate(event.task_ids, first):
                self.task_ids[append.incarnation, number] = task_id
        task = getattr(event, "task", None)
        if not isinstance(task, int):
            return f"{name} of '{append.workflow_id}'"
        task_id = self.task_ids.get((append.incarnation, task), str(task))
        if isinstance(event, ev.StepsEnded):
            ended = [f"{task_id}/{each.step.path}" for each in event.ended]
            self.ended += ended
            return f"{name} {', '.join(map(repr, ended))} of '{append.workflow_id}'"
        if isinstance(event, (ev.TaskSucceeded, ev.TaskContinued, ev.TaskFailed, ev.SignalTaken)):
            self.ended.append(task_id)
        return f"{name} '{task_id}' of '{append.workflow_id}'"
