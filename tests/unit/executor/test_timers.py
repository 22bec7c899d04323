"""What is done later: nothing of it ends the thread that does it, and none of it is forgotten."""

from __future__ import annotations

import datetime
import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from ray_workflows._elapsed import ELAPSED_CLOCK, elapsed
from ray_workflows._executor import timers as module
from ray_workflows._executor.deadlines import Deadlines
from ray_workflows._executor.timers import LONGEST_SLEEP, MAX_CANCELLED, TimerQueue
from ray_workflows.testing.clock import VirtualClock

HANG_SECONDS = 20.0

#: What somebody may mean by "never".
NEVER = (datetime.timedelta.max.total_seconds(), 1e10, 1e300, float("inf"))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What raised is called again at once."""
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.0,))


class Raising:
    """Raises as often as it is told to; then it is done."""

    def __init__(self, times: int, error: BaseException) -> None:
        self.left = times
        self.error = error
        self.done = threading.Event()

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            raise self.error
        self.done.set()


@pytest.mark.usefixtures("soon")
def test_a_deadline_that_raises_is_called_again_and_others_too() -> None:
    ends: list[str] = []
    deadlines = Deadlines(lambda: ends.append("ended"))
    raising, other = Raising(3, RuntimeError("once more")), threading.Event()
    deadlines.after(0.0, raising)
    deadlines.after(0.0, other.set)
    assert other.wait(HANG_SECONDS)
    assert raising.done.wait(HANG_SECONDS)
    assert ends == []


@pytest.mark.parametrize("seconds", NEVER)
def test_a_deadline_that_means_never_keeps_no_other_one(seconds: float) -> None:
    ended, other = threading.Event(), threading.Event()
    deadlines = Deadlines(ended.set)
    deadlines.after(seconds, lambda: None)
    # The thread waits for the one above by now, or soon.
    deadlines.after(0.05, other.set)
    assert other.wait(HANG_SECONDS)
    assert not ended.is_set()


def test_when_the_thread_of_deadlines_dies_the_process_is_ended() -> None:
    ended = threading.Event()
    Deadlines(ended.set).after(0.0, Raising(1, SystemExit()))
    assert ended.wait(HANG_SECONDS)


def test_a_process_without_its_thread_is_none() -> None:
    program = (
        "import time; from ray_workflows._executor.timers import start_for_ever\n"
        "start_for_ever(lambda: 1 / 0, 'the loop')\n"
        f"time.sleep({HANG_SECONDS})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=HANG_SECONDS, check=False
    )
    assert done.returncode == 1
    assert b"ZeroDivisionError" in done.stderr


def test_what_raised_is_reported_and_due_again_after_longer_and_longer() -> None:
    clock, said, calls = VirtualClock(), [], []

    def raising() -> None:
        calls.append(clock.now)
        raise KeyError("gone")

    timers = TimerQueue(clock, lambda what, error: said.append((what, error)))
    timers.after(0.0, raising)
    start = clock.now
    for _ in range(300):
        timers.run()
        clock.now += 0.5
    assert [call - start for call in calls] == [0.0, 1.0, 6.0, 66.0, 126.0]
    assert [type(error) for _, error in said] == [KeyError] * 5
    assert "raising" in said[0][0]


def test_cancelled_timers_are_bounded_by_the_others() -> None:
    class Kept:
        def __call__(self) -> None:
            raise AssertionError

    timers = TimerQueue(VirtualClock())
    kept = [timers.after(1e9, lambda: None) for _ in range(100)]
    actions = weakref.WeakSet()
    for _ in range(10_000):
        action = Kept()
        actions.add(action)
        timers.cancel(timers.after(1e6, action))
        assert len(timers.heap) <= 2 * len(kept) + MAX_CANCELLED
    del action
    gc.collect()
    assert not actions


@pytest.mark.parametrize("seconds", NEVER)
def test_no_thread_sleeps_longer_than_a_lock_can_wait(seconds: float) -> None:
    timers = TimerQueue()
    assert timers.sleep_seconds() == LONGEST_SLEEP
    timers.after(seconds, lambda: None)
    assert timers.sleep_seconds() == LONGEST_SLEEP
    timers.after(-seconds, lambda: None)
    assert timers.sleep_seconds() == 0.0


def test_the_clock_counts_while_the_machine_sleeps() -> None:
    """By its number: between two sleeps of the machine both clocks tell the same."""
    assert getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC) == ELAPSED_CLOCK
    before = time.clock_gettime(ELAPSED_CLOCK)
    assert before <= elapsed() <= time.clock_gettime(ELAPSED_CLOCK)
