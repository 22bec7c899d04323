"""What observers are given, and that nothing they do or leave undone harms anybody else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from ray_workflows._coordinator import loop as loop_module
from ray_workflows._coordinator.observers import (
    BUFFER_BYTES,
    LOG_SECONDS,
    Commit,
    Feed,
    Observers,
    TaskName,
)
from ray_workflows._coordinator.snapshots import SnapshotRule
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.testing.builders import make_row
from ray_workflows.testing.clock import VirtualClock
from tests.unit.coordinator.test_failover import Coordinator, World
from tests.unit.plans import plan

HANG_SECONDS = 20.0


class Noting:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.missed = 0
        self.calls: queue.SimpleQueue[int] = queue.SimpleQueue()

    def on_commits(self, commits: Sequence[Commit], missed: int) -> None:
        self.commits += commits
        self.missed += missed
        self.calls.put(len(commits))

    def wait_for(self, count: int) -> None:
        """Until it has this many."""
        while len(self.commits) < count:
            self.calls.get(timeout=HANG_SECONDS)


class Raising:
    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls: queue.SimpleQueue[int] = queue.SimpleQueue()

    def on_commits(self, commits: Sequence[Commit], missed: int) -> None:
        self.calls.put(len(commits))
        raise self.error


class Hanging:
    def __init__(self) -> None:
        self.called = threading.Event()
        self.let_go = threading.Event()
        self.thread = 0

    def on_commits(self, commits: Sequence[Commit], missed: int) -> None:
        self.thread = threading.get_ident()
        self.called.set()
        self.let_go.wait()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    observer = Hanging()
    yield observer
    observer.let_go.set()


def submit(coordinator: Coordinator, workflow_id: str, *names: str) -> None:
    """A workflow of tasks, of which each takes the result of the one before."""
    chain = plan(*((name, (at - 1,) if at else ()) for at, name in enumerate(names)))
    message = msg.Submit(chain, {}, f"i-{workflow_id}", workflow_id)
    coordinator.loop.ask(workflow_id, message, lambda answer: None)
    coordinator.step()


def finish(coordinator: Coordinator, workflow_id: str, *tasks: int) -> None:
    """Tasks return, one after the other."""
    for task in tasks:
        report = msg.AttemptReturned(task, 0, 1, 1.0, 2.0, value=Value(b"v"))
        coordinator.loop.report(f"i-{workflow_id}", [report])
        coordinator.step()


def kinds(commit: Commit) -> list[str]:
    return [type(event).__name__ for event in commit.events]


def commit(seq: int, size: int) -> Commit:
    return Commit(make_row("w", "i-w", seq), (ev.WorkflowStarted(float(seq)),), {}, size)


def numbers(commits: Sequence[Commit]) -> list[int]:
    return [each.row.seq for each in commits]


def test_what_is_durable_is_observed() -> None:
    world, noting = World(), Noting()
    observers = Observers([noting])
    coordinator = Coordinator(world, "c", observers=observers)
    submit(coordinator, "w", "load", "load")
    finish(coordinator, "w", 0, 1)
    observers.feeds[0].hand_over()
    assert [kinds(each) for each in noting.commits] == [
        ["WorkflowSubmitted", "WorkflowStarted"],
        ["TaskSucceeded"],
        ["TaskSucceeded", "WorkflowSucceeded"],
    ]
    rows = [each.row for each in noting.commits]
    assert [row.seq for row in rows] == [1, 2, 3]
    assert rows[-1] == world.storage.read_catalog("w")
    assert rows[-1].status is WorkflowStatus.SUCCESSFUL
    # Also of the last task, which is gone from the state by then.
    assert [each.tasks for each in noting.commits] == [
        {},
        {0: TaskName("load", "load")},
        {1: TaskName("load_1", "load")},
    ]
    entries = world.storage.read_journal("i-w", 0)
    assert [each.size for each in noting.commits] == [len(each.entry) for each in entries]
    assert noting.missed == 0


def test_what_is_not_durable_is_not_observed() -> None:
    world, noting = World(), Noting()
    observers = Observers([noting])
    coordinator = Coordinator(world, "c", observers=observers)
    coordinator.submit("w")
    world.storage.delete("w", "i-w", 1)
    finish(coordinator, "w", 0)
    observers.feeds[0].hand_over()
    assert numbers(noting.commits) == [1]


def test_snapshots_are_nobodys_business() -> None:
    world, noting = World(), Noting()
    observers = Observers([noting])
    coordinator = Coordinator(world, "c", observers=observers)
    coordinator.loop.snapshots = SnapshotRule(entries=0, share=0)
    submit(coordinator, "w", "a", "b")
    finish(coordinator, "w", 0)
    observers.feeds[0].hand_over()
    assert kinds(noting.commits[-1]) == ["TaskSucceeded"]
    entry = world.storage.read_journal("i-w", 1)[0].entry
    assert 0 < noting.commits[-1].size < len(entry) / 2


def test_a_workflow_that_is_let_go_of_is_observed() -> None:
    world, noting = World(), Noting()
    observers = Observers([noting])
    coordinator = Coordinator(world, "c", observers=observers)
    coordinator.submit("w")
    coordinator.loop.stop(coordinator.loop.active["w"], ValueError("it can't be driven"))
    coordinator.step()
    observers.feeds[0].hand_over()
    assert [kinds(each) for each in noting.commits][1:] == [["WorkflowReleased"]]
    assert noting.commits[-1].row == world.storage.read_catalog("w")


def test_nothing_is_made_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "Commit", None)
    monkeypatch.setattr(loop_module, "name_tasks", None)
    world = World()
    coordinator = Coordinator(world, "c")
    submit(coordinator, "w", "a")
    finish(coordinator, "w", 0)
    assert world.status("w")[0] is WorkflowStatus.SUCCESSFUL


def test_a_full_buffer_drops_the_oldest_and_says_how_many() -> None:
    noting = Noting()
    feed = Feed(noting, most=100)
    for seq in range(1, 11):
        feed.put(commit(seq, 30))
    feed.hand_over()
    assert (numbers(noting.commits), noting.missed) == ([8, 9, 10], 7)
    # What is too large for it is there nevertheless, alone.
    feed.put(commit(11, 30))
    feed.put(commit(12, 1_000))
    feed.hand_over()
    assert (numbers(noting.commits), noting.missed) == ([8, 9, 10, 12], 8)
    feed.put(commit(13, 30))
    feed.hand_over()
    assert (numbers(noting.commits[4:]), noting.missed) == ([13], 8)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no")])
def test_one_that_raises_is_logged_now_and_then_and_called_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    clock, raising = VirtualClock(), Raising(error)
    feed = Feed(raising, clock=clock)
    for seq in range(1, 4):
        feed.put(commit(seq, 1))
        feed.hand_over()
    assert raising.calls.qsize() == 3
    assert [record.message for record in caplog.records] == ["The observer Raising raised: no"]
    clock.now += LOG_SECONDS
    feed.hand_over()
    clock.now += LOG_SECONDS
    feed.hand_over()
    assert [record.message for record in caplog.records][1:] == [
        "The observer Raising raised (2 more errors since the last line): no",
        "The observer Raising raised: no",
    ]


def test_one_that_hangs_and_one_that_raises_hold_up_nobody(hanging: Hanging) -> None:
    world, noting, raising = World(), Noting(), Raising(SystemExit())
    observers = Observers([hanging, raising, noting])
    ended = threading.Event()
    observers.start(ended.set)
    coordinator = Coordinator(world, "c", observers=observers)
    coordinator.submit("first")
    assert hanging.called.wait(HANG_SECONDS)
    raising.calls.get(timeout=HANG_SECONDS)
    noting.wait_for(1)
    coordinator.submit(*(f"w{number}" for number in range(50)))
    noting.wait_for(51)
    raising.calls.get(timeout=HANG_SECONDS)
    assert [each.row.workflow_id for each in noting.commits] == [
        "first",
        *(f"w{number}" for number in range(50)),
    ]
    assert noting.missed == 0
    assert all(world.status(f"w{number}")[0] is WorkflowStatus.RUNNING for number in range(50))
    assert hanging.thread not in (0, threading.get_ident())
    assert len(observers.feeds[0].waiting) == 50
    assert not ended.is_set()


def test_what_waits_for_one_that_hangs_is_bounded(hanging: Hanging) -> None:
    observers = Observers([hanging])
    observers.start()
    feed = observers.feeds[0]
    observers.committed(commit(1, 1))
    assert hanging.called.wait(HANG_SECONDS)
    size = BUFFER_BYTES // 4
    for seq in range(2, 100):
        observers.committed(commit(seq, size))
        assert sum(each.size for each in feed.waiting) <= BUFFER_BYTES
    assert numbers(list(feed.waiting)) == [96, 97, 98, 99]
    assert feed.missed == 94
