"""Observers of a coordinator, each with a thread that takes its turn by the world's clock: one that
notes and judges what it sees, one that raises, and one whose calls take long or never return.

They draw from a die of their own and ask nothing of the world, so that whatever else happens in a
seed is what happens without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from ray_workflows._coordinator.observers import Commit, Feed, Observers
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import JournalEntry
from ray_workflows.storage.base import CommitOutcome
from tests.simulation.violations import Violation

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World

#: How many bytes may wait for an observer: hardly an entry, some, or all that a seed commits.
BUFFERS = (200, 2_000, 1_000_000)


class Raising:
    """Takes nothing."""

    def on_commits(self, commits: Sequence[Commit], missed: int) -> None:
        raise SystemExit("an observer has had enough")


class Slow:
    """Its calls return long after they were made, or never."""

    def on_commits(self, commits: Sequence[Commit], missed: int) -> None:
        """See `Threads.pause`."""


class Noting:
    """Judges what it sees by the journals."""

    def __init__(self, world: World, life: Life) -> None:
        self.world = world
        self.life = life
        #: By incarnation, the number of the entry that it saw last.
        self.last: dict[str, int] = {}
        self.seen = 0
        self.missed = 0

    def on_commits(self, commits: Sequence[Commit], missed: int) -> None:
        self.missed += missed
        for commit in commits:
            self.seen += 1
            try:
                self.judge(commit)
            except Violation as violation:
                # What an observer raises is swallowed.
                self.world.fail(violation)

    def judge(self, commit: Commit) -> None:
        """What is seen is durable, is all that the entry says, and comes in its order."""
        row = commit.row
        where = f"{row.workflow_id}/{row.incarnation} entry {row.seq}, seen by {self.life.name}"
        journal = self.world.monitor.journals.get(row.incarnation)
        if journal is None or len(journal.ends) <= row.seq:
            raise Violation("observers", f"{where}: it is not durable")
        if journal.writers[row.seq] != self.life.name:
            raise Violation("observers", f"{where}: {journal.writers[row.seq]} wrote it")
        last = self.last.get(row.incarnation, 0)
        if row.seq <= last:
            raise Violation("observers", f"{where}: after entry {last}")
        self.last[row.incarnation] = row.seq
        said = journal.events[journal.ends[row.seq - 1] : journal.ends[row.seq]]
        said = [event for event in said if not isinstance(event, ev.StateSaved)]
        if list(commit.events) != said:
            raise Violation("observers", f"{where}: {commit.events}, but {said} is durable")
        named = {number: name.task_id for number, name in commit.tasks.items()}
        expected = {number: journal.names[number] for event in said for number in numbers_in(event)}
        if named != expected:
            raise Violation("observers", f"{where}: {named}, but tasks are called {expected}")


def numbers_in(event: Any) -> tuple[int, ...]:
    """The numbers of the tasks that an event is about."""
    return (event.task,) if hasattr(event, "task") else getattr(event, "tasks", ())


class Threads:
    """The observers of one life, and their threads."""

    def __init__(self, world: World, life: Life) -> None:
        self.world = world
        self.life = life
        self.die = Random(f"observers {world.seed} {life.name}")
        self.noting = Noting(world, life)
        observers = [Raising(), self.noting, Slow()] if world.observed else []
        self.observers = Observers(
            observers, most=self.die.choice(BUFFERS), clock=lambda: world.clock.now
        )
        #: Threads that are on their way to take what waits, or in a call.
        self.busy: set[int] = set()
        #: Commits of which the coordinator has heard that they are durable.
        self.heard = 0

    def note(self, result: Any) -> None:
        """Blocking work has come back to the loop."""
        if not isinstance(result, list) or not result:
            return
        if isinstance(result[0], JournalEntry):
            # Read to find out what became of a commit.
            pending = [each.pending for each in self.life.loop.active.values()]
            ids = {each.append.commit_id for each in pending if each is not None}
            self.heard += result[0].commit_id in ids
        else:
            self.heard += sum(each is CommitOutcome.OK for each in result)

    def check(self) -> None:
        """All that the coordinator knows to be durable was seen or missed, or waits."""
        for index, feed in enumerate(self.observers.feeds):
            if feed.filled.is_set() and index not in self.busy:
                self.busy.add(index)
                self.world.clock.after(self.pause(feed), lambda index=index: self.turn(index))
            if feed.observer is self.noting:
                self.check_count(feed)

    def check_count(self, feed: Feed) -> None:
        found = self.noting.seen + self.noting.missed + feed.missed + len(feed.waiting)
        written = self.world.monitor.written[self.life.name]
        if not self.heard == found <= written:
            raise Violation(
                "observers",
                f"{self.life.name} has written {written} entries, has heard of {self.heard}, and "
                f"{found} were handed to observers or missed",
            )

    def turn(self, index: int) -> None:
        """It is a thread's turn."""
        if self.life.running:
            self.observers.feeds[index].hand_over()
        self.busy.discard(index)

    def pause(self, feed: Feed) -> float:
        """After how many seconds a thread takes what waits: it gathers, and one is in a call."""
        if isinstance(feed.observer, Slow):
            return self.die.choice([1.0, 10.0, 1e6])
        return self.die.uniform(0.0, 0.2)
