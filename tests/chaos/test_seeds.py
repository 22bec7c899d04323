"""What `make chaos` draws from a seed: the same again, all of it in time, and right."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice

import pytest

from tests.chaos.faults import KINDS, schedule
from tests.chaos.stories import SHAPES, SUCCESSFUL, Broken, Step, mix, number_of, story, value_of

DRAWN = """
from itertools import islice
from tests.chaos.faults import KINDS, schedule
from tests.chaos.stories import story
print([story(5, number) for number in range(50)], list(islice(schedule(5, KINDS), 50)))
"""


def test_a_seed_determines_stories_and_faults() -> None:
    def drawn(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = [sys.executable, "-c", DRAWN]
        return subprocess.run(run, env=environment, capture_output=True, check=True).stdout.decode()

    assert drawn("0") == drawn("4711")
    assert story(5, 1) != story(6, 1)
    assert list(islice(schedule(5, KINDS), 9)) != list(islice(schedule(6, KINDS), 9))


def test_every_shape_and_every_kind_of_fault_comes() -> None:
    stories = [story(1, number) for number in range(300)]
    assert {each.shape for each in stories} == set(SHAPES)
    assert [number_of(each.workflow_id) for each in stories] == list(range(300))
    faults = list(islice(schedule(1, KINDS), 300))
    assert {fault.kind for fault in faults} == set(KINDS)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_story_ends_as_it_says(shape: str) -> None:
    for each in (s for s in (story(2, number) for number in range(200)) if s.shape == shape):
        if each.status == SUCCESSFUL:
            assert each.value == story(2, number_of(each.workflow_id)).value
        elif not each.canceled:
            with pytest.raises(Broken):
                value_of(each.step)


def test_values_follow_from_names_and_inputs() -> None:
    first, second = Step("a"), Step("b", (Step("a"),))
    assert value_of(second) == mix("b", 0, value_of(first))
    assert value_of(Step("b", (Step("a", failures=-1, catches=True),))) == mix("b", 0, 7)
    continued = Step("c", then=second)
    assert value_of(continued) == mix("b", mix("c", 0), value_of(first))
