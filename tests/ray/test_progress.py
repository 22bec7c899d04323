"""What `progress=True` shows."""

from __future__ import annotations

import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Marks


@ray.remote
def part(index: int):
    return index


@ray.remote
def total(*parts):
    return sum(parts)


@ray.remote
def more(marks: Marks):
    marks.add("more")
    return workflow.continuation(total.bind(*(part.bind(index) for index in range(5))))


@ray.remote
def fails_once(marks: Marks, value):
    marks.add("fails")
    if marks.count("fails") == 1:
        raise ValueError("once")
    return value


def test_lines_in_a_log(wid: str, marks: Marks, capfd: pytest.CaptureFixture[str]) -> None:
    dag = fails_once.bind(marks, more.bind(marks))
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag, workflow_id=wid, progress=True)
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith(f"{wid}: 7 of 8 tasks done, 1 failed (")
    assert workflow.resume(wid, progress=True) == 10
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith(f"{wid}: 8 of 8 tasks done (")
    assert captured.out == ""
    # What is over at once needs no display, and without asking there is none.
    assert workflow.run(dag, workflow_id=wid, progress=True) == 10
    assert workflow.run(part.bind(1)) == 1
    assert capfd.readouterr().err == ""


def test_a_bar_on_a_terminal(
    wid: str, marks: Marks, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    odd = f"{wid} [red]"
    assert workflow.run(more.bind(marks), workflow_id=odd, progress=True) == 10
    shown = capfd.readouterr().err
    assert odd in shown
    assert "7/7" in shown


def test_flags_that_are_none(wid: str) -> None:
    for call in (
        lambda: workflow.run(part.bind(1), workflow_id=wid, progress="yes"),
        lambda: workflow.resume(wid, progress=1),
        lambda: workflow.resume(wid, canceled=None),
        lambda: workflow.resume_async(wid, canceled="no"),
    ):
        with pytest.raises(TypeError, match="must be True or False"):
            call()


def test_inputs_that_are_called_like_arguments() -> None:
    """They are ours; the error says what is missing, and there is another way."""
    from ray.dag import InputNode

    with InputNode() as inputs:
        dag = part.bind(inputs["timeout"])
    with pytest.raises(ValueError, match="takes the input 'timeout', which was not given"):
        workflow.run(dag, timeout=5)
    assert workflow.run(dag, {"timeout": 5}) == 5
