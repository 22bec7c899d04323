"""Which tasks may run right after another one, in the same worker, with no commit in between."""

from __future__ import annotations

import pytest

from ray_workflows._engine.commands import followers
from ray_workflows._model.plan import TIMER, Plan
from tests.unit.driver import Driver
from tests.unit.plans import plan

UNSTORED = {"checkpoint": False}


@pytest.mark.parametrize(
    ("tasks", "found"),
    [
        pytest.param(
            plan(("a", (), UNSTORED), ("b", (0,), UNSTORED), ("c", (1,))), ["b", "c"], id="a chain"
        ),
        pytest.param(plan(("a", ()), ("b", (0,))), [], id="its result is stored"),
        pytest.param(
            plan(("a", (), UNSTORED), ("b", (0,)), ("c", (1,))),
            ["b"],
            id="one is stored",
        ),
        pytest.param(
            plan(("a", (), UNSTORED), ("b", (0,)), ("c", (0,)), ("d", (1, 2))),
            [],
            id="another one takes its result, too",
        ),
        pytest.param(
            plan(("a", (), UNSTORED), ("x", ()), ("b", (0, 1))), [], id="another input is missing"
        ),
        pytest.param(
            plan(("a", (), UNSTORED), ("b", (0,), {"kind": TIMER})), [], id="a timer follows"
        ),
    ],
)
def test_followers(tasks: Plan, found: list[str]) -> None:
    d = Driver(tasks)
    first = d.state.tasks[d.number("a")]
    assert [task.task_id for task in followers(d.state, first)] == found
