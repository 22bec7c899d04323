"""Forks: what is upstream is kept, what is downstream runs again, whatever happened before."""

from __future__ import annotations

import random

import pytest

from ray_workflows._engine.commands import commands
from ray_workflows._engine.fork import fork_history
from ray_workflows._engine.state import Phase
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import StartAttempt
from ray_workflows._model.status import WorkflowStatus
from tests.unit.driver import Driver
from tests.unit.plans import plan

DIAMOND = plan(("a", ()), ("b", (0,)), ("c", (0,)), ("d", (1, 2)))


def fork(origin: Driver, from_task: str, start: bool = True) -> Driver:
    history = fork_history(origin.journal, from_task)
    assert history is not None
    return Driver(origin.journal[0].plan, start=start, history=tuple(history))


def finished(*order: str, of=DIAMOND) -> Driver:
    driver = Driver(of)
    for task_id in order:
        driver.succeed(task_id, task_id.encode())
    return driver


def value(driver: Driver, task_id: str) -> bytes | None:
    outcome = driver.state.tasks[driver.number(task_id)].outcome
    return outcome and outcome.value and outcome.value.data


def test_a_task_and_what_is_downstream_run_again() -> None:
    origin = finished("a", "b", "c", "d")
    assert origin.state.status is WorkflowStatus.SUCCESSFUL
    driver = fork(origin, "b")
    assert driver.running == ["b"]
    assert value(driver, "c") == b"c"
    driver.succeed("b", b"new")
    assert driver.running == ["d"]
    driver.succeed("d", b"end")
    assert driver.state.status is WorkflowStatus.SUCCESSFUL
    assert driver.state.output.value.data == b"end"


@pytest.mark.parametrize(
    ("from_task", "running"), [("a", ["a"]), ("b", ["b"]), ("c", ["c"]), ("d", ["d"])]
)
def test_from_every_task_of_a_diamond(from_task: str, running: list[str]) -> None:
    assert fork(finished("a", "b", "c", "d"), from_task).running == running


def test_an_unknown_task() -> None:
    assert fork_history(finished("a").journal, "nobody") is None


def test_of_a_failed_workflow_and_of_one_that_runs() -> None:
    origin = finished("a", "b")
    assert fork(origin, "b").running == ["b", "c"]
    origin.fail("c")
    assert origin.state.status is WorkflowStatus.FAILED
    driver = fork(origin, "b")
    assert driver.running == ["b", "c"]
    assert driver.state.status is WorkflowStatus.RUNNING
    # A failure is no result: it has its attempts again.
    assert driver.state.tasks[driver.number("c")].attempts == 0


def test_a_fork_that_has_to_wait_for_room() -> None:
    driver = fork(finished("a", "b", "c", "d"), "d", start=False)
    assert driver.state.status is WorkflowStatus.PENDING
    assert driver.running == []
    driver.send(msg.Start())
    assert driver.running == ["d"]


def test_from_within_a_continuation_and_from_the_task_that_returned_it() -> None:
    origin = Driver(plan(("a", ()), ("b", (0,))))
    origin.go_on("a", plan(("x", ()), ("y", (0,))))
    for task_id in ("x", "y", "b"):
        origin.succeed(task_id, task_id.encode())
    inside = fork(origin, "y")
    assert inside.running == ["y"]
    assert value(inside, "x") == b"x"
    inside.succeed("y")
    assert inside.running == ["b"]
    # The continuation is gone with the task that returned it, and may be another one now.
    before = fork(origin, "a")
    assert before.running == ["a"]
    assert set(before.state.tasks) == {0, 1}
    before.go_on(
        "a",
        plan(
            ("z", ()),
        ),
    )
    before.succeed("z")
    assert before.running == ["b"]


def test_tail_continuations() -> None:
    origin = Driver(
        plan(
            ("a", ()),
        )
    )
    origin.go_on("a", plan(("b", ()), ("c", (0,))))
    origin.succeed("b")
    origin.go_on(
        "c",
        plan(
            ("d", ()),
        ),
    )
    origin.succeed("d")
    assert origin.state.status is WorkflowStatus.SUCCESSFUL
    for from_task, running in (("a", ["a"]), ("b", ["b"]), ("c", ["c"]), ("d", ["d"])):
        assert fork(origin, from_task).running == running


def test_numbers_close_up_where_a_continuation_is_left_out() -> None:
    """Two continuations, of which the first is left out and the second kept."""
    origin = Driver(plan(("a", ()), ("b", ()), ("c", (0, 1))))
    origin.go_on(
        "a",
        plan(
            ("x", ()),
        ),
    )
    origin.go_on(
        "b",
        plan(
            ("y", ()),
        ),
    )
    for task_id in ("x", "y"):
        origin.succeed(task_id, task_id.encode())
    driver = fork(origin, "a")
    assert driver.running == ["a"]
    assert value(driver, "b") == b"y"
    assert driver.state.next_task == 4


