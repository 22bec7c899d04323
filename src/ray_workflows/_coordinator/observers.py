"""Observers receive durable commits, each on a thread of its own. Commits are dropped for an
observer that is too slow. No observer can delay the loop, change its decisions, or affect another
observer.

An observer sees the entries that its coordinator has committed. Readers that must miss nothing
(views, traces of a workflow) read the journal, which has the same entries under the same numbers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from ray_workflows._elapsed import elapsed
from ray_workflows._engine.state import WorkflowState
from ray_workflows._executor.timers import end_process, start_for_ever
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.events import Event

logger = logging.getLogger(__name__)

#: How long commits are collected before they are handed over, in seconds: each hand-over takes the
#: interpreter lock from the loop once.
GATHER_SECONDS = 0.1

#: The most bytes of journal entries that wait for one observer. In memory they take about five
#: times as much.
BUFFER_BYTES = 8 * 1024 * 1024

#: Seconds between two log messages about an observer that raises.
LOG_SECONDS = 60.0


class TaskName(msgspec.Struct, frozen=True, gc=False):
    """The names of a task: its id, and the base name of the id, which all tasks of the same
    function share."""

    task_id: str
    name: str


class Commit(msgspec.Struct, frozen=True, gc=False):
    """A durable journal entry.

    Attributes:
        row: the summary of the workflow after it: its ids, status, kind, name, tags, times.
            ``row.seq`` is the number of the entry. The next entry of the same incarnation has the
            next number. After a gap, the entries between were dropped here or written by another
            coordinator; the journal has them.
        events: the events of the entry, without snapshots.
        tasks: the names of the tasks in the events, by number.
        size: the bytes of the events in the journal.
    """

    row: CatalogRow
    events: tuple[Event, ...]
    tasks: dict[int, TaskName]
    size: int


class Observer(Protocol):
    """Receives durable commits. If it raises, the error is logged, and it gets the next ones."""

    def on_commits(self, commits: Sequence[Commit], missed: int) -> None:
        """Take commits, in the order in which they became durable; always on the same thread.

        It may be slow: meanwhile commits wait, up to `BUFFER_BYTES`.

        Args:
            commits: those since the last call.
            missed: how many were dropped since the last call; all of them came before these.
        """


class Feed:
    """The queue of one observer. `put` is called on the loop's thread, `hand_over` on another.

    Args:
        observer: the observer.
        most: the most bytes that wait.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        observer: Observer,
        most: int = BUFFER_BYTES,
        clock: Callable[[], float] = elapsed,
    ) -> None:
        self.observer = observer
        self.most = most
        self.clock = clock
        self.lock = threading.Lock()
        #: Set while there is something to hand over.
        self.filled = threading.Event()
        self.waiting: deque[Commit] = deque()
        self.size = 0
        self.missed = 0
        #: When an error was logged last, and how many errors since were not logged.
        self.logged_at = float("-inf")
        self.unlogged = 0

    def put(self, commit: Commit) -> None:
        """Keep a commit for the observer; drop the oldest ones if there are too many."""
        with self.lock:
            if not self.waiting:
                self.filled.set()
            self.waiting.append(commit)
            self.size += commit.size
            # The newest stays, however large it is: the state has as much in memory.
            while self.size > self.most and len(self.waiting) > 1:
                self.size -= self.waiting.popleft().size
                self.missed += 1

    def hand_over(self) -> None:
        """Hand over all waiting commits. Blocks as long as the observer does."""
        with self.lock:
            commits, self.waiting = self.waiting, deque()
            missed, self.missed = self.missed, 0
            self.size = 0
            self.filled.clear()
        try:
            self.observer.on_commits(tuple(commits), missed)
        except BaseException as error:
            # Also `sys.exit` and panics of native code: the thread goes on.
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Log an error of the observer, at most every `LOG_SECONDS`."""
        if self.clock() - self.logged_at < LOG_SECONDS:
            self.unlogged += 1
            return
        more = f" ({self.unlogged} more errors since the last line)" if self.unlogged else ""
        logger.error("The observer %s raised%s: %s", self.name, more, error, exc_info=error)
        self.logged_at, self.unlogged = self.clock(), 0

    def run(self) -> None:
        """Hand over commits for ever."""
        while True:
            self.filled.wait()
            time.sleep(GATHER_SECONDS)
            self.hand_over()

    @property
    def name(self) -> str:
        """The observer's name in the log."""
        return type(self.observer).__qualname__


class Observers:
    """The observers of one coordinator, each with a thread of its own: one that hangs blocks only
    its own thread.

    Args:
        observers: the observers.
        most: the most bytes that wait for each of them.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        observers: Iterable[Observer] = (),
        *,
        most: int = BUFFER_BYTES,
        clock: Callable[[], float] = elapsed,
    ) -> None:
        self.feeds = tuple(Feed(each, most, clock) for each in observers)

    def __bool__(self) -> bool:
        return bool(self.feeds)

    def start(self, end: Callable[[], None] = end_process) -> None:
        """Start their threads. ``end``: called if a thread dies, which an observer can't cause."""
        for feed in self.feeds:
            start_for_ever(feed.run, f"ray-workflows-observer-{feed.name}", end)

    def committed(self, commit: Commit) -> None:
        """Queue a durable commit for all observers. Called on the loop's thread; never raises,
        never blocks."""
        for feed in self.feeds:
            feed.put(commit)


#: The observers of a coordinator without any.
NOBODY = Observers()


def name_tasks(names: dict[int, TaskName], state: WorkflowState, event: Event) -> None:
    """Add the names of the tasks in an event. ``state`` is that before the event, which may remove
    a task."""
    task = getattr(event, "task", None)
    for number in getattr(event, "tasks", ()) if task is None else (task,):
        found = state.tasks.get(number)
        if found is not None and number not in names:
            names[number] = TaskName(found.task_id, found.spec.name)
