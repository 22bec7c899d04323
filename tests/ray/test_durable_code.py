"""Code of durable functions that changes while workflows run it, in a script as in a notebook."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Marks
from tests.ray.test_durable import wait_for_suspension
from tests.ray.test_fixed_code import Scripts

HEAD = """
import asyncio
import ray
import ray_workflows as workflow


@ray.remote
def add(a, b=1):
    return a + b


def note(marks, name, *rest):
    marks.add(name)
    return name


@workflow.durable(strict=STRICT)
async def order(marks):
"""

FIRST = """
    await workflow.step(note, marks, "first")
    a, b = await asyncio.gather(workflow.step(add, 1), workflow.step(add, 2))
    got = await workflow.wait_for_signal("go")
    return [a, b, got, await workflow.step(add, 3)]
"""

#: Codes that ask for something else, with what the message has of both sides, and of the line.
OTHERS = {
    "another step": (
        FIRST.replace("step(note, marks, ", "step(add, 5) # "),
        ["'note'", "'add'", "orders.py:19"],
    ),
    "another order": (
        FIRST.replace('    await workflow.step(note, marks, "first")\n', "").replace(
            "    got", '    await workflow.step(note, marks, "first")\n    got'
        ),
        ["'note'"],
    ),
    "one more": (
        FIRST.replace("    got", "    await workflow.step(abs, -1)\n    got"),
        ["'signal-go'", "'abs'", "orders.py:21"],
    ),
    "one more at once": (
        FIRST.replace("workflow.step(add, 2))", "workflow.step(add, 2), workflow.sleep(9))"),
        ["'sleep'"],
    ),
    "an end": (
        FIRST.replace("    got", "    return a, b\n    got"),
        ["'signal-go'", "it has ended"],
    ),
    "an error": (
        FIRST.replace("    got", "    raise ValueError\n    got"),
        ["'signal-go'", "it has ended"],
    ),
}


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    return Scripts(tmp_path / "orders.py", monkeypatch)


def script(code: str, *, strict: bool = False) -> str:
    return HEAD.replace("STRICT", str(strict)) + code.strip("\n") + "\n"


@pytest.fixture
def canceled(scripts: Scripts, wid: str, marks: Marks, request: pytest.FixtureRequest) -> str:
    """The id of a canceled workflow of the first code, which waits for a signal."""
    strict = getattr(request, "param", False)
    module = scripts.load(script(FIRST, strict=strict))
    workflow.run_async(module.order.bind(marks), workflow_id=wid)
    wait_for_suspension(wid)
    workflow.cancel(wid)
    return wid


@pytest.mark.parametrize("name", OTHERS)
def test_other_code_is_refused_and_the_recorded_one_goes_on(
    name: str, canceled: str, scripts: Scripts, marks: Marks
) -> None:
    code, told = OTHERS[name]
    scripts.load(script(code))
    ref = workflow.resume_async(canceled, canceled=True, code="current")
    # It runs again when there is an outcome for it.
    workflow.signal(canceled, "go", 7)
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        ray.get(ref)
    error = caught.value.__cause__
    assert isinstance(error, workflow.NondeterminismError), error
    assert [text for text in told if text not in str(error)] == [], str(error)
    assert marks.counts() == {"first": 1}
    scripts.load(script(FIRST))
    assert workflow.resume(canceled, code="current") == [2, 3, 7, 4]
    assert marks.counts() == {"first": 1}


def test_the_recorded_code_goes_on_after_a_change(
    canceled: str, scripts: Scripts, marks: Marks
) -> None:
    scripts.load(script(OTHERS["another step"][0]))
    with pytest.warns(UserWarning, match="differs from it: order"):
        ref = workflow.resume_async(canceled, canceled=True)
    workflow.signal(canceled, "go", 7)
    assert ray.get(ref) == [2, 3, 7, 4]


def test_a_change_of_what_comes_later_is_none(
    canceled: str, scripts: Scripts, marks: Marks
) -> None:
    scripts.load(script(FIRST.replace("step(add, 3)", "step(note, marks, 'later')")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ref = workflow.resume_async(canceled, canceled=True, code="current")
    workflow.signal(canceled, "go", 7)
    assert ray.get(ref) == [2, 3, 7, "later"]


PATCHED = """
    await workflow.step(note, marks, "first")
    if workflow.patched("early"):
        await workflow.step(note, marks, "early")
    a, b = await asyncio.gather(workflow.step(add, 1), workflow.step(add, 2))
    got = await workflow.wait_for_signal("go")
    if workflow.patched("late"):
        await workflow.step(note, marks, "late")
    await workflow.wait_for_signal("go")
    return [a, b, got, await workflow.step(add, 3)]
"""


def test_patches(canceled: str, scripts: Scripts, marks: Marks) -> None:
    module = scripts.load(script(PATCHED))
    ref = workflow.resume_async(canceled, canceled=True, code="current")
    fresh = workflow.run_async(module.order.bind(marks), workflow_id=f"{canceled}-fresh")
    for workflow_id in (canceled, f"{canceled}-fresh"):
        workflow.signal(workflow_id, "go", 7)
    marks.wait_for("late", 2)
    for workflow_id in (canceled, f"{canceled}-fresh"):
        wait_for_suspension(workflow_id, "signal-go")
        workflow.signal(workflow_id, "go", 8)
    assert ray.get([ref, fresh]) == [[2, 3, 7, 4]] * 2
    # The one that had passed the early place before the change does not go there.
    assert marks.counts() == {"early": 1, "first": 2, "late": 2}


@pytest.mark.parametrize("canceled", [False, True], ids=["lax", "strict"], indirect=True)
def test_other_arguments(
    canceled: str, scripts: Scripts, marks: Marks, request: pytest.FixtureRequest
) -> None:
    strict = "strict" in request.node.name
    scripts.load(script(FIRST.replace("step(add, 2)", "step(add, 200)"), strict=strict))
    ref = workflow.resume_async(canceled, canceled=True, code="current")
    workflow.signal(canceled, "go", 7)
    if not strict:
        assert ray.get(ref) == [2, 3, 7, 4]
        return
    with pytest.raises(workflow.WorkflowExecutionError, match=r"add.*other arguments.*:20"):
        ray.get(ref)
