"""Observers: what is durable is handed to them, on threads of their own, and is dropped if they do
not keep up. Nothing they do, or fail to do, holds up the loop, changes what it decides, or reaches
another observer.

An observer sees the entries that its coordinator has committed. What must miss nothing (views,
traces of a workflow) reads the journal, which has the same entries under the same numbers.
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

#: How long commits gather after the first one before they are handed over, in seconds: each
#: hand-over takes the processor from the loop once.
GATHER_SECONDS = 0.1

#: How much waits for one observer at most, in bytes of journal entries. In memory it takes about
#: five times as much.
BUFFER_BYTES = 8 * 1024 * 1024

#: An observer that raises again and again is logged once in so many seconds.
LOG_SECONDS = 60.0


class TaskName(msgspec.Struct, frozen=True, gc=False):
    """What the task with a number is called: its id, and the name that the id is made of, which it
    shares with other tasks of the same function."""

    task_id: str
    name: str


class Commit(msgspec.Struct, frozen=True, gc=False):
    """An entry of a journal that is durable.

    Attributes:
        row: the summary of the workflow after it: its ids, status, kind, name, tags, times.
            ``row.seq`` is the number of the entry. The next entry of the same incarnation has the
            next number; if another number follows, entries between them were dropped, or another
            coordinator has written them, and the journal has them.
        events: what the entry says, without snapshots.
        tasks: what the tasks are called whose numbers are in the events.
        size: how many bytes the events have in the journal.
    """

    row: CatalogRow
    events: tuple[Event, ...]
    tasks: dict[int, TaskName]
    size: int


class Observer(Protocol):
    """Takes what is durable. An error it raises is logged, and the observer is called again with
    what comes next."""

    def on_commits(self, commits: Sequence[Commit], missed: int) -> None:
        """Take commits, in the order in which they became durable; always on the same thread.

        It may take its time: meanwhile commits wait, up to `BUFFER_BYTES`.

        Args:
            commits: those since the last call.
            missed: how many were dropped since the last call; all of them came before these.
        """


class Feed:
    """What waits for one observer. `put` is called on the loop's thread, `hand_over` on another.

    Args:
        observer: takes it.
        most: how many bytes wait at most.
        clock: seconds of a clock that nobody sets.
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
        #: When an error was logged last, and how many were not since.
        self.logged_at = float("-inf")
        self.unlogged = 0

    def put(self, commit: Commit) -> None:
        """Keep a commit for the observer; drop the oldest ones if there are too many."""
        with self.lock:
            if not self.waiting:
                self.filled.set()
            self.waiting.append(commit)
            self.size += commit.size
            # The newest stays, however large it is: the state has the same in memory.
            while self.size > self.most and len(self.waiting) > 1:
                self.size -= self.waiting.popleft().size
                self.missed += 1

    def hand_over(self) -> None:
        """Hand over all that waits. It takes as long as the observer does."""
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
        """The observer has raised: say so, now and then."""
        if self.clock() - self.logged_at < LOG_SECONDS:
            self.unlogged += 1
            return
        more = f" ({self.unlogged} more errors since the last line)" if self.unlogged else ""
        logger.error("The observer %s raised%s: %s", self.name, more, error, exc_info=error)
        self.logged_at, self.unlogged = self.clock(), 0

    def run(self) -> None:
        """Hand over what comes, for ever."""
        while True:
            self.filled.wait()
            time.sleep(GATHER_SECONDS)
            self.hand_over()

    @property
    def name(self) -> str:
        """What the observer is called in the log."""
        return type(self.observer).__qualname__


class Observers:
    """The observers of one coordinator, each with a thread of its own: one that hangs keeps only
    its own.

    Args:
        observers: who they are.
        most: how many bytes wait for each of them at most.
        clock: seconds of a clock that nobody sets.
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
        """Start their threads. ``end``: called if one dies, which an observer can't bring about."""
        for feed in self.feeds:
            start_for_ever(feed.run, f"ray-workflows-observer-{feed.name}", end)

    def committed(self, commit: Commit) -> None:
        """A commit is durable. Called on the loop's thread; never raises, and waits for nobody's
        work."""
        for feed in self.feeds:
            feed.put(commit)


#: Of a coordinator that nobody observes.
NOBODY = Observers()


def name_tasks(names: dict[int, TaskName], state: WorkflowState, event: Event) -> None:
    """Add what the tasks are called that an event is about. The state is that before the event:
    after it, a task may be gone."""
    task = getattr(event, "task", None)
    for number in getattr(event, "tasks", ()) if task is None else (task,):
        found = state.tasks.get(number)
        if found is not None and number not in names:
            names[number] = TaskName(found.task_id, found.spec.name)
