"""Bodies that are begun anew: what is left of the earlier ones."""

from __future__ import annotations

from ray_workflows._engine.fork import fork_history
from ray_workflows._model import events as ev
from ray_workflows._model.status import WorkflowStatus
from tests.unit.body_driver import DURABLE, Anew, BodyDriver, local, mark, step
from tests.unit.plans import plan

TURNS = 200


def loop(turns: int) -> BodyDriver:
    """A body that is begun anew until it has asked for so many steps."""
    left = iter(range(turns - 1, -1, -1))

    async def code() -> bytes:
        await local("look")
        mark("seed", b"s")
        await step("a")
        await step("inner", **DURABLE)
        if next(left):
            raise Anew
        return b"end"

    async def inner() -> bytes:
        return await step("b")

    return BodyDriver(plan(("f", (), DURABLE), ("x", (0,))), {"f": code, "inner": inner})


def turn(driver: BodyDriver, number: int) -> None:
    task_id = f"f_{number}" if number else "f"
    driver.finish(f"{task_id}/a", f"{task_id}/inner/b")


def test_a_long_loop_needs_no_more_than_its_last_turn() -> None:
    driver = loop(TURNS)
    driver.replays = False
    sizes = set()
    for number in range(TURNS - 1):
        turn(driver, number)
        state = driver.state
        if number > 0:
            sizes.add((len(state.names), len(state.frames), len(state.tasks), len(state.bodies)))
    assert len(sizes) == 1, sizes
    # The plan, the body, and its first step.
    assert sizes == {(3, 3, 4, 1)}
    assert driver.running == [f"f_{TURNS - 1}/a"]
    turn(driver, TURNS - 1)
    assert driver.running == ["x"]
    assert driver.state.names == {"f": TURNS, "x": 1}
    driver.finish("x")
    assert driver.state.status is WorkflowStatus.SUCCESSFUL


def test_the_ids_of_all_turns_differ() -> None:
    driver = loop(3)
    for number in range(3):
        turn(driver, number)
    ids = [
        each for event in driver.journal if isinstance(event, ev.Opening) for each in event.task_ids
    ]
    assert ids == [
        *("f", "x", "f/a", "f/inner", "f/inner/b"),
        *("f_1", "f_1/a", "f_1/inner", "f_1/inner/b"),
        *("f_2", "f_2/a", "f_2/inner", "f_2/inner/b"),
    ]


def test_a_fork_starts_in_the_turn_of_its_task() -> None:
    origin = loop(3)
    for number in range(3):
        turn(origin, number)
    for from_task in ("f/a", "f_1/a", "f_2/a", "f_2/inner/b"):
        history = fork_history(origin.journal, from_task)
        assert history is not None
        driver = BodyDriver(origin.journal[0].plan, loop(3).codes, history=tuple(history))
        assert driver.running == [from_task]
