"""A task may not cost engine and journal 1.5 times what `engine_costs.json` says.

That file has the costs for each Python. After a change that is meant to cost more, or that saves
much: ``python -m tests.unit.engine.engine_path``, and put what it prints there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine import engine_path

#: What is too much, in multiples of the baseline.
LIMIT = 1.5

#: How many times are measured: at least FEW, and up to MANY before the test fails.
FEW, MANY = 5, 60

BASELINES = json.loads(Path(__file__).with_name("engine_costs.json").read_text())


def baseline(kind: str) -> float:
    """That of this Python, or of the newest that there is one of."""
    return float(BASELINES.get(engine_path.python_version(), list(BASELINES.values())[-1])[kind])


def instructions() -> float:
    """Instructions for a task, in multiples of the baseline."""
    return engine_path.instructions_per_task(500) / baseline("instructions")


def time_taken() -> float:
    """Time for a task, in multiples of the baseline: what C code takes is in it too."""
    ratio = engine_path.Ratio(1_000)
    found = float("inf")
    for count in range(MANY):
        found = ratio.measure() / baseline("ratio")
        if found <= LIMIT and count >= FEW:
            break
    return found


@pytest.mark.parametrize("cost", [instructions, time_taken])
def test_engine_and_journal_cost_what_they_did(cost: Callable[[], float]) -> None:
    found = cost()
    assert found <= LIMIT, (
        f"A task costs {found:.2f} times what it did. If it has to: python -m "
        f"tests.unit.engine.engine_path says what to put into engine_costs.json beside {__file__}."
    )


def test_a_task_costs_the_same_in_a_large_workflow() -> None:
    small, large = (engine_path.instructions_per_task(size) for size in (200, 2_000))
    assert large <= 1.1 * small


def again(function: Any, times: int) -> Any:
    """A function that does what it does several times."""

    def slower(*args: Any, **kwargs: Any) -> Any:
        for _ in range(times - 1):
            function(*args, **kwargs)
        return function(*args, **kwargs)

    return slower


def test_what_python_does_in_addition_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deciding five times: a bit more than half of all the rest."""
    before = instructions()
    assert before == instructions(), "The count is not the same every time."
    monkeypatch.setattr(engine_path, "decide", again(engine_path.decide, 5))
    assert instructions() > LIMIT > before


def test_what_c_code_does_in_addition_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding until it takes twice the time, with hardly an instruction more."""
    before = instructions()
    monkeypatch.setattr(engine_path, "encode_entry", again(engine_path.encode_entry, 100))
    assert time_taken() > LIMIT
    assert instructions() < 1.1 * before