def test_caught_errors_are_results() -> None:
    origin = Driver(plan(("a", (), {"catch_exceptions": True}), ("b", ()), ("c", (0, 1))))
    origin.fail("a")
    origin.succeed("b")
    driver = fork(origin, "b")
    assert driver.running == ["b"]
    assert driver.state.tasks[0].outcome.error is not None


def test_an_error_caught_further_out_than_the_fork_starts() -> None:
    """It ended the continuation in which the fork starts: in the fork that goes on."""
    origin = Driver(plan(("a", (), {"catch_exceptions": True}), ("b", (0,))))
    origin.go_on("a", plan(("x", ()), ("y", ()), ("z", (0, 1))))
    origin.succeed("x")
    origin.fail("y")
    origin.succeed("b")
    assert origin.state.status is WorkflowStatus.SUCCESSFUL
    assert fork(origin, "x").running == ["x", "y"]
    assert fork(origin, "b").running == ["b"]


def test_values_that_were_not_stored_run_again() -> None:
    origin = Driver(plan(("a", (), {"checkpoint": False}), ("b", (0,)), ("c", (0, 1))))
    origin.succeed_unstored("a")
    origin.succeed("b")
    origin.succeed("c")
    assert fork(origin, "c").running == ["a"]
    # What nobody wants is not made again.
    assert fork(finished("a", "b", of=plan(("a", ()), ("b", (0,)))), "b").running == ["b"]


def test_sleeps_sleep_anew_and_pauses_are_over() -> None:
    timer = {"kind": "timer", "duration": 30.0}
    origin = Driver(plan(("t", (), timer), ("b", (0,))))
    origin.now += 30
    origin.send(msg.Wake())
    origin.succeed("b")
    kept = fork(origin, "b")
    assert kept.running == ["b"]
    anew = fork(origin, "t")
    assert list(anew.state.timers.values()) == [anew.now + 30]


@pytest.mark.parametrize("seed", range(300))
def test_of_any_history_from_any_task(seed: int) -> None:
    """Whatever happened, a fork runs to its end, and has kept what is not downstream."""
    rng = random.Random(seed)
    options = [
        {"kind": "timer", "duration": 5.0},
        {},
        {"catch_exceptions": True},
        {"checkpoint": False},
        {"retry_exceptions": True, "max_retries": 1},
    ]

    def random_plan(size: int):
        tasks, loose = [], set()
        for index in range(size):
            upstream = tuple(rng.sample(range(index), min(index, rng.randint(0, 2))))
            loose = (loose - set(upstream)) | {index}
            # Timers take no inputs.
            tasks.append((rng.choice("abc"), upstream, rng.choice(options[upstream != () :])))
        tasks.append(("end", tuple(sorted(loose)), rng.choice(options[1:])))
        return plan(*tasks)

    def step(driver: Driver, trouble: bool) -> None:
        if driver.state.status in ("FAILED", "CANCELED"):
            driver.resume(rng.choice(["h1", "h2"]))
        elif driver.state.timers:
            driver.now += 5
            driver.send(msg.Wake())
        else:
            due = [c for c in commands(driver.state) if isinstance(c, StartAttempt)]
            driver.flying.update({c.task: c for c in due})
            act(driver, driver.state.tasks[rng.choice(due).task], rng.random() if trouble else 1)

    def act(driver: Driver, task, action: float) -> None:
        if action < 0.2:
            driver.fail(task.task_id, task.options.retry_exceptions)
        elif action < 0.4 and len(driver.journal) < 60:
            driver.go_on(task.task_id, random_plan(rng.randint(0, 2)))
        elif action < 0.5:
            driver.claim(f"h{rng.random()}", live=False)
        elif driver.state.checkpoints(task):
            driver.succeed(task.task_id)
        else:
            driver.succeed_unstored(task.task_id)

    origin = Driver(random_plan(rng.randint(0, 6)))
    for _ in range(rng.randint(0, 60)):
        if origin.state.status == "SUCCESSFUL":
            break
        step(origin, trouble=True)
    ids = [i for event in origin.journal for i in getattr(event, "task_ids", ())]
    driver = fork(origin, rng.choice(ids))
    for _ in range(400):
        if driver.state.status == "SUCCESSFUL":
            break
        step(driver, trouble=False)
    assert driver.state.status == "SUCCESSFUL"
    assert all(task.phase is not Phase.FAILED for task in driver.state.tasks.values())
