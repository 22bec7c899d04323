"""`Turns`: one thread at a time runs the loop, and nothing that is brought to it is forgotten."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ray_workflows._coordinator import turns as module
from ray_workflows._coordinator.turns import Turns

SECONDS = 10.0


class Kit:
    """Turns around a loop that counts its steps; its own thread ends with the test."""

    def __init__(self) -> None:
        self.steps = 0
        self.due: float | None = None
        self.on_step: Callable[[], None] = lambda: None
        self.errors: list[Exception] = []
        self.turns = Turns(self.step, self.errors.append)
        self.own: threading.Thread | None = None

    def step(self) -> float | None:
        self.steps += 1
        self.on_step()
        return self.due

    def serve(self) -> None:
        """Start the loop's own thread; it sleeps when this returns."""
        slept = threading.Event()
        self.turns.put(slept.set)
        self.own = threading.Thread(target=self.run, daemon=True)
        self.own.start()
        assert slept.wait(SECONDS)
        with self.turns.turn:
            pass

    def run(self) -> None:
        with pytest.raises(SystemExit):
            self.turns.serve()

    def end(self) -> None:
        def leave() -> None:
            raise SystemExit

        if self.own is not None:
            self.turns.put(leave)
            self.own.join(SECONDS)
            assert not self.own.is_alive()


@pytest.fixture
def kit() -> Iterator[Kit]:
    kit = Kit()
    yield kit
    kit.end()


def where(found: queue.SimpleQueue[int]) -> Callable[[], None]:
    return lambda: found.put(threading.get_ident())


def test_who_brings_something_does_it(kit: Kit) -> None:
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    kit.turns.bring(where(found))
    assert found.get_nowait() == threading.get_ident()
    assert kit.steps == 1


def test_what_is_put_is_done_by_the_own_thread(kit: Kit) -> None:
    kit.serve()
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    kit.turns.put(where(found))
    assert kit.own is not None
    assert found.get(timeout=SECONDS) == kit.own.ident


def test_who_finds_it_taken_leaves_it_to_who_has_it(kit: Kit) -> None:
    entered, go = threading.Event(), threading.Event()
    found: queue.SimpleQueue[int] = queue.SimpleQueue()

    def hold() -> None:
        entered.set()
        assert go.wait(SECONDS)

    holder = threading.Thread(target=lambda: kit.turns.bring(hold))
    holder.start()
    assert entered.wait(SECONDS)
    ident = holder.ident
    kit.turns.bring(where(found))
    assert found.empty()
    go.set()
    assert found.get(timeout=SECONDS) == ident
    holder.join()


def test_what_is_brought_on_the_loop_is_done_after_what_runs(kit: Kit) -> None:
    order: list[str] = []

    def first() -> None:
        kit.turns.bring(lambda: order.append("second"))
        kit.turns.put(lambda: order.append("third"))
        order.append("first")

    kit.turns.bring(first)
    assert order == ["first", "second", "third"]
    # There is no other thread that was called for it.
    assert kit.turns.calls.empty()


def test_what_is_gathered_is_done_at_once(kit: Kit) -> None:
    done: list[int] = []
    with kit.turns.gathered():
        for number in range(3):
            kit.turns.bring(lambda number=number: done.append(number))  # type: ignore[misc]
            kit.turns.put(lambda number=number: done.append(number))  # type: ignore[misc]
        assert not done
    assert done == [0, 0, 1, 1, 2, 2]
    assert kit.steps == 1


def test_what_is_gathered_is_done_although_the_body_fails(kit: Kit) -> None:
    done: list[int] = []

    def fails() -> None:
        with kit.turns.gathered():
            kit.turns.bring(lambda: done.append(1))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fails()
    assert done == [1]


def test_an_error_is_told_and_the_others_are_done(kit: Kit) -> None:
    done: list[int] = []

    def fails() -> None:
        raise ValueError("a bug")

    with kit.turns.gathered():
        kit.turns.bring(fails)
        kit.turns.bring(lambda: done.append(1))
    assert [str(error) for error in kit.errors] == ["a bug"]
    assert done == [1]
    kit.turns.bring(lambda: done.append(2))
    assert done == [1, 2]


def test_an_error_of_a_step_is_told(kit: Kit) -> None:
    def fails() -> None:
        raise ValueError("a bug in a step")

    kit.on_step = fails
    kit.turns.bring(lambda: None)
    assert [str(error) for error in kit.errors] == ["a bug in a step"]


def test_the_own_thread_wakes_for_what_is_due_by_the_clock(kit: Kit) -> None:
    kit.serve()
    stepped = threading.Event()

    def on_step() -> None:
        if threading.current_thread() is kit.own:
            stepped.set()

    def plan() -> None:
        # Known only now, to a thread that has other things to do.
        kit.due, kit.on_step = 0.01, on_step

    kit.turns.bring(plan)
    assert stepped.wait(SECONDS)


def test_the_own_thread_is_not_called_for_what_it_wakes_for_anyway(kit: Kit) -> None:
    kit.due = 3600.0
    kit.serve()
    for _ in range(100):
        kit.turns.bring(lambda: None)
    assert not kit.turns.called


def test_a_long_turn_is_left_to_the_own_thread(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", 0.0)
    kit.serve()
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    kit.turns.bring(lambda: kit.turns.bring(where(found)))
    assert kit.own is not None
    assert found.get(timeout=SECONDS) == kit.own.ident


def test_what_comes_while_somebody_leaves_is_not_forgotten(kit: Kit) -> None:
    done: list[str] = []
    turn = kit.turns.turn

    class Leaving:
        """The lock; when it is first released, another thread has just found it taken."""

        late = True

        def acquire(self, blocking: bool) -> bool:
            return turn.acquire(blocking=blocking)

        def release(self) -> None:
            if self.late:
                self.late = False
                other = threading.Thread(target=kit.turns.bring, args=(lambda: done.append("b"),))
                other.start()
                other.join()
            turn.release()

    kit.turns.turn = Leaving()  # type: ignore[assignment]
    kit.turns.bring(lambda: done.append("a"))
    assert done == ["a", "b"]


def test_nothing_is_forgotten_and_one_thread_at_a_time_runs_it() -> None:
    kit = Kit()
    inside = threading.Lock()
    counted = [0]

    def count() -> None:
        assert inside.acquire(blocking=False), "two threads at once"
        counted[0] += 1
        time.sleep(0)  # Lets another thread have its turn in the middle.
        inside.release()

    def bring(some: Any) -> None:
        for _ in range(2_000):
            some(count)

    # No thread of its own: what is brought has to be done by those who bring it.
    threads = [threading.Thread(target=bring, args=(kit.turns.bring,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Whoever ran for long has called for the thread that is not here.
    kit.turns.take()
    assert counted[0] == 12_000
    assert not kit.errors
